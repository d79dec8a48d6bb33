"""Published EDM checkpoints (.pkl): read exactly, and nothing in them runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffcert_ray.checkpoints.files import checkpoint_sha256, read_configuration
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.denoisers.noise_steps import step_levels
from diffcert_ray.errors import CheckpointError
from tests.edm_pickles import network_of, published_modules, write_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "edm"
NAMES = ("ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond")
TOLERANCE = 1e-4  # relative to the output's standard deviation


def golden(name):
    """Published settings, weights by name, and inputs and outputs of a golden file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    settings = json.loads((GOLDEN / f"{name}.json").read_text())
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("param.")}
    return settings, state, {key[3:]: v for key, v in tensors.items() if key.startswith("io.")}


def published_pickle(path, name, *, outer="EDMPrecond", protocol=4, trap=None, **inner):
    """Write a golden network as the published checkpoints are written."""
    settings, state, io = golden(name)
    source = f"open({str(trap)!r}, 'w')" if trap else ""
    interface = {key: settings.pop(key) for key in ("img_resolution", "img_channels", "label_dim")}
    model_type, channels = settings.pop("model_type"), interface["img_channels"]
    inner_keywords = {
        "img_resolution": interface["img_resolution"], "in_channels": channels,
        "out_channels": channels, "label_dim": interface["label_dim"], **settings, **inner,
    }  # fmt: skip
    outer_keywords = {**interface, "model_type": model_type, "use_fp16": False, **settings}
    network = network_of(
        state, outer, model_type,
        outer_keywords=outer_keywords, inner_keywords=inner_keywords, source=source,
    )  # fmt: skip
    write_checkpoint(path, network, source=source, protocol=protocol)
    return io


def deviation(found, expected):
    return ((found - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("name", NAMES)
def test_golden_network_in_a_published_pickle_gives_the_golden_output(tmp_path, name):
    path, trap = tmp_path / "network-snapshot.pkl", tmp_path / "sprung"
    io = published_pickle(path, name, trap=trap)
    denoiser = load_denoiser(path, sha256=checkpoint_sha256(path))
    assert deviation(denoiser(io["x"], io["sigma"], io.get("labels")), io["D"]) < TOLERANCE
    assert not trap.exists()
    assert trap.name in path.read_bytes().decode("latin-1")  # the code is there, and did not run


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_other_pickle_protocols_are_read_too(tmp_path, protocol):
    io = published_pickle(tmp_path / "a.pkl", "ddpmpp_cond", protocol=protocol)
    denoiser = load_denoiser(tmp_path / "a.pkl")
    assert deviation(denoiser(io["x"], io["sigma"], io["labels"]), io["D"]) < TOLERANCE


def test_format_is_told_by_content_not_by_name(tmp_path):
    published_pickle(tmp_path / "a.safetensors", "ddpmpp_uncond")
    assert load_denoiser(tmp_path / "a.safetensors").num_classes == 0


@pytest.mark.parametrize(
    ("outer", "kind", "s_range"),
    [("VPPrecond", "vp", (0.0012, 152.0)), ("VEPrecond", "ve", (0.02, 100.0))],
)
def test_baselines_have_their_own_preconditioning(tmp_path, outer, kind, s_range):
    published_pickle(tmp_path / "a.pkl", "ddpmpp_uncond", outer=outer)
    denoiser = load_denoiser(tmp_path / "a.pkl")
    assert denoiser.configuration.preconditioning == kind
    assert denoiser.s_range == s_range


def test_label_dropout_means_an_unconditional_mode(tmp_path):
    published_pickle(tmp_path / "with.pkl", "ddpmpp_cond", label_dropout=0.1)
    published_pickle(tmp_path / "without.pkl", "ddpmpp_cond")
    assert load_denoiser(tmp_path / "with.pkl").has_unconditional
    assert not load_denoiser(tmp_path / "without.pkl").has_unconditional


def test_config_replaces_what_the_checkpoint_says(tmp_path):
    published_pickle(tmp_path / "a.pkl", "ddpmpp_cond")
    denoiser = load_denoiser(tmp_path / "a.pkl", {"has_unconditional": True, "s_range": [0.1, 3]})
    assert denoiser.has_unconditional
    assert denoiser.s_range == (0.1, 3.0)
    with pytest.raises(CheckpointError, match="colour"):
        load_denoiser(tmp_path / "a.pkl", {"colour": "blue"})


def test_configuration_is_read_without_the_weights(tmp_path):
    published_pickle(tmp_path / "a.pkl", "adm_cond")
    found = read_configuration(tmp_path / "a.pkl")
    assert (found.image_shape, found.label_dim) == ((3, 16, 16), 10)


def iddpm_pickle(path, levels):
    """A network that predicts noise and variance, with the chain of its preconditioning."""
    torch.manual_seed(0)
    from diffcert_ray.denoisers.configuration import EdmConfiguration
    from diffcert_ray.denoisers.edm import EdmDenoiser

    settings = {
        "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [],
        "dropout": 0.0,
    }  # fmt: skip
    configuration = EdmConfiguration(
        model_type="DhariwalUNet", img_resolution=8, img_channels=1, learned_variance=True,
        preconditioning="epsilon", schedule="cosine", steps=1000, nearest_step=True, **settings,
    )  # fmt: skip
    twin = EdmDenoiser(configuration).eval().requires_grad_(False)
    for parameter in twin.parameters():
        parameter.data.normal_().div_(10)
    state = dict(twin.state_dict())
    state["u"] = torch.tensor([*levels[::-1], 0.0], dtype=torch.float32)
    around = {"img_resolution": 8, "img_channels": 1, "label_dim": 0, "model_type": "DhariwalUNet"}
    inside = {"img_resolution": 8, "in_channels": 1, "out_channels": 2, "label_dim": 0, **settings}
    network = network_of(
        state, "iDDPMPrecond", "DhariwalUNet", outer_keywords=around, inner_keywords=inside
    )
    write_checkpoint(path, network)
    return twin


def test_iddpm_preconditioning_uses_the_nearest_step_and_half_the_channels(tmp_path):
    levels = step_levels("cosine", 1000)
    twin = iddpm_pickle(tmp_path / "a.pkl", levels)
    denoiser = load_denoiser(tmp_path / "a.pkl")
    u = torch.linspace(-2, 2, 2 * 64).reshape(2, 1, 8, 8)
    s = torch.tensor([0.5, 3.0])
    step = torch.tensor([abs(levels - float(value)).argmin() for value in s]).float()
    one_hot = torch.zeros(2, 1)
    raw = twin.model(u / (s[:, None, None, None] ** 2 + 1).sqrt(), step, one_hot)[:, :1]
    torch.testing.assert_close(denoiser(u, s), u - s[:, None, None, None] * raw)


def test_iddpm_chain_must_be_the_published_one(tmp_path):
    iddpm_pickle(tmp_path / "a.pkl", step_levels("linear", 1000))
    with pytest.raises(CheckpointError, match="other noise steps"):
        load_denoiser(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer": "EDM2Precond"}, "'EDM2Precond': those read are EDMPrecond"),
        ({"channel_mult_emb": 8}, "channel_mult_emb is 8, not 4"),
        ({"encoder_type": "skip"}, "encoder_type"),
        ({"num_blocks": 3}, "missing.*belongs to another network"),
    ],
)
def test_network_that_is_not_known_is_refused(tmp_path, change, message):
    published_pickle(tmp_path / "a.pkl", "ddpmpp_cond", **change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(tmp_path / "a.pkl")


def test_positional_arguments_of_a_network_are_refused(tmp_path):
    _, state, _ = golden("ddpmpp_cond")
    network = network_of(state, "EDMPrecond", "SongUNet", outer_keywords={}, inner_keywords={})
    network.model._init_args = (16, 3, 3)
    write_checkpoint(tmp_path / "a.pkl", network)
    with pytest.raises(CheckpointError, match="positional arguments"):
        load_denoiser(tmp_path / "a.pkl")


def test_weights_of_half_precision_are_widened(tmp_path):
    settings, state, io = golden("ddpmpp_uncond")
    half = {name: tensor.half() for name, tensor in state.items()}
    model_type, channels = settings.pop("model_type"), settings.pop("img_channels")
    inside = {**settings, "in_channels": channels, "out_channels": channels}
    network = network_of(half, "EDMPrecond", model_type, outer_keywords={}, inner_keywords=inside)
    write_checkpoint(tmp_path / "a.pkl", network)
    denoiser = load_denoiser(tmp_path / "a.pkl")
    assert denoiser.model.map_layer0.weight.dtype == torch.float32
    assert deviation(denoiser(io["x"], io["sigma"]), io["D"]) < 0.01


def test_the_writer_writes_what_the_stock_loader_would_reconstruct(tmp_path):
    # The format is the published one: the stock way of loading calls its reconstruction.
    import pickle

    published_pickle(tmp_path / "a.pkl", "ddpmpp_uncond")
    with (
        published_modules(),
        (tmp_path / "a.pkl").open("rb") as file,
        pytest.raises(AssertionError, match="was reconstructed"),
    ):
        pickle.load(file)
