"""What a pool of workers does for the run, and the pool of one worker in this process."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol


class LoadedWorker(Protocol):
    """What a spec loads, such as ``diffcert_ray.engine.worker.Worker``."""

    numerics: str
    compiled: str

    def evaluate(self, item: Any) -> Any:
        """Evaluate one item."""
        ...


class Loads(Protocol):
    """What is sent to the actors, such as ``diffcert_ray.engine.worker.WorkerSpec``."""

    device: str

    def load(self, name: str) -> LoadedWorker:
        """Load networks and images in the process of the caller."""
        ...


@dataclass(frozen=True)
class PoolState:
    """What the pool is doing, for progress and for the end of a run."""

    live: int  # workers that can take items
    pending: int = 0  # asked for, and not started
    requeued: int = 0  # items put back after a loss, so far
    note: str = ""  # one sentence about what the pool waits for, or ""
    draining: int = 0  # nodes that will go soon and are not fed any more


class Pool(Protocol):
    """Evaluates items somewhere, each at least once; a lost one is its own business.

    An item is anything with an ``item_id`` that ``Worker.evaluate`` takes: votes or losses.
    """

    def room(self) -> int:
        """How many more items it wants now, so that no worker runs dry."""
        ...

    def submit(self, item: Any) -> None:
        """Take an item; its result comes out of ``collect``, or the item out of ``given_up``."""
        ...

    def collect(self, timeout_s: float) -> list[Any]:
        """Results that are there, after waiting at most ``timeout_s`` for the first.

        Raises:
            PoolError: no worker can be had.
        """
        ...

    def given_up(self) -> list[Any]:
        """Items quarantined since the last call: each failed on every try that it was given."""
        ...

    def state(self) -> PoolState:
        """What the pool is doing."""
        ...

    def close(self) -> None:
        """Stop the workers; items in flight are lost."""
        ...


class LocalPool:
    """One worker in this process, evaluating in ``collect``."""

    def __init__(self, spec: Loads) -> None:
        self._worker = spec.load("local")
        self._items: deque[Any] = deque()

    def room(self) -> int:
        """One item at a time: nothing is gained by queueing in one process."""
        return 1 - len(self._items)

    def submit(self, item: Any) -> None:
        """Queue an item."""
        self._items.append(item)

    def collect(self, timeout_s: float) -> list[Any]:
        """Evaluate one item; it is not cut short by the timeout."""
        return [self._worker.evaluate(self._items.popleft())] if self._items else []

    def given_up(self) -> list[Any]:
        """Nothing: an exception in this process ends the run."""
        return []

    def state(self) -> PoolState:
        """One live worker."""
        return PoolState(live=1)

    def close(self) -> None:
        """Forget what was queued."""
        self._items.clear()
