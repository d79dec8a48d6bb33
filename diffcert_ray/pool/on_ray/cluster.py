"""The Ray cluster that this process joins or starts, and what its nodes say."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from diffcert_ray.errors import PoolError

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20  # only arguments and results above 100 kB go through it
CONNECT_S = 5.0


def connect(address: str | None, actors: int | None) -> bool:
    """Connect to Ray; returns whether the connection is the caller's to end."""
    if address is not None and address.startswith("ray://"):
        raise PoolError(
            f"address {address!r} is Ray's client protocol, which loses a run with its connection: "
            'submit a job (ray job submit), or run on the head node with address "auto"'
        )
    if ray.is_initialized():
        return False
    _log_what_ray_prints()
    if address is None:
        with _own_sigterm():
            ray.init(
                address="local",  # never one that happens to run here, or lingers after a kill
                num_cpus=actors,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        return True
    remedy = "see that it runs (ray status), with the version of Ray, the RAY_AUTH_MODE and the "
    remedy += "token that are used here"
    try:
        if _check_listening(address):
            remedy = "something answers there: the token (RAY_AUTH_TOKEN, or ~/.ray/auth_token), "
            remedy += "RAY_AUTH_MODE or the version of Ray is not the one that is used here"
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise PoolError(
            f"no Ray cluster at {address!r} can be joined: {error}; {remedy}"
        ) from error
    return True


@contextmanager
def joined(address: str | None, actors: int | None = None) -> Iterator[None]:
    """Connected to Ray within the context, as `connect`; pools within find and leave it."""
    connected_here = connect(address, actors)
    try:
        yield
    finally:
        if connected_here:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the caller's SIGTERM handler back: Ray's own aborts the process, nothing is stored."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_listening(address: str) -> bool:
    """Fail within seconds where Ray would retry for minutes, and then end the process.

    Returns:
        Whether somebody listens; False where the address names no port ("auto").
    """
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):
        return False
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    return True


def _log_what_ray_prints() -> None:
    """Ray prints messages of its raylets on stdout, where results go: send them to the log."""

    def log_lines(data: Any, ignore_prefix: bool) -> None:
        for line in data["lines"]:
            logger.info("ray says %r", brief(line))

    ray._private.worker.print_to_stdstream = log_lines


def alive_nodes() -> dict[str, dict[str, Any]]:
    """What Ray says of each node that is up, by node id."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {n["NodeID"]: n for n in nodes if n["Alive"]}


def device_of_cluster(address: str | None) -> str | None:
    """Where workers can compute: "cuda" where any node has a GPU, else "cpu".

    Nodes that an autoscaler may add count, where it says which. None where no node has any room for
    a worker yet, and nothing says what nodes will have.

    Raises:
        PoolError: the cluster cannot be joined.
    """
    with joined(address):
        resources = [node["Resources"] for node in alive_nodes().values()] + [_most_resources()]
        for device, name in (("cuda", "GPU"), ("cpu", "CPU")):
            if any(there.get(name, 0.0) > 0 for there in resources):
                return device
        return None


def in_a_cluster(address: str | None) -> bool:
    """Whether workers would be in a cluster that exists, and not in a Ray of this machine."""
    return address is not None or ray.is_initialized()


def _most_resources() -> dict[str, float]:
    """What the autoscaler may add, where it says so (KubeRay's does); private to Ray."""
    try:
        return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})
    except (AttributeError, TypeError):
        return {}


def draining_nodes() -> frozenset[str]:
    """Nodes that will go soon; the name is private to Ray, without it they are fed until then."""
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except (AttributeError, TypeError):
        return frozenset()


def brief(text: str) -> str:
    """First and last line: Ray puts a whole traceback into a message."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    return " ... ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
