"""Work on one worker of a cluster in place of this process: to measure, to verify, to attack."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.on_ray.cluster import alive_nodes, brief, joined
from diffcert_ray.pool.starts import asked_of_a_node, fitting, missing

TRIES = 3  # of work whose worker is lost


class _OneWorker:
    def place(self) -> None:
        """The answer says that it has a place."""

    def evaluate(self, work: Callable[[], Any]) -> Any:
        return work()


def on_one_worker(
    work: Callable[[int], Any],
    *,
    address: str | None,
    gpus: float,
    place_s: float,
    work_s: float | None = None,
    remedy: str = "",
) -> Any:
    """What ``work`` returns on one CPU core of a cluster, with ``gpus`` GPUs.

    Args:
        work: of what every node can import; is told how many such workers the cluster has room for,
            one at least.
        address: of the cluster; None is a Ray of this machine.
        gpus: of the worker, 0 or more.
        place_s: how long to wait for a place, seconds.
        work_s: how long to wait for the answer, seconds; None as long as it takes.
        remedy: what can be done where none is had, beside adding nodes.

    Raises:
        PoolError: the cluster cannot be joined, there was no place or answer in time, or the worker
            was lost again and again.
        Exception: what it raised.
    """
    asked = asked_of_a_node("cuda" if gpus else "cpu", gpus)
    with joined(address):
        for left in reversed(range(TRIES)):
            places = sum(fitting(node["Resources"], asked) for node in alive_nodes().values())
            remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_OneWorker)
            worker = remote.remote()
            try:
                _wait_for_place(worker, asked, place_s, remedy)
                call = _Bound(work, max(1, places))
                return ray.get(worker.evaluate.remote(call), timeout=work_s)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except RayError as error:
                if not left or isinstance(error, GetTimeoutError):
                    raise PoolError(f"no answer from a worker ({brief(str(error))}){remedy}") from (
                        None
                    )
            finally:
                ray.kill(worker)


class _Bound:
    def __init__(self, work: Callable[[int], Any], places: int) -> None:
        self._work, self._places = work, places

    def __call__(self) -> Any:
        return self._work(self._places)


def _wait_for_place(worker: Any, asked: dict[str, float], limit_s: float, remedy: str) -> None:
    try:
        ray.get(worker.place.remote(), timeout=limit_s)
    except GetTimeoutError:
        nodes = [node["Resources"] for node in alive_nodes().values()]
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        raise PoolError(
            f"no worker for {limit_s:.0f} s: {missing(1, asked, nodes, free)}: add nodes with free "
            f"resources{remedy}"
        ) from None
