"""Calibration where a worker may be, in place of this process."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.on_ray.cluster import brief, connect


def calibrate_on_worker(
    work: Callable[[], Any], *, address: str | None, gpus: float, limit_s: float
) -> Any:
    """What ``work`` returns on one CPU core of a cluster, with ``gpus`` GPUs.

    It is of what every node can import; ``limit_s`` is for the wait for a place and the call.

    Raises:
        PoolError: the cluster cannot be joined, or there was no answer in time.
        Exception: what it raised.
    """
    connected_here = connect(address, None)
    try:
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_call)
        return ray.get(remote.remote(work), timeout=limit_s)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except RayError as error:
        raise PoolError(
            f"calibration got no answer from a worker in {limit_s:.0f} s ({brief(str(error))}): "
            'add nodes with free resources, or set execution.calibrate = "never"'
        ) from None
    finally:
        if connected_here:
            ray.shutdown()


def _call(work: Callable[[], Any]) -> Any:
    return work()
