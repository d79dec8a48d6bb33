"""State dicts, remote addresses and the local cache: one checkpoint, whatever it comes as."""

import hashlib
import json
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from diffcert_ray.checkpoints import cache as checkpoint_cache
from diffcert_ray.checkpoints.files import (
    checkpoint_format,
    checkpoint_path,
    checkpoint_sha256,
    read_configuration,
)
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.checkpoints.network_shape import PUBLISHED, edm_shape, published_as
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "edm"
NAMES = ("ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond")
TOLERANCE = 1e-4
EDM_NAMES = [name for name in PUBLISHED if name.startswith("edm-")]


def golden(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("param.")}
    return state, {key[3:]: v for key, v in tensors.items() if key.startswith("io.")}


def deviation(denoiser, io):
    found = denoiser(io["x"], io["sigma"], io.get("labels"))
    return ((found - io["D"]).abs().max() / io["D"].std()).item()


def state_dict_file(folder, name, *, beside=True, wrap=lambda state: state, **options):
    """A golden network as NAME.pt, its configuration beside it."""
    state, io = golden(name)
    path = folder / f"{name}.pt"
    torch.save(wrap(state), path, **options)
    if beside:
        path.with_suffix(".json").write_text((GOLDEN / f"{name}.json").read_text())
    return path, io


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_with_json_beside_gives_the_golden_output(tmp_path, name):
    path, io = state_dict_file(tmp_path, name)
    assert deviation(load_denoiser(path), io) < TOLERANCE


WRAPPED = {
    "training state": lambda state: {"ema": state, "step": 3},
    "data parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "network alone": lambda state: {key[6:]: value for key, value in state.items()},
    "nested": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize("what", WRAPPED)
def test_state_dict_is_found_where_training_programs_put_it(tmp_path, what):
    path, io = state_dict_file(tmp_path, "ddpmpp_cond", wrap=WRAPPED[what])
    assert deviation(load_denoiser(path), io) < TOLERANCE


def test_torchs_old_file_format_is_read_too(tmp_path):
    path, io = state_dict_file(tmp_path, "ddpmpp_cond", _use_new_zipfile_serialization=False)
    assert checkpoint_format(path) == "state dict"
    assert deviation(load_denoiser(path), io) < TOLERANCE


def test_config_takes_the_place_of_the_json_beside(tmp_path):
    path, io = state_dict_file(tmp_path, "ddpmpp_cond", beside=False)
    config = json.loads((GOLDEN / "ddpmpp_cond.json").read_text())
    assert deviation(load_denoiser(path, config), io) < TOLERANCE
    # What the tensors tell need not be said; what they cannot must be.
    assert deviation(load_denoiser(path, {"preconditioning": "edm"}), io) < TOLERANCE
    with pytest.raises(CheckpointError, match=r'no published *checkpoint.*"label_dim": 10.*null'):
        load_denoiser(path)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_tell_the_whole_architecture(name):
    state, _ = golden(name)
    stated = EdmConfiguration(**json.loads((GOLDEN / f"{name}.json").read_text()))
    assert EdmConfiguration(**edm_shape(state)) == stated


@pytest.mark.parametrize("name", EDM_NAMES)
def test_published_edm_network_is_recognised_from_its_tensors(name):
    configuration = EdmConfiguration(**PUBLISHED[name])
    with torch.device("meta"):
        state = EdmDenoiser(configuration).state_dict()
    assert published_as(edm_shape(state), openai=False) == (name, PUBLISHED[name])


def test_code_in_a_state_dict_is_refused_by_name(tmp_path):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (eval, (f"open({str(trap)!r}, 'w').close()",))

    for new in (True, False):
        path = tmp_path / "a.pt"
        torch.save({"model.x": Trap()}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match=r"asks for '[\w.]*eval', which is not allowed"):
            load_denoiser(path)
        assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds a dict, no state dict"),
        ([1], "holds a list, no state dict"),
        ({"a": torch.zeros(1), "arch": "x"}, r"arch \(str\) are no tensors"),
        ({"a": torch.zeros(1)}, "not those of an EDM network"),
    ],
)
def test_what_is_no_state_dict_of_a_known_network_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89HDF\r\n", b"PK\x03\x04 torn"])
def test_file_in_no_known_format_is_refused(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no known format|refused by torch"):
        load_denoiser(tmp_path / "a.bin")


def test_hash_covers_the_json_that_describes_a_state_dict(tmp_path):
    path, _ = state_dict_file(tmp_path, "ddpmpp_cond")
    both = path.read_bytes() + path.with_suffix(".json").read_bytes()
    assert checkpoint_sha256(path) == hashlib.sha256(both).hexdigest()
    path.with_suffix(".json").unlink()
    assert checkpoint_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(checkpoint_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    yield tmp_path / "cache"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def downloads(monkeypatch):
    """Names of what is downloaded, in order."""
    seen = []
    real = checkpoint_cache._download

    def counted(filesystem, path, local):
        seen.append(local.name)
        real(filesystem, path, local)

    monkeypatch.setattr(checkpoint_cache, "_download", counted)
    return seen


def upload(path, address):
    with fsspec.open(address, "wb") as file:
        file.write(path.read_bytes())


def test_remote_checkpoint_is_the_local_one(tmp_path, cache, downloads):
    path, io = state_dict_file(tmp_path, "ddpmpp_cond")
    upload(path, "memory://weights/m.pt")
    upload(path.with_suffix(".json"), "memory://weights/m.json")
    assert deviation(load_denoiser("memory://weights/m.pt"), io) < TOLERANCE
    assert checkpoint_sha256("memory://weights/m.pt") == checkpoint_sha256(path)
    assert read_configuration("memory://weights/m.pt").label_dim == 10
    assert sorted(downloads) == ["checkpoint", "checkpoint.json"]  # once, not for each question


def test_file_address_is_the_file_itself(tmp_path, cache):
    path, _ = state_dict_file(tmp_path, "ddpmpp_cond")
    assert checkpoint_path(path.resolve().as_uri()) == path
    assert not cache.exists()


def test_many_at_once_download_once(tmp_path, cache, downloads):
    path, _ = state_dict_file(tmp_path, "ddpmpp_uncond", beside=False)
    upload(path, "memory://weights/m.pt")
    start, found, failed = threading.Barrier(8), [], []

    def load():
        try:
            start.wait(timeout=30)
            found.append(checkpoint_path("memory://weights/m.pt"))
        except (OSError, ValueError) as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failed == []
    assert len(found) == 8
    assert len(set(found)) == 1
    assert downloads == ["checkpoint"]
    assert found[0].read_bytes() == path.read_bytes()
    assert not list(cache.glob(".part-*"))


def test_known_hash_needs_no_look_at_the_address(tmp_path, cache, downloads):
    path, _ = state_dict_file(tmp_path, "ddpmpp_uncond")
    upload(path, "memory://weights/m.pt")
    upload(path.with_suffix(".json"), "memory://weights/m.json")
    sha256 = checkpoint_sha256("memory://weights/m.pt")
    MemoryFileSystem.store.clear()
    load_denoiser("memory://weights/m.pt", sha256=sha256)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_denoiser("memory://weights/m.pt")


def test_file_that_changes_at_its_address_is_another_checkpoint(tmp_path, cache):
    first, _ = state_dict_file(tmp_path, "ddpmpp_cond")
    second, _ = state_dict_file(tmp_path, "ddpmpp_uncond")
    upload(first, "memory://weights/m.pt")
    before = checkpoint_path("memory://weights/m.pt")
    upload(second, "memory://weights/m.pt")
    after = checkpoint_path("memory://weights/m.pt")
    assert before != after
    assert (before.read_bytes(), after.read_bytes()) == (first.read_bytes(), second.read_bytes())


def test_torn_download_leaves_nothing_and_may_be_tried_again(tmp_path, cache, monkeypatch):
    path, _ = state_dict_file(tmp_path, "ddpmpp_uncond", beside=False)
    upload(path, "memory://weights/m.pt")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", lambda self, path, **_: {
            "name": path, "size": 10**9, "type": "file",
        })  # fmt: skip
        with pytest.raises(CheckpointError, match=r"1,000,000,000 bytes but [\d,]+ came"):
            checkpoint_path("memory://weights/m.pt")
    assert not list(cache.glob(".part-*"))
    assert not list(cache.glob("content/*"))
    assert checkpoint_path("memory://weights/m.pt").read_bytes() == path.read_bytes()


def test_damaged_copy_is_noticed_where_the_hash_is_known(tmp_path, cache):
    path, _ = state_dict_file(tmp_path, "ddpmpp_uncond", beside=False)
    upload(path, "memory://weights/m.pt")
    sha256 = checkpoint_sha256("memory://weights/m.pt")
    copy = checkpoint_path("memory://weights/m.pt")
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match="was expected"):
        load_denoiser("memory://weights/m.pt", sha256=sha256)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://weights/none.pt", "does not exist"),
        ("gopher://host/m.pt", "cannot be opened.*gopher"),
    ],
)
def test_address_with_nothing_behind_it_is_refused(cache, address, message):
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(address)
