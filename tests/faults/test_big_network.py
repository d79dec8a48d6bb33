"""A caller's network that is larger than the object store of the Ray that is started for it."""

import sys
from pathlib import Path

import pytest
import ray
import torch

from diffcert_ray.pool.on_ray.cluster import OBJECT_STORE_BYTES
from diffcert_ray.run.certify import certify
from tests.test_devices import Linear
from tests.worlds import counts_of, settings, small_world

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(400)]

BYTES = 223 * 2**20  # of CIFAR-10's network


class Big(Linear):
    """A small network with much beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rest", torch.zeros(BYTES // 4))


def test_a_network_larger_than_the_object_store_reaches_every_worker(tmp_path: Path) -> None:
    assert BYTES > 2 * OBJECT_STORE_BYTES
    for module in (__name__, Linear.__module__):
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    votes = {"n0": 4, "n": 12, "unit": 4, "radii": [0.0]}
    given = {"denoiser": Big(), "dataset": small_world(2)[1]}
    run = certify(settings(votes=votes, execution={"actors": 2}), tmp_path / "run", **given)
    assert run.outcome.complete
    local = certify(settings(votes=votes), tmp_path / "local", local=True, **given)
    assert counts_of(run) == counts_of(local)
