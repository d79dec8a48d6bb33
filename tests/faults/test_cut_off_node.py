"""A node whose network goes away without a word: no socket closes, nobody says good-bye."""

import time
from collections import Counter
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from diffcert_ray.config.loading import load_config
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.pool.local import LocalPool
from diffcert_ray.pool.ray_pool import RayPool
from diffcert_ray.votes.units import Item, Part, Unit
from tests.network_namespace import Link, linked_namespace, why_not
from tests.scripted_workers import Run, Script, votes
from tests.worlds import settings, small_world

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.timeout(400),
    # Ray's own: a hint about a default that will change, and sockets and files of ended processes.
    pytest.mark.filterwarnings("ignore:Tip.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ITEMS = 60


@pytest.fixture
def link():
    if reason := why_not():
        pytest.skip(reason)
    with linked_namespace() as found:
        yield found


@pytest.fixture
def cluster(link: Link, tmp_path: Path):
    """A head without CPUs, a node here, and a node behind the link; gives the last one's id."""
    head = Cluster(
        initialize_head=True,
        head_node_args={
            "node_ip_address": link.here,
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_timeout_ms": 6000,  # a busy machine's raylet is not dead
                "health_check_failure_threshold": 4,
            },
        },
    )
    try:
        ray.init(address=head.address, log_to_driver=False, _node_ip_address=link.here)
        head.add_node(num_cpus=1, node_ip_address=link.here, object_store_memory=100 * 2**20)
        link.start_node(head.address.rpartition(":")[2], tmp_path / "raylet")
        yield head
    finally:
        ray.shutdown()
        head.shutdown()


def world_spec() -> WorkerSpec:
    world, dataset = small_world(images=ITEMS)
    config = load_config(settings())
    return WorkerSpec(config, weights_of(config, world), denoiser=world, dataset=dataset)


def world_items() -> list[Item]:
    units = [Unit(0.25, image, "select", 0, 20) for image in range(100, 100 + ITEMS)]
    return [Item(n, 0.25, (Part(unit, 0, 20),)) for n, unit in enumerate(units)]


def node_at(address: str) -> str:
    [found] = [
        n["NodeID"] for n in ray.nodes() if n["NodeManagerAddress"] == address and n["Alive"]
    ]
    return str(found)


def test_node_cut_off_silently_costs_only_its_items(
    cluster: Cluster, link: Link, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "diffcert_ray")
    cut_off = node_at(link.there)
    script = Script(tmp_path, item_s=0.4, inner=world_spec())
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(), limit_s=200.0)
        run.until(lambda: pool.state().live == 2)
        there = next(r.getMessage() for r in caplog.records if f"node={cut_off[:8]}" in r.message)
        name = there.partition("actor=")[2].split()[0]
        run.until(lambda: sum(r.worker == name for r in run.results.values()) >= 3)
        link.cut()
        began = time.monotonic()
        run.until(lambda: f"lost actor={name}" in caplog.text)
        noticed_s = time.monotonic() - began
        results = run.to_the_end()
        state = pool.state()
    finally:
        pool.close()
    assert noticed_s < 60.0, noticed_s
    assert votes(results) == votes(Run(LocalPool(world_spec()), world_items()).to_the_end())
    assert 1 <= state.requeued <= 2  # what was before that worker, and nothing else
    assert (state.live, state.pending) == (1, 1)  # its place is asked for again
    begun = script.evaluated()
    assert set(begun) == set(range(ITEMS))
    # Its last calls, finished there in vain, were evaluated again; nobody is to blame for them.
    assert ITEMS <= begun.total() <= ITEMS + state.requeued
    assert max(Counter(begun).values()) <= 2
    assert run.given_up == []
    assert f"lost actor={name} address={link.there} node={cut_off[:8]}" in caplog.text
