"""The process of one worker as a Ray actor, and what the driver knows of it."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from diffcert_ray.pool.local import LoadedWorker, Loads
from diffcert_ray.votes.units import Item, Result


class RemoteWorker:
    """The process of one worker. Its constructor is empty: waiting and constructing look alike."""

    def __init__(self) -> None:
        self._worker: LoadedWorker | None = None

    def place(self) -> tuple[str, str]:
        """Node id and address; the answer says that the actor has a place."""
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return ray.get_runtime_context().get_node_id(), address

    def load(self, spec: Loads, name: str) -> tuple[str, str, float]:
        """Load; returns the numerics kind, how it was compiled, and the seconds this took."""
        began = time.monotonic()
        self._worker = worker = spec.load(name)
        return worker.numerics, worker.compiled, time.monotonic() - began

    def evaluate(self, item: Item) -> Result:
        """Evaluate one item."""
        if self._worker is None:
            raise RuntimeError("evaluate was called before load")
        return self._worker.evaluate(item)


@dataclass
class Actor:
    """What the driver knows of an actor; ``phase`` is "placing", "loading" or "live"."""

    name: str
    handle: Any
    phase: str = "placing"
    node: str = ""
    address: str = ""
    since: float = 0.0
    draining: bool = False
    refs: set[Any] = field(default_factory=set)
