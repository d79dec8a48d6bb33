"""`diffcert convert`: any checkpoint as safetensors, with the same output and a printed account."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffcert_ray.checkpoints.conversion import convert
from diffcert_ray.checkpoints.files import checkpoint_sha256, read_metadata
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.commands.main import app
from diffcert_ray.errors import CheckpointError
from tests.test_pickle_edm import NAMES, TOLERANCE, deviation, published_pickle

GOLDEN = Path(__file__).parent / "golden" / "edm"


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("name", NAMES)
def test_golden_network_through_convert_gives_the_golden_output(tmp_path, name):
    io = published_pickle(tmp_path / "a.pkl", name)
    out = tmp_path / "a.safetensors"
    done = run(tmp_path / "a.pkl", out)
    assert done.exit_code == 0, done.output
    denoiser = load_denoiser(out)
    assert deviation(denoiser(io["x"], io["sigma"], io.get("labels")), io["D"]) < TOLERANCE
    before = load_denoiser(tmp_path / "a.pkl")
    assert denoiser.configuration == before.configuration
    assert all(torch.equal(a, b) for a, b in zip(*map(weights, (before, denoiser)), strict=True))


def weights(denoiser):
    return list(denoiser.state_dict().values())


def test_what_was_found_is_printed(tmp_path):
    published_pickle(tmp_path / "a.pkl", "ddpmpp_cond")
    done = run(tmp_path / "a.pkl", tmp_path / "a.safetensors")
    count = sum(p.numel() for p in load_denoiser(tmp_path / "a.pkl").parameters())
    assert "EDM pickle" in done.output
    assert "SongUNet, edm preconditioning" in done.output
    assert "3x16x16" in done.output
    assert "classes     10" in done.output
    assert f"parameters  {count:,}" in done.output
    assert checkpoint_sha256(tmp_path / "a.pkl") in done.output
    assert checkpoint_sha256(tmp_path / "a.safetensors") in done.output
    recipe = read_metadata(tmp_path / "a.safetensors")["recipe"]["converted_from"]
    assert recipe["sha256"] == checkpoint_sha256(tmp_path / "a.pkl")


def test_state_dict_is_converted_with_a_configuration_given(tmp_path):
    tensors = load_file(GOLDEN / "adm_cond.safetensors")
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("param.")}
    torch.save(state, tmp_path / "a.pt")
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"preconditioning": "vp"}))
    done = run(tmp_path / "a.pt", tmp_path / "a.safetensors", "--config", config)
    assert "DhariwalUNet, vp preconditioning" in done.output
    assert load_denoiser(tmp_path / "a.safetensors").configuration.preconditioning == "vp"


def test_output_is_never_overwritten(tmp_path):
    published_pickle(tmp_path / "a.pkl", "ddpmpp_uncond")
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_text() == "mine"


def test_diffusers_folder_is_left_as_it_is(tmp_path):
    with pytest.raises(CheckpointError, match="use it as it is"):
        convert(tmp_path, tmp_path / "a.safetensors")


def test_hostile_checkpoint_leaves_nothing(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    with pytest.raises(CheckpointError, match=r"os\.system"):
        convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]
