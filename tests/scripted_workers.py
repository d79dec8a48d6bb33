"""What the actors of pool tests load: it misbehaves as told, and notes every load and evaluation.

Actors cannot import test modules: this one travels with what is sent to them.
"""

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import ray

from diffcert_ray.pool.local import Pool
from diffcert_ray.votes.units import Item, Result

# Ray runs workers at niceness 15: on a machine that others use too, every test would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

FAULTY_ITEM = 3
HANG_S = 600.0


class Spec(Protocol):
    """What can be loaded in an actor."""

    def load(self, name: str) -> object: ...


@dataclasses.dataclass(frozen=True)
class Script:
    """A spec whose workers do what ``fault`` says, and otherwise what ``inner``'s do.

    Args:
        folder: of the notes, and of the mark by which a fault knows that it has happened.
        fault: "load ..." concerns loading, others the evaluation of item 3, "" nothing.
        once: only the first time.
        inner: evaluates; None returns empty results, whose ``device`` is the node's id.
        device: what the actors ask for.
        item_s: how long each item takes at least.
        bad_node: id of the node on which a file is missing.
    """

    folder: Path
    fault: str = ""
    once: bool = True
    inner: Spec | None = None
    device: str = "cpu"
    item_s: float = 0.0
    bad_node: str = ""

    def load(self, name: str) -> "ScriptedWorker":
        self.note("loads", name)
        if node_id() == self.bad_node or (self.fault == "load finds no file" and self.due()):
            raise ValueError("there is no file weights.safetensors: copy it to this node")
        if self.fault == "load crashes" and self.due():
            os._exit(1)
        if self.fault == "load hangs" and self.due():
            time.sleep(HANG_S)
        return ScriptedWorker(self, name)

    def due(self) -> bool:
        """Whether the fault happens now; only one process can make the mark."""
        if not self.once:
            return True
        try:
            (self.folder / "mark").open("x").close()
        except FileExistsError:
            return False
        return True

    def note(self, book: str, line: str) -> None:
        """Add a line to the notes of all processes."""
        with (self.folder / book).open("a") as notes:
            notes.write(f"{line}\n")

    def loads(self) -> list[str]:
        """Names of the workers that began to load."""
        return (self.folder / "loads").read_text().split()

    def evaluated(self) -> Counter[int]:
        """How often each item was begun."""
        return Counter(int(line) for line in (self.folder / "evaluations").read_text().split())

    def again(self, items: int) -> Counter[int]:
        """How often each of the first items was begun more than once; every one was begun.

        Item 3, and the item before it if its worker died with the result that was just finished.
        """
        evaluated = self.evaluated()
        assert set(evaluated) == set(range(items))
        return evaluated - Counter(range(items))

    def hanging(self) -> tuple[int, str] | None:
        """Process and node where item 3 hangs, once it does."""
        place = self.folder / "hanging"
        if not place.exists():
            return None
        pid, node = place.read_text().split()
        return int(pid), node


class ScriptedWorker:
    """A worker that misbehaves at item 3."""

    numerics = "scripted"
    compiled = "no"

    def __init__(self, script: Script, name: str) -> None:
        self.script, self.name = script, name
        self.inner = script.inner.load(name) if script.inner else None

    def evaluate(self, item: Item) -> Result:
        self.script.note("evaluations", str(item.item_id))
        if self.script.fault == "all raise":
            raise KeyError(f"item {item.item_id} is broken")
        fault = FAULTS.get(self.script.fault)
        if item.item_id == FAULTY_ITEM and fault is not None and self.script.due():
            fault(self.script)
        time.sleep(self.script.item_s)
        if self.inner is not None:
            return self.inner.evaluate(item)
        return Result(item.item_id, (), None, 1, 0, 0.0, self.name, node_id(), self.numerics)


def node_id() -> str:
    """Id of the node that this runs on."""
    return ray.get_runtime_context().get_node_id()


def _hang(script: Script) -> None:
    place = script.folder / "hanging.part"
    place.write_text(f"{os.getpid()} {node_id()}")
    place.rename(script.folder / "hanging")
    time.sleep(HANG_S)


def _raise_error(script: Script) -> None:
    raise KeyError("item 3 is broken")


def _raise_cuda_error(script: Script) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _die(script: Script) -> None:
    os._exit(1)


FAULTS: dict[str, Callable[[Script], None]] = {
    "hangs": _hang,
    "raises": _raise_error,
    "cuda": _raise_cuda_error,
    "dies": _die,
}


class Run:
    """Feeds items to a pool and keeps what comes back.

    Args:
        pool: where items go.
        items: all of them.
        limit_s: no wait is longer.
    """

    def __init__(self, pool: Pool, items: list[Item], limit_s: float = 300.0) -> None:
        self.pool, self.items = pool, items
        self.results: dict[int, Result] = {}
        self.given_up: list[int] = []
        self._waiting = list(items)
        self._until = time.monotonic() + limit_s

    def until(self, happened: Callable[[], object]) -> None:
        """Go on until something has happened; each result may come once."""
        while not happened():
            assert time.monotonic() < self._until, self.pool.state()
            for _ in range(min(self.pool.room(), len(self._waiting))):
                self.pool.submit(self._waiting.pop(0))
            for result in self.pool.collect(0.2):
                assert result.item_id not in self.results
                self.results[result.item_id] = result
            self.given_up += [item.item_id for item in self.pool.given_up()]

    def to_the_end(self) -> dict[int, Result]:
        """Go on until every item has come back or was given up."""
        self.until(lambda: len(self.results) + len(self.given_up) == len(self.items))
        return self.results


def plain_items(count: int) -> list[Item]:
    """Items without votes."""
    return [Item(number, 0.25) for number in range(count)]


def votes(results: dict[int, Result]) -> list[object]:
    """What must not depend on where an item was evaluated."""
    return [(n, r.tallies, r.nfe, r.numerics) for n, r in sorted(results.items())]
