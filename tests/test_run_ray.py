"""The same run on Ray: same votes as in one process, whatever the actors and items."""

import pytest
import ray

from diffcert_ray import certify
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
