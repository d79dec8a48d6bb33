"""Checkpoints: read exactly or not at all, and nothing in them ever runs."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcert_ray.checkpoints.files import (
    checkpoint_path,
    checkpoint_sha256,
    read_configuration,
    read_metadata,
)
from diffcert_ray.checkpoints.load import load_denoiser, save_denoiser
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.errors import CheckpointError

SMALL = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 8,
    "channel_mult": (1, 2), "num_blocks": 1, "has_unconditional": True,
}  # fmt: skip


def denoiser_with_weights(**settings):
    """A small denoiser whose weights are all different from fresh ones."""
    denoiser = EdmDenoiser(EdmConfiguration(**{"model_type": "SongUNet", **SMALL, **settings}))
    generator = torch.Generator().manual_seed(3)
    for parameter in denoiser.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return denoiser.eval().requires_grad_(False)


def evaluated(denoiser):
    u = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    return denoiser(u, torch.tensor([0.1, 0.5, 2.0]), torch.tensor([0, 9, -1]))


def rewritten(source, target, change):
    """A copy of a checkpoint with `change` applied to its tensors and to what it says of itself."""
    tensors, metadata = load_file(source), read_metadata(str(source))
    change(tensors, metadata)
    save_file(tensors, target, metadata={"diffcert": json.dumps(metadata)})
    return str(target)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_denoiser(path, denoiser_with_weights(), {"steps": 7})
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": (1, 3, 3, 1)},
        {"model_type": "DhariwalUNet", "augment_dim": 4},
        {"preconditioning": "vp", "s_range": (0.1, 5.0)},
    ],
    ids=["ddpmpp", "ncsnpp", "adm", "vp"],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, settings):
    before = denoiser_with_weights(**settings)
    save_denoiser(tmp_path / "it.safetensors", before, {})
    after = load_denoiser(str(tmp_path / "it.safetensors"))
    assert torch.equal(evaluated(before), evaluated(after))
    assert after.configuration == before.configuration
    assert not after.training
    assert not any(parameter.requires_grad for parameter in after.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["it.safetensors"]


def test_shipped_digits_model_loads_by_name():
    denoiser = load_denoiser("digits", sha256=checkpoint_sha256("digits"))
    assert denoiser.image_shape == (1, 8, 8)
    assert denoiser.num_classes == 10
    assert denoiser.has_unconditional
    assert torch.isfinite(evaluated(denoiser)).all()


def test_loading_leaves_torchs_generator_alone(saved):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_denoiser(str(saved))
    assert torch.equal(torch.rand(3), expected)


def test_low_precision_is_an_option_of_loading(saved):
    low = load_denoiser(str(saved), dtype="bfloat16")
    assert low.model.map_layer0.weight.dtype == torch.bfloat16
    assert evaluated(low).dtype == torch.float32


def test_sha256_is_that_of_the_file(saved):
    assert checkpoint_sha256(str(saved)) == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_wrong_sha256_stops_the_load(saved):
    load_denoiser(str(saved), sha256=checkpoint_sha256(str(saved)).upper())
    with pytest.raises(CheckpointError, match="another or a damaged file"):
        load_denoiser(str(saved), sha256="0" * 64)


def test_configuration_may_stand_beside_the_weights_and_is_then_hashed_too(saved, tmp_path):
    weights, beside = tmp_path / "bare.safetensors", tmp_path / "bare.json"
    save_file(load_file(saved), weights)
    with pytest.raises(CheckpointError, match=r"no configuration.*bare\.json"):
        load_denoiser(str(weights))
    beside.write_text(json.dumps(read_metadata(str(saved))))
    assert torch.equal(evaluated(load_denoiser(str(weights))), evaluated(load_denoiser(str(saved))))
    both = weights.read_bytes() + beside.read_bytes()
    assert checkpoint_sha256(str(weights)) == hashlib.sha256(both).hexdigest()


def test_recipe_and_configuration_are_read_without_torch(saved):
    assert read_metadata(str(saved))["recipe"] == {"steps": 7}
    assert read_configuration(str(saved)).image_shape == (1, 8, 8)
    code = (
        "import sys; from diffcert_ray.checkpoints.files import *; "
        f"read_configuration({str(saved)!r}); checkpoint_sha256({str(saved)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("nowhere/model.safetensors", "does not exist.*shipped models: known are digits"),
    ],
)
def test_missing_checkpoint_is_refused(source, message):
    for read in (checkpoint_path, checkpoint_sha256, load_denoiser):
        with pytest.raises(CheckpointError, match=message):
            read(source)


def _drop(tensors, metadata):
    del tensors["model.map_layer0.weight"]


def _add(tensors, metadata):
    tensors["model.surplus"] = torch.zeros(1)


def _reshape(tensors, metadata):
    name = "model.map_layer0.weight"
    tensors[name] = tensors[name][:-1].clone()


def _filter(tensors, metadata):
    name = next(name for name in tensors if name.endswith("resample_filter"))
    tensors[name] = tensors[name] * 2


def _other_network(tensors, metadata):
    metadata["configuration"]["model_channels"] = 16


def _unknown_setting(tensors, metadata):
    metadata["configuration"]["colour"] = "blue"


def _later_format(tensors, metadata):
    metadata["format"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"1 missing \(model.map_layer0.weight\)"),
        (_add, r"1 unexpected \(model.surplus\)"),
        (_reshape, r"1 of another shape \(model.map_layer0.weight \[31, 8\] instead of \[32, 8\]"),
        (_filter, "differs from the configured resample_filter"),
        (_other_network, "of another shape .*belongs to another network"),
        (_unknown_setting, "colour"),
        (_later_format, "format 2: this version reads format 1"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused(saved, tmp_path, change, message):
    path = rewritten(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path)


def test_torn_file_is_refused(saved, tmp_path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        load_denoiser(str(torn))


class _Trap:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["trap.pkl", "trap.pt", "trap.safetensors"])
def test_pickle_is_never_run_whatever_its_name(tmp_path, name):
    path, sprung = tmp_path / name, tmp_path / "sprung"
    path.write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(CheckpointError, match=r"asks for '_?io\.open', which is not allowed"):
        load_denoiser(str(path))
    assert not sprung.exists()


def test_save_refuses_another_suffix_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        save_denoiser(tmp_path / "model.pt", denoiser_with_weights(), {})
    assert list(tmp_path.iterdir()) == []


def test_shipped_model_may_be_copied_and_read_by_path(tmp_path):
    copied = shutil.copy(checkpoint_path("digits"), tmp_path / "mine.safetensors")
    assert checkpoint_sha256(str(copied)) == checkpoint_sha256("digits")
    assert torch.equal(evaluated(load_denoiser(str(copied))), evaluated(load_denoiser("digits")))
