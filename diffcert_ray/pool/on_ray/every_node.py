"""Work on one worker of every node of a cluster: to see whether each can do what a run needs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.on_ray.cluster import alive_nodes, brief, joined
from diffcert_ray.pool.starts import asked_of_a_node, fitting


class _NodeWorker:
    def now(self) -> float:
        """Seconds since the epoch on this node's clock; the answer says that it has a place."""
        return time.time()

    def evaluate(self, work: Callable[[], Any]) -> Any:
        return work()


@dataclass(frozen=True)
class Answer:
    """What came from a node.

    Args:
        node: its id.
        address: its IP.
        takes_workers: whether it has room for any, were it free.
        value: what the work returned, or the exception that it raised; None without a worker.
        ahead_s: how far its clock is ahead of this one, seconds, at least; 0 where it may be right.
    """

    node: str
    address: str
    takes_workers: bool
    value: Any = None
    ahead_s: float = 0.0


def on_every_node(
    work: Callable[[], Any], *, address: str, gpus: float, place_s: float, work_s: float
) -> list[Answer]:
    """What ``work`` returns on each node, at the same time.

    Args:
        work: of what every node can import.
        address: of the cluster.
        gpus: that a worker has.
        place_s: how long to wait for a free GPU or a process, seconds.
        work_s: how long to wait for all answers, seconds.

    Returns:
        One for each node that is up; a failure is its ``value``.

    Raises:
        PoolError: the cluster cannot be joined.
    """
    asked = asked_of_a_node("cuda" if gpus else "cpu", gpus)
    with joined(address):
        nodes = alive_nodes()
        workers = {
            node: _worker(node, gpus) for node, n in nodes.items() if fitting(n["Resources"], asked)
        }
        try:
            clocks = {node: _clock(worker, place_s) for node, worker in workers.items()}
            calls = {n: workers[n].evaluate.remote(work) for n, c in clocks.items() if _is(c)}
            until = time.monotonic() + work_s
            values = {
                n: _value(call, max(0.1, until - time.monotonic()), work_s)
                for n, call in calls.items()
            }
        finally:
            for worker in workers.values():
                ray.kill(worker)
        return [
            Answer(
                node,
                about["NodeManagerAddress"],
                node in workers,
                values.get(node, clocks.get(node)),
                clocks[node] if node in values else 0.0,
            )
            for node, about in nodes.items()
        ]


def _is(clock: "float | Exception") -> bool:
    return not isinstance(clock, Exception)


def _worker(node: str, gpus: float) -> Any:
    """A worker on a node, beside those that work there, which hold its cores."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0}
    return ray.remote(**options)(_NodeWorker).options(scheduling_strategy=where).remote()


def _clock(worker: Any, limit_s: float) -> Any:
    """How far a node's clock is ahead, at least; or why no worker starts there."""
    try:
        ray.get(worker.now.remote(), timeout=limit_s)  # once it is there, answers are quick
        before = time.time()
        there = ray.get(worker.now.remote(), timeout=limit_s)
        after = time.time()
    except GetTimeoutError:
        return PoolError(
            f"no worker started in {limit_s:.0f} s: its GPUs are taken by another run, or it is "
            "too busy to start a process; try again later"
        )
    except RayError as error:
        return PoolError(f"no worker starts ({brief(str(error))})")
    return max(there - after, 0.0) + min(there - before, 0.0)


def _value(call: Any, limit_s: float, asked_s: float) -> Any:
    try:
        return ray.get(call, timeout=limit_s)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except GetTimeoutError:
        return PoolError(f"no answer in {asked_s:.0f} s")
    except RayError as error:
        return PoolError(f"its worker was lost ({brief(str(error))})")
