"""The pool on a cluster of several nodes that are killed, added and drained."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.local import LocalPool
from diffcert_ray.pool.on_ray.actors import RayPool
from tests.ray_cluster import NODE, ray_cluster
from tests.scripted_workers import Run, Script, plain_items, votes
from tests.worlds import world_items, world_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),  # nodes and actors start slowly on a busy machine
]

AddNode = Callable[..., Any]


IMAGES = 150


@pytest.fixture(scope="module")
def undisturbed() -> list[object]:
    """Votes of all items in one process."""
    return votes(Run(LocalPool(world_spec(IMAGES)), world_items(IMAGES, votes=4)).to_the_end())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs; nodes that die are noticed within seconds."""
    with ray_cluster() as head:
        yield head


@pytest.fixture
def add_node(cluster: Cluster) -> Iterator[AddNode]:
    """Adds a node, of one CPU by default; those that are left at the end are removed."""
    added = []

    def add(num_cpus: int = 1, num_gpus: int = 0) -> Any:
        added.append(cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus, **NODE))
        return added[-1]

    yield add
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def drain(cluster: Cluster, node_id: str) -> None:
    """What a spot watcher does when the notice comes."""
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot notice",
        0,
    )
    assert accepted, why


def test_killed_node_costs_only_its_items(
    cluster: Cluster,
    add_node: AddNode,
    tmp_path: Path,
    undisturbed: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = {node.node_id: node for node in (add_node(), add_node())}
    script = Script(tmp_path, "hangs", inner=world_spec(IMAGES))
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(6, votes=4))
        run.until(script.hanging)
        lost = script.hanging()[1]
        cluster.remove_node(nodes[lost], allow_graceful=False)
        results = run.to_the_end()
        state = pool.state()
    finally:
        pool.close()
    assert votes(results) == undisturbed[:6]
    again = script.again(6)
    assert again[3] == 1
    assert again.total() <= state.requeued <= 2
    assert (state.live, state.pending) == (1, 1)  # its place is asked for again
    assert "1 worker waits for a place: each asks for 1 CPU" in state.note
    assert f"node={lost[:8]} requeued={state.requeued} error=" in caplog.text


@pytest.mark.slow
@pytest.mark.fault
def test_node_added_during_a_run_gets_work(
    cluster: Cluster,
    add_node: AddNode,
    tmp_path: Path,
    undisturbed: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "diffcert_ray")
    add_node()
    script = Script(tmp_path, inner=world_spec(IMAGES), item_s=0.1)
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(IMAGES, votes=4))
        run.until(lambda: len(run.results) >= 3)
        assert pool.state().live == 1
        late = add_node()
        run.until(lambda: f"node={late.node_id[:8]} numerics=" in caplog.text)
        assert (pool.state().live, pool.state().pending) == (2, 0)
        results = run.to_the_end()
    finally:
        pool.close()
    assert {r.worker for r in results.values()} == {"actor-1", "actor-2"}
    assert votes(results) == undisturbed
    assert script.evaluated() == Counter(range(IMAGES))


def test_draining_node_finishes_what_it_has_and_gets_nothing_more(
    cluster: Cluster,
    add_node: AddNode,
    tmp_path: Path,
    undisturbed: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "diffcert_ray")
    nodes = {node.node_id: node for node in (add_node(), add_node())}
    drained = next(iter(nodes))
    script = Script(tmp_path, inner=world_spec(IMAGES), item_s=0.1)
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(IMAGES, votes=4))
        run.until(lambda: len({r.worker for r in run.results.values()}) == 2)
        there = re.search(rf"live actor=(\S+) address=\S+ node={drained[:8]}", caplog.text)
        drain(cluster, drained)
        # It has sent all that it had, and was given up; its replacement is asked for.
        run.until(lambda: f"lost actor={there[1]} " in caplog.text)
        assert (pool.state().pending, pool.state().draining) == (1, 1)
        before = len(run.results)
        cluster.remove_node(nodes[drained], allow_graceful=False)
        results = run.to_the_end()
        assert pool.state().requeued == 0
    finally:
        pool.close()
    assert there[1] not in {r.worker for r in list(results.values())[before:]}
    assert f"not fed any more: its node drains actor={there[1]}" in caplog.text
    assert votes(results) == undisturbed
    assert script.evaluated() == Counter(range(IMAGES))


@pytest.mark.slow
@pytest.mark.fault
def test_all_nodes_lost_and_one_that_comes_later_finishes_the_run(
    cluster: Cluster, add_node: AddNode, tmp_path: Path, undisturbed: list[object]
) -> None:
    node = add_node()
    script = Script(tmp_path, "hangs", inner=world_spec(IMAGES))
    pool = RayPool(script)
    try:
        run = Run(pool, world_items(8, votes=4))
        run.until(script.hanging)
        cluster.remove_node(node, allow_graceful=False)
        run.until(lambda: pool.state().live == 0)
        run.until(lambda: "the cluster has 0 CPU (0 free) on 1 node" in pool.state().note)
        assert pool.state().note.startswith("1 worker waits for a place: each asks for 1 CPU")
        add_node()
        results = run.to_the_end()
        requeued = pool.state().requeued
    finally:
        pool.close()
    assert votes(results) == undisturbed[:8]
    again = script.again(8)
    assert again[3] == 1
    assert again.total() <= requeued <= 2


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(("share", "workers"), [(1.0, 1), (0.5, 2)])
def test_workers_are_as_many_as_gpus_have_room_for_on_nodes_of_different_kinds(
    cluster: Cluster,
    add_node: AddNode,
    tmp_path: Path,
    undisturbed: list[object],
    caplog: pytest.LogCaptureFixture,
    share: float,
    workers: int,
) -> None:
    caplog.set_level("INFO", "diffcert_ray")
    add_node()  # without a GPU
    with_gpu = add_node(num_cpus=2, num_gpus=1)
    script = Script(tmp_path, inner=world_spec(IMAGES), device="cuda")
    pool = RayPool(script, gpus_per_actor=share)
    try:
        run = Run(pool, world_items(12, votes=4))
        run.until(lambda: pool.state().live == workers)
        assert pool.state().pending == 0
        results = run.to_the_end()
    finally:
        pool.close()
    live = r"live actor=\S+ address=\S+ node=(\w+) numerics=\S+ compiled='no' load_s=\d"
    places = re.findall(live, caplog.text)
    assert places == [with_gpu.node_id[:8]] * workers
    assert votes(results) == undisturbed[:12]
    assert script.evaluated() == Counter(range(12))


def test_node_without_a_file_is_left_out_and_named_while_the_other_works(
    cluster: Cluster, add_node: AddNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = add_node(), add_node()
    script = Script(tmp_path, item_s=0.1, bad_node=bad.node_id)
    actors_before = len(ray._private.state.actors())
    pool = RayPool(script, actors=2)
    try:
        run = Run(pool, plain_items(400))
        run.until(lambda: len(run.results) >= 5)
        run.until(lambda: "is left out" in pool.state().note)
        assert f"node {bad.node_id[:8]} is left out (there is no file" in pool.state().note
        assert f"node={bad.node_id[:8]}" in caplog.text
        before = len(run.results)
        run.until(lambda: len(run.results) >= before + 60)
    finally:
        pool.close()
    assert {r.device for r in run.results.values()} == {good.node_id}
    # Two, and a third that waits for another node, not one after the other on the bad one.
    assert len(ray._private.state.actors()) - actors_before == 3
    assert len(script.loads()) == 2  # no worker was sent there again


@pytest.mark.slow
@pytest.mark.fault
def test_file_missing_on_every_node_stops_the_pool(
    cluster: Cluster, add_node: AddNode, tmp_path: Path
) -> None:
    add_node()
    pool = RayPool(Script(tmp_path, "load finds no file", once=False))
    try:
        with pytest.raises(PoolError, match=r"no file weights\.safetensors"):
            Run(pool, plain_items(4)).to_the_end()
    finally:
        pool.close()
