"""Where workers compute, decided by the machines that they will be on, and work on one of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from diffcert_ray.config.tables import ExecutionConfig
from diffcert_ray.errors import ConfigError

T = TypeVar("T")


def workers_device(
    execution: ExecutionConfig, *, local: bool = False, address: str | None = None
) -> str:
    """What ``execution.device`` stands for: "cpu" or "cuda".

    Of a cluster its resources decide, whatever this machine has: a head often has no GPU. "cuda" is
    taken as given there, since the nodes may be yet to come; a worker without a GPU refuses by
    name.

    Args:
        execution: of the run.
        local: workers are in this process.
        address: of the cluster that is joined; None is a Ray of this machine, or the one that this
            process is connected to.

    Raises:
        ConfigError: there is no GPU on this machine, or nothing in the cluster that would tell.
        PoolError: the cluster cannot be joined.
    """
    from diffcert_ray.denoisers.device import resolve_device

    if local:
        return resolve_device(execution.device)
    from diffcert_ray.pool.on_ray.cluster import device_of_cluster, in_a_cluster

    if not in_a_cluster(address):
        return resolve_device(execution.device)
    if execution.device != "auto":
        return execution.device
    device = device_of_cluster(address)
    if device is None:
        raise ConfigError(
            'execution.device = "auto", but no node of the cluster has room for a worker yet, so '
            'that nothing tells what its nodes will have: set execution.device = "cuda" or "cpu"'
        )
    return device


def at_a_worker(work: Callable[[str], T], execution: ExecutionConfig, *, address: str | None) -> T:
    """What ``work`` returns, given the device: in this process, or on a worker of a cluster.

    Args:
        work: of what every node can import, where there is an address.
        execution: of the run.
        address: of a cluster; None is this process.

    Raises:
        ConfigError, PoolError: as of `workers_device`, or there is no place for a worker.
    """
    device = workers_device(execution, local=address is None, address=address)
    if address is None:
        return work(device)
    from diffcert_ray.pool.on_ray.one_worker import on_one_worker

    answer: T = on_one_worker(
        partial(_whatever_the_places, work, device),
        address=address,
        gpus=gpus_of_a_worker(execution, device),
        place_s=execution.stall_timeout_s,
    )
    return answer


def gpus_of_a_worker(execution: ExecutionConfig, device: str) -> float:
    """GPUs that a worker asks a cluster for."""
    return execution.gpus_per_actor if device == "cuda" else 0.0


def _whatever_the_places(work: Callable[[str], Any], device: str, _places: int) -> Any:
    return work(device)
