"""The same run on Ray: same votes as in one process, whatever the actors, items and kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from diffcert_ray import certify, open_run
from tests.worlds import counts_of, settings, small_world

pytestmark = [
    pytest.mark.ray,
    # Ray itself leaves sockets and files open at shutdown, and forks in processes with threads.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def world():
    return small_world()


@pytest.fixture(scope="module")
def clean(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "run"
    return certify(settings(), folder, local=True, denoiser=world[0], dataset=world[1])


@pytest.fixture(scope="module")
def local_ray():
    ray.init(
        address="local",
        num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "tables",
    [
        {"execution": {"actors": 1, "item_s": 5.0}},
        {"execution": {"actors": 2, "item_s": 0.05}},
        {"execution": {"actors": 2, "item_s": 0.05, "stages": "split"}, "sift": {"levels": 1}},
    ],
    ids=["one-actor-long-items", "two-actors-short-items", "two-actors-split-stages"],
)
def test_counts_on_ray_equal_those_of_one_process_bit_for_bit(
    tables, clean, world, local_ray, tmp_path
):
    run = certify(settings(**tables), tmp_path / "r", denoiser=world[0], dataset=world[1])
    assert counts_of(run) == counts_of(clean)
    columns = ["image_id", "predicted", "radius", "n_a", "n"]
    assert run.certificates()[columns].equals(clean.certificates()[columns])


DRIVER = """
import os, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
from diffcert_ray import certify
from tests.worlds import settings, small_world
world, data = small_world(images=12)
tables = settings(execution={"item_s": 0.05, "flush_s": 0.05, "actors": 2}, votes={"n": 200})
run = certify(tables, sys.argv[1], denoiser=world, dataset=data)
print("complete", run.outcome.complete)
"""


def wait_for(condition, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(400)  # two drivers that each start a Ray
def test_a_killed_driver_on_ray_continues_and_ends_with_identical_counts(tmp_path):
    world, data = small_world(images=12)
    tables = settings(votes={"n": 200})
    clean = certify(tables, tmp_path / "clean", local=True, denoiser=world, dataset=data)
    folder = tmp_path / "r"
    root = Path(__file__).parent.parent
    environment = dict(os.environ, PYTHONPATH=str(root))
    command = [sys.executable, "-c", DRIVER, str(folder)]
    driver = subprocess.Popen(command, env=environment, cwd=root)
    parts = folder / "units"
    try:
        wait_for(lambda: parts.is_dir() and len(list(parts.glob("part-*"))) >= 2, 150)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait(30)
    before = len(open_run(folder).units())
    assert 0 < before < len(clean.units())
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=150, check=False
    )
    assert "complete True" in done.stdout, done.stderr
    assert counts_of(open_run(folder)) == counts_of(clean)
