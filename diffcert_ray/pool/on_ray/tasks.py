"""Calls on workers of a cluster that are no items of a run: one core each, a GPU if asked."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.on_ray.cluster import brief

POLL_S = 0.5


def on_workers(
    works: Sequence[Callable[[], Any]],
    *,
    gpus: float,
    limit_s: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Any]]:
    """Call each of ``works`` on a worker, side by side, within `cluster.joined`.

    They are of what every node can import.

    Yields:
        (position, what it returned), as they end; nothing more once ``should_stop``.

    Raises:
        PoolError: there was no answer in ``limit_s``, the wait for a place included.
        Exception: what one raised.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_call)
    waiting = {remote.remote(work): position for position, work in enumerate(works)}
    until = time.monotonic() + limit_s
    try:
        while waiting and not should_stop():
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            for ref in ready:
                yield waiting.pop(ref), _answer(ref)
            if not ready and time.monotonic() > until:
                raise PoolError(
                    f"no answer from a worker in {limit_s:.0f} s: add nodes with free resources, "
                    "or raise execution.stall_timeout_s"
                )
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except RayError as error:
        raise PoolError(f"a worker was lost again and again ({brief(str(error))})") from None


def _call(work: Callable[[], Any]) -> Any:
    return work()
