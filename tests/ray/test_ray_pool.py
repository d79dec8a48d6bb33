"""The pool on a local Ray: faults are scripted in what the actors load, evaluations are counted."""

import os
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
import ray

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.dispatch import Deadline
from diffcert_ray.pool.local import LocalPool
from diffcert_ray.pool.on_ray.actors import RayPool
from diffcert_ray.votes.units import Item
from tests.scripted_workers import Run, Script, plain_items, votes
from tests.worlds import world_items, world_spec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),  # actors start slowly on a busy machine
]


def votes_in_this_process() -> list[object]:
    return votes(Run(LocalPool(world_spec()), world_items()).to_the_end())


def descendants(pid: int) -> set[int]:
    """Processes below one, from /proc; ended ones that nobody waited for are left out."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


# The tests outside the class need a process without Ray: they come first.
def test_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(PoolError, match=rf"no Ray cluster at '127\.0\.0\.1:{port}'.*ray status"):
        RayPool(Script(tmp_path), address=f"127.0.0.1:{port}")
    assert time.monotonic() - began < 10.0


def test_cluster_that_answers_and_does_not_let_in_names_token_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:  # as with a wrong token, after 20 s
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PoolError) as caught:
            RayPool(Script(tmp_path), address=address)
    assert f"no Ray cluster at '{address}' can be joined: Failed to connect" in str(caught.value)
    assert "the token (RAY_AUTH_TOKEN, or ~/.ray/auth_token), RAY_AUTH_MODE or the version" in str(
        caught.value
    )


def test_client_protocol_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"ray job submit.*head node"):
        RayPool(Script(tmp_path), address="ray://head:10001")


def test_pool_starts_ray_gives_the_votes_of_the_local_pool_and_leaves_no_process_behind() -> None:
    before = descendants(os.getpid())
    pool = RayPool(world_spec(), actors=2)
    try:
        results = Run(pool, world_items()).to_the_end()
        started = descendants(os.getpid()) - before
    finally:
        began = time.monotonic()
        pool.close()
        took_s = time.monotonic() - began
    assert votes(results) == votes_in_this_process()
    assert started
    assert not started & descendants(os.getpid())
    assert not [pid for pid in started if Path(f"/proc/{pid}/exe").exists()]
    assert not ray.is_initialized()
    assert took_s < 20.0
    pool.close()  # again: nothing happens


@pytest.mark.usefixtures("local_ray")
class TestOnOneRay:
    def test_killed_actor_costs_only_its_items(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "hangs", inner=world_spec())
        pool = RayPool(script, actors=2)
        try:
            run = Run(pool, world_items())
            run.until(script.hanging)
            os.kill(script.hanging()[0], signal.SIGKILL)
            results = run.to_the_end()
            requeued = pool.state().requeued
        finally:
            pool.close()
        assert votes(results) == votes_in_this_process()
        again = script.again(6)
        assert again[3] == 1
        assert again.total() <= requeued <= 2
        lost = re.compile(
            rf"lost actor=actor-[12] address=\S+ node=\w{{8}} requeued={requeued} error="
        )
        assert lost.search(caplog.text)
        assert ray.is_initialized()  # it was there before the pool

    def test_raising_item_is_given_up_after_five_tries_and_the_rest_comes_back(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "raises", once=False)
        pool = RayPool(script, actors=1)
        try:
            run = Run(pool, plain_items(12))
            results = run.to_the_end()
        finally:
            pool.close()
        assert set(results) == set(range(12)) - {3}
        assert run.given_up == [3]
        assert script.evaluated() == Counter(range(12)) + Counter([3] * 4)
        assert script.loads() == ["actor-1"]
        assert "given up item=3" in caplog.text
        assert "item 3 is broken" in caplog.text

    @pytest.mark.slow
    @pytest.mark.fault
    def test_item_that_always_kills_its_worker_is_given_up_after_five_of_them(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "dies", once=False)
        pool = RayPool(script, actors=1)
        try:
            run = Run(pool, plain_items(6))
            results = run.to_the_end()
        finally:
            pool.close()
        assert set(results) == set(range(6)) - {3}
        assert run.given_up == [3]
        times = script.evaluated()
        kills = times.pop(3)
        # A worker that dies may take along the result that it had just finished: that item gets
        # the blame, and is evaluated again.
        assert times.total() - 5 == kills - 5 >= 0
        assert script.loads() == [f"actor-{n}" for n in range(1, kills + 2)]
        assert caplog.text.count("lost actor=") == kills
        assert re.search(r"given up item=3 error='The actor died", caplog.text)

    def test_cuda_error_replaces_its_actor_and_the_item_comes_back(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "cuda")
        pool = RayPool(script, actors=1)
        try:
            results = Run(pool, plain_items(6)).to_the_end()
        finally:
            pool.close()
        assert set(results) == set(range(6))
        evaluated = script.evaluated()
        assert evaluated[3] == 2
        assert evaluated.total() <= 8  # item 4 may have been under way behind it
        assert script.loads() == ["actor-1", "actor-2"]
        assert "error='RuntimeError: CUDA error: an illegal memory access" in caplog.text

    def test_item_that_hangs_loses_its_actor_at_the_deadline(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "hangs")
        pool = RayPool(script, actors=1, deadline=Deadline(floor_s=1.0, first_s=1.0))
        try:
            run = Run(pool, plain_items(6))
            run.until(script.hanging)
            for timeout_s in (0.0, 0.3):  # while it hangs, waiting ends with its timeout
                began = time.monotonic()
                assert pool.collect(timeout_s) == []
                assert timeout_s <= time.monotonic() - began < timeout_s + 5.0
            results = run.to_the_end()
        finally:
            pool.close()
        assert set(results) == set(range(6))
        assert script.evaluated() == Counter(range(6)) + Counter([3])
        assert "error='no answer in 1 s'" in caplog.text
        assert not Path(f"/proc/{script.hanging()[0]}/exe").exists()

    def test_the_last_item_of_a_worker_that_hangs_comes_from_another_one(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = Script(tmp_path, "hangs")
        pool = RayPool(script, actors=2, copies=True)
        try:
            results = Run(pool, plain_items(20)).to_the_end()
        finally:
            pool.close()
        assert set(results) == set(range(20))
        assert script.evaluated()[3] == 2
        assert len(script.loads()) == 2  # no deadline had to strike
        assert "lost actor" not in caplog.text

    @pytest.mark.parametrize(
        ("fault", "start_timeout_s", "said"),
        [("load crashes", 60, "The actor died"), ("load hangs", 3, "loading took more than 3 s")],
    )
    def test_start_that_fails_once_is_tried_again(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        fault: str,
        start_timeout_s: float,
        said: str,
    ) -> None:
        script = Script(tmp_path, fault)
        pool = RayPool(script, actors=1, start_timeout_s=start_timeout_s)
        try:
            assert set(Run(pool, plain_items(4)).to_the_end()) == set(range(4))
        finally:
            pool.close()
        assert script.loads() == ["actor-1", "actor-2"]
        assert script.evaluated() == Counter(range(4))
        assert re.search(rf"start failed actor=actor-1 .*error='{said}", caplog.text)

    @pytest.mark.slow
    @pytest.mark.fault
    def test_starts_that_always_crash_end_with_the_last_error(self, tmp_path: Path) -> None:
        script = Script(tmp_path, "load crashes", once=False)
        pool = RayPool(script, actors=1)
        try:
            with pytest.raises(PoolError, match=r"5 workers in a row did not start: .*died"):
                Run(pool, plain_items(4)).to_the_end()
        finally:
            pool.close()
        assert len(script.loads()) == 5
        assert not (tmp_path / "evaluations").exists()

    def test_missing_file_stops_the_pool_at_once_and_names_node_and_remedy(
        self, tmp_path: Path
    ) -> None:
        script = Script(tmp_path, "load finds no file", once=False)
        pool = RayPool(script, actors=1)
        try:
            with pytest.raises(PoolError) as caught:
                Run(pool, plain_items(4)).to_the_end()
        finally:
            pool.close()
        message = str(caught.value)
        assert "there is no file weights.safetensors: copy it to this node" in message
        assert ray.util.get_node_ip_address() in message
        assert "put them there" in message
        assert script.loads() == ["actor-1"]

    def test_pool_without_any_worker_says_what_is_missing_and_then_stops(
        self, tmp_path: Path
    ) -> None:
        now = [0.0]
        pool = RayPool(
            Script(tmp_path, device="cuda"), actors=2, gpus_per_actor=0.5, clock=lambda: now[0]
        )
        missing = re.compile(
            r"2 workers wait for a place: each asks for 1 CPU and 0\.5 GPU; the cluster has "
            r"2 CPU \(\d free\) and 0 GPU \(0 free\) on 1 node"
        )
        try:
            pool.submit(Item(0, 0.25))
            assert pool.collect(0.0) == []
            state = pool.state()
            assert (state.live, state.pending) == (0, 2)
            assert missing.fullmatch(state.note)
            now[0] = 1800.0
            assert pool.collect(0.0) == []
            now[0] = 1801.0
            with pytest.raises(PoolError, match=f"no worker for 1801 s: {missing.pattern}"):
                pool.collect(0.0)
        finally:
            pool.close()

    def test_every_item_failing_stops_the_pool(self, tmp_path: Path) -> None:
        script = Script(tmp_path, "all raise")
        pool = RayPool(script, actors=1)
        try:
            with pytest.raises(PoolError, match=r"every item fails.*item \d is broken"):
                Run(pool, plain_items(9)).to_the_end()
        finally:
            pool.close()
        # Five tries of three items; a sixth may have been under way when an actor was replaced, and
        # the item in flight beside the third may have had its fifth.
        assert max(script.evaluated().values()) <= 6
        assert sum(count >= 5 for count in script.evaluated().values()) <= 4
