"""The EDM networks against outputs of the published implementation, and their preconditioning."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.denoisers.preconditioning import (
    edm_coefficients,
    ve_coefficients,
    vp_coefficients,
)

GOLDEN = Path(__file__).parent / "golden" / "edm"
NAMES = ("ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond")
TOLERANCE = 1e-4  # relative to the output's standard deviation

CIFAR10 = {
    "model_type": "SongUNet", "img_resolution": 32, "img_channels": 3, "label_dim": 10,
    "model_channels": 128, "channel_mult": (2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,),
    "augment_dim": 9,
}  # fmt: skip
NCSNPP = {
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}  # fmt: skip
IMAGENET64 = {
    "model_type": "DhariwalUNet", "img_resolution": 64, "img_channels": 3, "label_dim": 1000,
    "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}  # fmt: skip


def golden(name, dtype="float32"):
    """The denoiser with the golden weights, and the golden inputs and outputs."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    configuration = EdmConfiguration(**json.loads((GOLDEN / f"{name}.json").read_text()))
    denoiser = EdmDenoiser(configuration, dtype=dtype).eval().requires_grad_(False)
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("param.")}
    denoiser.load_state_dict(state)
    return denoiser, {key[3:]: value for key, value in tensors.items() if key.startswith("io.")}


def deviation(found, expected):
    return ((found - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("name", NAMES)
def test_output_agrees_with_published_implementation(name):
    denoiser, io = golden(name)
    found = denoiser(io["x"], io["sigma"], io.get("labels"))
    assert found.dtype == torch.float32
    assert deviation(found, io["D"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_label_minus_one_is_the_all_zero_label_row(name):
    denoiser, io = golden(name)
    none = torch.full((len(io["x"]),), NO_CLASS)
    assert deviation(denoiser(io["x"], io["sigma"], none), io["D_zero_label"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_low_precision_network_stays_close_and_returns_float32(name, dtype, bound):
    denoiser, io = golden(name, dtype)
    found = denoiser(io["x"], io["sigma"], io.get("labels"))
    assert found.dtype == torch.float32
    assert 0 < deviation(found, io["D"]) < bound


def test_fourier_frequencies_stay_float32_in_a_low_precision_network():
    exact, _ = golden("ncsnpp_cond")
    low, _ = golden("ncsnpp_cond", "bfloat16")
    assert torch.equal(low.model.map_noise.freqs, exact.model.map_noise.freqs)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_denoised_alike_alone_and_among_others(name):
    denoiser, io = golden(name)
    together = denoiser(io["x"], io["sigma"], io.get("labels"))
    for i in range(len(together)):
        label = io["labels"][i : i + 1] if "labels" in io else None
        alone = denoiser(io["x"][i : i + 1], io["sigma"][i : i + 1], label)
        assert deviation(alone, together[i : i + 1]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "millions"),
    [(CIFAR10, 55.7), ({**CIFAR10, **NCSNPP}, 56.0), (IMAGENET64, 295.9)],
    ids=["ddpmpp", "ncsnpp", "adm"],
)
def test_published_configuration_has_the_published_number_of_parameters(settings, millions):
    with torch.device("meta"):
        denoiser = EdmDenoiser(EdmConfiguration(**settings))
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.5 if millions == 56.0 else 0.05)


def test_unconditional_network_accepts_no_label_and_only_label_minus_one():
    denoiser, io = golden("ddpmpp_uncond")
    assert denoiser.has_unconditional
    assert denoiser.num_classes == 0
    none = torch.full((len(io["x"]),), NO_CLASS)
    assert torch.equal(denoiser(io["x"], io["sigma"]), denoiser(io["x"], io["sigma"], none))
    with pytest.raises(IndexError):
        denoiser(io["x"], io["sigma"], none + 1)


@pytest.mark.parametrize("label", [-2, 10])
def test_label_out_of_range_is_refused(label):
    denoiser, io = golden("ddpmpp_cond")
    with pytest.raises(IndexError):
        denoiser(io["x"], io["sigma"], torch.full((len(io["x"]),), label))


def test_conditional_network_without_label_dropout_refuses_no_label():
    denoiser, io = golden("ddpmpp_cond")
    with pytest.raises(ValueError, match="second, unconditional checkpoint"):
        denoiser(io["x"], io["sigma"])


def test_wrong_shapes_are_refused():
    denoiser, io = golden("ddpmpp_uncond")
    with pytest.raises(ValueError, match=r"takes \[B, \*\(3, 16, 16\)\]"):
        denoiser(io["x"][:, :, :8], io["sigma"])
    with pytest.raises(ValueError, match="one entry per image"):
        denoiser(io["x"], io["sigma"][:1])


def test_edm_denoiser_satisfies_the_protocol():
    denoiser, _ = golden("adm_cond")
    assert isinstance(denoiser, Denoiser)
    assert denoiser.image_shape == (3, 16, 16)
    assert denoiser.num_classes == 10
    assert not denoiser.has_unconditional
    assert denoiser.s_range == (0.002, 80.0)


def test_fresh_edm_network_is_the_best_linear_denoiser():
    # Its output layer starts at zero: D = c_skip u, the posterior mean for data N(0, 0.5^2 I).
    settings = {**CIFAR10, "model_channels": 16, "num_blocks": 1}
    denoiser = EdmDenoiser(EdmConfiguration(**settings)).eval()
    u, s = torch.randn(2, 3, 32, 32), torch.tensor([0.5, 2.0])
    shrink = (0.25 / (0.25 + s**2))[:, None, None, None]
    with torch.no_grad():
        torch.testing.assert_close(denoiser(u, s, torch.tensor([0, 1])), shrink * u)


def test_edm_preconditioning_gives_unit_variance_in_and_out():
    s = torch.tensor([0.01, 0.5, 3.0, 50.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = edm_coefficients(s, 0.5)
    one = torch.ones_like(s)
    torch.testing.assert_close(c_in**2 * (s**2 + 0.25), one)  # variance of the network's input
    target = (0.25 * (1 - c_skip) ** 2 + (c_skip * s) ** 2) / c_out**2  # of what it must return
    torch.testing.assert_close(target, one)
    torch.testing.assert_close(c_noise, s.log() / 4)


def test_vp_time_inverts_the_noise_schedule():
    times = [0.01, 0.3, 0.7, 1.0]
    published = [math.sqrt(math.expm1(19.9 * t**2 / 2 + 0.1 * t)) for t in times]
    s = torch.tensor(published, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = vp_coefficients(s, 0.5)
    torch.testing.assert_close(c_noise, 999 * torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(c_in, 1 / torch.hypot(s, torch.ones_like(s)))
    torch.testing.assert_close(c_out, -s)
    assert (c_skip == 1).all()


def test_ve_preconditioning_is_that_of_table_1():
    s = torch.tensor([0.02, 2.0, 100.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = ve_coefficients(s, 0.5)
    assert (c_skip == 1).all()
    assert (c_in == 1).all()
    torch.testing.assert_close(c_out, s)
    assert c_noise.tolist() == pytest.approx([math.log(0.01), 0.0, math.log(50)])


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_baseline_preconditioning_is_what_a_configuration_selects(kind):
    settings = {**CIFAR10, "model_channels": 16, "num_blocks": 1, "preconditioning": kind}
    denoiser = EdmDenoiser(EdmConfiguration(**settings)).eval().requires_grad_(False)
    bias = denoiser.model.dec["32x32_aux_conv"].bias
    bias.fill_(0.25)  # the output layer's weights are zero, so F is this constant
    u, s = torch.randn(2, 3, 32, 32), torch.tensor([0.5, 2.0])
    sign = {"vp": -1, "ve": 1}[kind]
    expected = u + sign * 0.25 * s[:, None, None, None]
    torch.testing.assert_close(denoiser(u, s, torch.tensor([0, 1])), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "num_layers"),
        ({"model_type": "UNet"}, "SongUNet"),
        ({"img_resolution": 30}, "multiple of 4"),
        ({"model_type": "DhariwalUNet", "resample_filter": (1, 3, 3, 1)}, "settings of SongUNet"),
        ({"label_dim": 0, "has_unconditional": False}, "label_dim is 0"),
    ],
)
def test_configuration_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        EdmConfiguration(**{**CIFAR10, **change})


def test_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        EdmDenoiser(EdmConfiguration(**CIFAR10), dtype="int8")
