"""Settings of every test process, and what many tests start from: worlds, clean runs, servers."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # At Ray's own niceness of 15 a busy machine starves its workers, and tests time out.
        "RAY_worker_niceness": "0",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from diffcert_ray.datasets import Dataset
from diffcert_ray.run.certify import certify
from diffcert_ray.run.stored import Run, open_run
from diffcert_ray.storage import object_prefix
from diffcert_ray.tools.exact_worlds import GaussianClasses
from tests.s3_server import BUCKET, s3_server
from tests.worlds import settings, small_world

torch.set_num_threads(1)

IGNORED = {
    # Ray's own: a hint about a default that will change, and sockets and files of ended processes.
    "ray": (
        "ignore:Tip.*:FutureWarning",
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
    # Newer Pythons warn of forks in processes with threads; the children here use none of them.
    "forks": ("ignore:.*fork.*:DeprecationWarning",),
}
"""Warnings that tests with a marker may cause."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork go first: a process that has used Ray has threads, and its forks may hang."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)
    for item in items:
        for marker, warnings in IGNORED.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.filterwarnings(*warnings))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Handlers that a command adds write to a stream that is closed after its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


# --- runs


@pytest.fixture(scope="session")
def world() -> tuple[GaussianClasses, Dataset]:
    """A denoiser and its images; nobody changes them."""
    return small_world()


@pytest.fixture(scope="session")
def clean(
    world: tuple[GaussianClasses, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """An undisturbed run of that world, the reference of many tests; nobody writes into it."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    run = certify(settings(), folder, local=True, denoiser=world[0], dataset=world[1])
    before = _files(folder)
    yield run
    assert _files(folder) == before, "a test wrote into the run that all share: it needs a copy"


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(clean: Run, tmp_path: Path) -> Run:
    """A copy of the clean run in ``tmp_path / "run"``, for a test that changes or continues it."""
    return open_run(shutil.copytree(clean.address, tmp_path / "run"))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Where the workers of ``tests.noting_pools`` note what they evaluate."""
    return tmp_path / "evaluations"


# --- what runs talk to


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of an S3 server with an empty bucket."""
    with s3_server() as address:
        yield address


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """A test's own place in the bucket."""
    return f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries to reach an object store, seconds, which are not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(object_prefix, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs in which the runs of a module find their workers."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
