"""OpenAI's checkpoints on our ADM network, against the networks of a library that keeps theirs."""

import json
import math

import pytest
import torch

from diffcert_ray.checkpoints.files import checkpoint_sha256, read_configuration
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.checkpoints.network_shape import PUBLISHED, openai_shape, published_as
from diffcert_ray.checkpoints.state_dict import read_state_dict
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.errors import CheckpointError

unet = pytest.importorskip("azula.plugins.adm._src.unet", reason="azula is not installed")


@pytest.fixture(autouse=True)
def _no_recomputation(monkeypatch):
    """The library recomputes activations to save memory, for which torch loads its compiler."""
    monkeypatch.setattr(unet, "checkpoint", lambda function, *arguments, **_: function(*arguments))


NARROW = {
    "image_size": 16, "in_channels": 3, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": (2,), "channel_mult": (1, 2), "use_scale_shift_norm": True,
}  # fmt: skip
GUIDED = {"resblock_updown": True, "num_head_channels": 32}
BESIDE = {"img_resolution": 16, "num_heads": 2}
STEPS = {"preconditioning": "epsilon", "schedule": "cosine", "steps": 1000}


def library_network(**settings):
    """The library's network with random weights in every layer."""
    torch.manual_seed(1)
    network = unet.UNetModel(**{**NARROW, "out_channels": 6, **settings}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


def saved(network, path, beside):
    torch.save(network.state_dict(), path)
    if beside is not None:
        path.with_suffix(".json").write_text(json.dumps(beside))
    return path


def abar(schedule, steps):
    """The product of the kept variance, computed step by step from the papers' formulas."""
    kept = [1.0]
    for t in range(steps):
        if schedule == "linear":
            beta = (0.1 + (20 - 0.1) * t / (steps - 1)) / steps
        else:
            f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (t, t + 1)]
            beta = min(1 - f[1] / f[0], 0.999)
        kept.append(kept[-1] * (1 - beta))
    return kept[1:]


def level_of_step(schedule, steps, t):
    kept = abar(schedule, steps)[t]
    return math.sqrt((1 - kept) / kept)


VARIANTS = {
    "guided-diffusion, new attention order": (
        {**GUIDED, "num_classes": 10, "use_new_attention_order": True},
        {**BESIDE, **STEPS, "qkv_order": "parts"},
    ),
    "guided-diffusion, unconditional, linear": (
        GUIDED, {**BESIDE, **STEPS, "qkv_order": "head", "schedule": "linear"},
    ),
    "improved-diffusion": (
        {"num_heads": 2, "num_classes": 10},
        {**BESIDE, **STEPS, "qkv_order": "head", "steps": 4000, "c_noise_scale": 1.0},
    ),
    "improved-diffusion, rescaled time": (
        {"num_heads": 2, "num_classes": 10},
        {**BESIDE, **STEPS, "qkv_order": "head", "steps": 4000, "c_noise_scale": 0.25},
    ),
    "improved-diffusion, three levels": (
        {"num_heads": 2, "channel_mult": (1, 2, 2), "num_res_blocks": 2,
         "attention_resolutions": (2, 4)},
        {**BESIDE, **STEPS, "qkv_order": "head"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_denoiser_is_that_of_the_librarys_network(tmp_path, variant):
    settings, beside = VARIANTS[variant]
    network = library_network(**settings)
    denoiser = load_denoiser(saved(network, tmp_path / "a.pt", beside))
    steps = [3, beside["steps"] // 2, beside["steps"] - 200]
    s = torch.tensor([level_of_step(beside["schedule"], beside["steps"], t) for t in steps])
    u = torch.randn(3, 3, 16, 16) * (s[:, None, None, None] + 1)
    y = torch.tensor([0, 4, 9]) if "num_classes" in settings else None
    t = torch.tensor(steps) * beside.get("c_noise_scale", 1.0)
    shape = (3, 1, 1, 1)
    scaled = u / (1 + s**2).sqrt().reshape(shape)
    expected = u - s.reshape(shape) * network(scaled, t, y)[:, :3]
    spread = (s.reshape(shape) * (expected - u)).std()
    assert (denoiser(u, s, y) - expected).abs().max() < 1e-3 * spread
    assert denoiser.num_classes == (10 if y is not None else 0)
    assert denoiser.has_unconditional == (y is None)


def test_consistency_models_teacher_has_edm_preconditioning_and_scaled_noise_labels(tmp_path):
    network = library_network(
        **GUIDED, num_classes=10, use_new_attention_order=True, out_channels=3
    )
    beside = {**BESIDE, "qkv_order": "parts", "c_noise_scale": 1000, "preconditioning": "edm"}
    state = network.state_dict()
    for name in state:  # theirs has 2d convolutions in attention
        if state[name].ndim == 3:
            state[name] = state[name][..., None]
    torch.save(state, tmp_path / "a.pt")
    denoiser = load_denoiser(tmp_path / "a.pt", beside)
    s, u, y = torch.tensor([0.05, 0.7, 20.0]), torch.randn(3, 3, 16, 16), torch.tensor([1, 2, 3])
    shape = (3, 1, 1, 1)
    root = (s**2 + 0.25).sqrt().reshape(shape)
    raw = network(u / root, 250 * s.log(), y)
    expected = 0.25 / root**2 * u + 0.5 * s.reshape(shape) / root * raw
    torch.testing.assert_close(denoiser(u, s, y), expected, rtol=1e-4, atol=1e-4)


def test_noise_levels_between_steps_are_interpolated_in_their_logarithm(tmp_path):
    network = library_network(**GUIDED)
    beside = {**BESIDE, **STEPS, "qkv_order": "head", "schedule": "linear"}
    denoiser = load_denoiser(saved(network, tmp_path / "a.pt", beside))
    low, high = (level_of_step("linear", 1000, t) for t in (300, 301))
    s = torch.tensor([math.exp(0.75 * math.log(low) + 0.25 * math.log(high))])
    assert denoiser.step_labels(s).item() == pytest.approx(300.25, abs=1e-3)
    assert denoiser.s_range == pytest.approx(
        (level_of_step("linear", 1000, 0), level_of_step("linear", 1000, 999))
    )
    ends = denoiser.step_labels(torch.tensor([1e-6, 1e6]))
    assert ends.tolist() == [0.0, 999.0]


def test_variant_without_scale_shift_is_refused(tmp_path):
    network = library_network(**GUIDED, use_scale_shift_norm=False)
    path = saved(network, tmp_path / "a.pt", BESIDE)
    with pytest.raises(CheckpointError, match="use_scale_shift_norm"):
        load_denoiser(path)


def test_file_and_configuration_beside_it_are_one_identity(tmp_path):
    path = saved(library_network(**GUIDED), tmp_path / "a.pt", None)
    alone = checkpoint_sha256(path)
    path.with_suffix(".json").write_text(json.dumps({**BESIDE, **STEPS, "qkv_order": "head"}))
    with_head = checkpoint_sha256(path)
    path.with_suffix(".json").write_text(json.dumps({**BESIDE, **STEPS, "qkv_order": "parts"}))
    assert len({alone, with_head, checkpoint_sha256(path)}) == 3
    assert read_configuration(path).image_shape == (3, 16, 16)


FULL_SIZE = {  # the flags that OpenAI publishes with each checkpoint, and its parameters
    "guided-diffusion 64x64_diffusion": (
        {"image_size": 64, "model_channels": 192, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4),
         "attention_resolutions": (2, 4, 8), "num_head_channels": 64, "resblock_updown": True,
         "num_classes": 1000, "use_new_attention_order": True},
        295.9,
    ),
    "guided-diffusion 256x256_diffusion_uncond": (
        {"image_size": 256, "model_channels": 256, "num_res_blocks": 2,
         "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32),
         "num_head_channels": 64, "resblock_updown": True},
        552.8,
    ),
    "improved-diffusion imagenet64_cond_270M": (
        {"image_size": 64, "model_channels": 192, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4),
         "attention_resolutions": (4, 8), "num_heads": 4, "num_classes": 1000},
        273.0,  # "270M" in its name
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_published_checkpoint_is_recognised_and_fits_our_network(name):
    flags, millions = FULL_SIZE[name]
    with torch.device("meta"):
        theirs = unet.UNetModel(
            **{"in_channels": 3, "out_channels": 6, "use_scale_shift_norm": True, **flags}
        )
        ours = EdmDenoiser(EdmConfiguration(**PUBLISHED[name]))
    found = published_as(openai_shape(theirs.state_dict()), openai=True)
    assert found == (name, PUBLISHED[name])
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == sum(parameter.numel() for parameter in ours.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("consistency_models edm_imagenet64_ema", {"learned_variance": False}),
        (
            "improved-diffusion imagenet64_uncond_100M",
            {"label_dim": 0, "model_channels": 128, "resampling": "convolution",
             "attn_levels": (2, 3)},
        ),
        (
            "improved-diffusion cifar10_uncond_50M",
            {"label_dim": 0, "model_channels": 128, "resampling": "convolution",
             "attn_levels": (1, 2), "channel_mult": (1, 2, 2, 2)},
        ),
    ],
)  # fmt: skip
def test_relatives_of_a_published_checkpoint_are_told_apart(name, change):
    guided = {
        "model_type": "DhariwalUNet", "img_channels": 3, "model_channels": 192,
        "channel_mult": (1, 2, 3, 4), "num_blocks": 3, "attn_levels": (1, 2, 3),
        "learned_variance": True, "label_dim": 1000, "resampling": "block",
    }  # fmt: skip
    found = published_as(guided, openai=True)
    assert found is not None
    assert found[0] == "guided-diffusion 64x64_diffusion"
    assert published_as(guided | change, openai=True) == (name, PUBLISHED[name])
    assert published_as(guided | change | {"num_blocks": 9}, openai=True) is None


def test_recognised_checkpoint_loads_without_a_configuration(tmp_path, monkeypatch):
    settings = {
        "model_type": "DhariwalUNet", "img_channels": 3, "model_channels": 32, "num_blocks": 1,
        "channel_mult": (1, 2), "attn_resolutions": (8,), "norm_groups": 32,
        "learned_variance": True, "qkv_order": "head", **BESIDE, **STEPS,
    }  # fmt: skip
    monkeypatch.setitem(PUBLISHED, "narrow", settings)
    path = saved(library_network(**GUIDED), tmp_path / "a.pt", None)
    state = read_state_dict(path)
    assert state.published == "narrow"
    assert load_denoiser(path).configuration == EdmConfiguration(**settings)


ASKED = {
    "image_size": 16, "num_heads": 2, "use_new_attention_order": False, "predict_xstart": False,
    "noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": True,
}  # fmt: skip


def printed(error):
    """The JSON object that a message prints."""
    text = str(error.value)
    return json.JSONDecoder().raw_decode(text[text.index("{") :])[0]


def test_one_message_asks_for_all_and_its_json_completed_loads_the_librarys_network(tmp_path):
    network = library_network(num_heads=2, num_classes=10)
    path = saved(network, tmp_path / "a.pt", None)
    with pytest.raises(CheckpointError) as error:
        load_denoiser(path)
    asked = printed(error)
    assert {key for key, value in asked.items() if value is None} == {*ASKED, "num_head_channels"}
    path.with_suffix(".json").write_text(json.dumps(asked))  # as it is: asks for the same again
    with pytest.raises(CheckpointError) as again:
        load_denoiser(path)
    assert printed(again) == asked
    path.with_suffix(".json").write_text(json.dumps(asked | ASKED))
    denoiser = load_denoiser(path)
    s = torch.tensor([level_of_step("cosine", 4000, 1000)])
    u, y = torch.randn(1, 3, 16, 16), torch.tensor([4])
    expected = u - s * network(u / (1 + s**2).sqrt(), torch.tensor([250.0]), y)[:, :3]
    assert (denoiser(u, s, y) - expected).abs().max() < 1e-3 * (expected - u).std()


@pytest.mark.parametrize("missing", ASKED)
def test_nothing_that_tensors_cannot_tell_has_a_default(tmp_path, missing):
    path = saved(library_network(num_heads=2), tmp_path / "a.pt", None)
    with pytest.raises(CheckpointError, match=missing):
        load_denoiser(path, {key: value for key, value in ASKED.items() if key != missing})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"preconditioning": "edm", "c_noise_scale": 1000}, "6 channels.*learned variance"),
        ({"learn_sigma": False}, "learned_variance False, but they have True"),
        ({"class_cond": True}, "class_cond True, but they have False"),
        ({"num_channels": 64}, "model_channels 64, but they have 32"),
        ({"num_heads": 5}, "num_heads is 5, but attention has 64 channels"),
        ({"num_heads_upsample": 4}, "num_heads_upsample"),
        ({"resblock_updown": True}, "'block', but they have 'convolution'"),
        ({"num_heds": 2}, "did you mean 'num_heads'"),
        ({"preset": "guided-diffusion 63x63"}, "did you mean 'guided-diffusion"),
    ],
)
def test_what_tensors_exclude_is_refused(tmp_path, stated, message):
    path = saved(library_network(num_heads=2), tmp_path / "a.pt", None)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path, {**ASKED, **stated})


def test_head_channels_of_a_command_line_go_before_heads_and_text_is_read(tmp_path):
    network = library_network(num_head_channels=16, resblock_updown=True)
    line = {
        **{key: str(value) for key, value in ASKED.items()}, "num_heads": "4",
        "num_head_channels": "16", "attention_resolutions": "8", "channel_mult": "1,2",
        "dropout": "0.1", "num_heads_upsample": "-1", "noise_schedule": "linear",
        "diffusion_steps": "1000", "rescale_timesteps": "False", "use_scale_shift_norm": "True",
    }  # fmt: skip
    denoiser = load_denoiser(saved(network, tmp_path / "a.pt", line))
    s = torch.tensor([level_of_step("linear", 1000, 400)])
    u = torch.randn(1, 3, 16, 16)
    expected = u - s * network(u / (1 + s**2).sqrt(), torch.tensor([400.0]))[:, :3]
    assert (denoiser(u, s) - expected).abs().max() < 1e-3 * (expected - u).std()


def test_preset_says_what_tensors_cannot(tmp_path):
    path = saved(library_network(num_heads=4), tmp_path / "a.pt", None)
    settings = {"preset": "improved-diffusion cifar10_uncond_50M", "image_size": 16}
    found = load_denoiser(path, settings).configuration
    assert (found.num_heads, found.steps, found.c_noise_scale) == (4, 4000, 0.25)
    assert (found.schedule, found.img_resolution, found.model_channels) == ("cosine", 16, 32)


def test_learned_variance_is_never_edm():
    shape = {"model_type": "DhariwalUNet", "img_resolution": 8, "img_channels": 1,
             "model_channels": 32, "channel_mult": (1,), "num_blocks": 1}  # fmt: skip
    for preconditioning in ("edm", "vp", "ve"):
        with pytest.raises(ValueError, match="learned_variance"):
            EdmConfiguration(**shape, learned_variance=True, preconditioning=preconditioning)
