"""A node whose network goes away without a word: no socket closes, nobody says good-bye."""

import time
from collections import Counter
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from diffcert_ray.pool.local import LocalPool
from diffcert_ray.pool.on_ray.actors import RayPool
from tests.network_namespace import Link, linked_namespace, why_not
from tests.ray_cluster import NODE, ray_cluster
from tests.scripted_workers import Run, Script, votes
from tests.worlds import world_items, world_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.timeout(400),
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
    with ray_cluster(link.here) as head:
        head.add_node(num_cpus=1, node_ip_address=link.here, **NODE)
        link.start_node(head.address.rpartition(":")[2], tmp_path / "raylet")
        yield head


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
    script = Script(tmp_path, item_s=0.4, inner=world_spec(ITEMS))
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(ITEMS), limit_s=200.0)
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
    assert votes(results) == votes(
        Run(LocalPool(world_spec(ITEMS)), world_items(ITEMS)).to_the_end()
    )
    assert 1 <= state.requeued <= 2  # what was before that worker, and nothing else
    assert (state.live, state.pending) == (1, 1)  # its place is asked for again
    begun = script.evaluated()
    assert set(begun) == set(range(ITEMS))
    # Its last calls, finished there in vain, were evaluated again; nobody is to blame for them.
    assert ITEMS <= begun.total() <= ITEMS + state.requeued
    assert max(Counter(begun).values()) <= 2
    assert run.given_up == []
    assert f"lost actor={name} address={link.there} node={cut_off[:8]}" in caplog.text
