"""Checkpoints on an object store (moto's real HTTP server), reached with storage options."""

import io
import threading
from collections.abc import Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from diffcert_ray import certify, load_dataset, load_denoiser
from diffcert_ray.checkpoints.cache import CACHE_VARIABLE
from diffcert_ray.checkpoints.files import (
    checkpoint_path,
    checkpoint_sha256,
    read_configuration,
    shipped_models,
)
from diffcert_ray.checkpoints.image_classifier import shipped_classifiers
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import CheckpointError
from tests.s3_proxy import Faults, proxied
from tests.s3_server import BUCKET, s3_server
from tests.test_datasets_files import png
from tests.worlds import counts_of

MODEL, CLASSIFIER, IMAGES = (
    "models/mine.safetensors",
    "models/net.safetensors",
    "images/test.parquet",
)
FIRST = 3


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that holds a denoiser, a classifier and some digits."""
    with s3_server() as address:
        store = fsspec.filesystem("s3", endpoint_url=address, skip_instance_cache=True)
        store.pipe_file(f"{BUCKET}/{MODEL}", shipped_models()["digits"].read_bytes())
        store.pipe_file(f"{BUCKET}/{CLASSIFIER}", shipped_classifiers()["digits"].read_bytes())
        store.pipe_file(f"{BUCKET}/{IMAGES}", digits_as_parquet())
        yield address


def digits_as_parquet() -> bytes:
    """The first digits; their 17 grey values are multiples of 1/16, as bytes nearly."""
    digits = load_dataset({"name": "digits", "first": FIRST})
    pixels = [np.rint(digits.image(i) * 255).astype(np.uint8)[0] for i in digits.ids]
    table = pa.table({"image": [png(p) for p in pixels], "label": digits.labels})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture
def server(endpoint, tmp_path, monkeypatch) -> Iterator[tuple[str, Faults]]:
    """Its address through a proxy that notes what is fetched, and an empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    faults = Faults()
    with proxied(endpoint, faults) as address:
        yield address, faults


def fetched(faults: Faults, key: str) -> int:
    """Bytes of an object that were sent."""
    return sum(size for path, size in faults.sent if key in path)


def toml(folder, address: str, text: str = ""):
    """What a user edits: addresses, and how to reach them."""
    path = folder / "mine.toml"
    path.write_text(f"""
        [dataset]
        name = "parquet"
        path = "s3://{BUCKET}/images"
        num_classes = 10
        image_shape = [1, 8, 8]
        [model]
        checkpoint = "s3://{BUCKET}/{MODEL}"
        [votes]
        n0 = 2
        n = 4
        unit = 4
        radii = [0.0]
        [noise_levels]
        levels = 6
        [numerics]
        batch = 16
        [execution.storage_options]
        endpoint_url = "{address}"
        {text}""")
    return path


def test_a_checkpoint_is_reached_with_storage_options_and_fetched_once(server):
    address, faults = server
    source, options = f"s3://{BUCKET}/{MODEL}", {"endpoint_url": address}
    size = shipped_models()["digits"].stat().st_size
    assert checkpoint_sha256(source, options) == checkpoint_sha256("digits")
    assert read_configuration(source, None, options) == read_configuration("digits")
    loaded, expected = load_denoiser(source, storage_options=options), load_denoiser("digits")
    assert all(map(torch.equal, loaded.parameters(), expected.parameters()))
    assert fetched(faults, MODEL) == size


def test_many_workers_of_a_machine_fetch_it_once(server, tmp_path):
    address, faults = server
    config = load_config(toml(tmp_path, address))
    weights, found = {"denoiser": checkpoint_sha256("digits")}, []
    start = threading.Barrier(2)

    def load():
        start.wait(timeout=30)
        options = config.execution.storage_options
        found.append(checkpoint_path(config.model.checkpoint, weights["denoiser"], options))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2
    assert len(set(found)) == 1
    assert fetched(faults, MODEL) == shipped_models()["digits"].stat().st_size


def test_a_worker_of_another_machine_fetches_for_itself(server, tmp_path, monkeypatch):
    address, faults = server
    size = shipped_models()["digits"].stat().st_size
    config = load_config(toml(tmp_path, address))
    weights = weights_of(config)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another machine"))
    for number in range(2):
        WorkerSpec(config, weights).load(f"worker {number}")
        assert fetched(faults, MODEL) == 2 * size
    direct = load_config(config, [
        "method.name=classify", f"classifier.checkpoint=s3://{BUCKET}/{CLASSIFIER}",
        "classifier.architecture=digits-convnet",
    ])  # fmt: skip
    weights = weights_of(direct)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a third"))
    WorkerSpec(direct, weights).load("worker")
    assert fetched(faults, CLASSIFIER) == 2 * shipped_classifiers()["digits"].stat().st_size


def test_a_toml_with_dataset_and_checkpoint_on_the_store_is_certified(server, tmp_path):
    address, faults = server
    path = toml(tmp_path, address)
    run = certify(path, tmp_path / "run", local=True)
    assert run.outcome.complete
    assert fetched(faults, MODEL) == shipped_models()["digits"].stat().st_size
    assert fetched(faults, IMAGES) > 0
    options = load_config(path).execution.storage_options
    images = load_dataset(load_config(path).dataset, options)
    local = certify(
        load_config(path, ["model.checkpoint=digits"]), tmp_path / "local", local=True,
        dataset=images,
    )  # fmt: skip
    assert counts_of(run) == counts_of(local)
    assert run.document.votes_id == local.document.votes_id  # where a file is changes no vote
    assert address not in (tmp_path / "run" / "run.toml").read_text()


@pytest.mark.parametrize("method", ["classify", "denoise-classify"])
def test_a_classifier_on_the_store_is_fetched_once(server, tmp_path, method):
    address, faults = server
    path = toml(tmp_path, address, f"""
        [method]
        name = "{method}"
        [classifier]
        checkpoint = "s3://{BUCKET}/{CLASSIFIER}"
        architecture = "digits-convnet"
    """)  # fmt: skip
    run = certify(path, tmp_path / "run", local=True)
    assert run.outcome.complete
    assert fetched(faults, CLASSIFIER) == shipped_classifiers()["digits"].stat().st_size
    model = shipped_models()["digits"].stat().st_size if method == "denoise-classify" else 0
    assert fetched(faults, MODEL) == model


def test_a_second_network_on_the_store_is_reached_too(server, tmp_path):
    address, faults = server
    path = toml(tmp_path, address)
    changes = ["dataset.name=digits", "dataset.first=2", "model.checkpoint=digits"]
    changes.append(f"model.unconditional=s3://{BUCKET}/{MODEL}")
    tables = load_config(path, changes).model_dump(exclude_unset=True)
    for key in ("path", "num_classes", "image_shape"):
        del tables["dataset"][key]
    assert certify(tables, tmp_path / "run", local=True).outcome.complete
    assert fetched(faults, MODEL) > 0


def test_a_checkpoint_on_the_store_is_converted(server, tmp_path):
    address, _ = server
    source, out = f"s3://{BUCKET}/{MODEL}", tmp_path / "mine.safetensors"
    arguments = ["convert", source, str(out), "--storage-options", f"endpoint_url={address}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    loaded, expected = load_denoiser(out), load_denoiser("digits")
    assert all(map(torch.equal, loaded.parameters(), expected.parameters()))


def test_what_is_not_there_or_cannot_be_reached_is_refused(server, tmp_path, monkeypatch):
    address, faults = server
    config = load_config(toml(tmp_path, address), [f"model.checkpoint=s3://{BUCKET}/none.pt"])
    with pytest.raises(CheckpointError, match=r"none\.pt' does not exist"):
        weights_of(config)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    faults.plan.update(GET=["503"] * 20, HEAD=["503"] * 20)
    options = {"endpoint_url": address, "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(CheckpointError, match=r"cannot be reached.*storage_options"):
        checkpoint_sha256(f"s3://{BUCKET}/{MODEL}", options)
