"""Pools for ``certify(pool=...)``: what their workers begin to evaluate is noted in a file.

The file outlives drivers and workers, which may be killed.
"""

import dataclasses
import fcntl
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from diffcert_ray.config.tables import Config
from diffcert_ray.pool.local import Pool
from diffcert_ray.pool.usual import usual_pool
from diffcert_ray.run.certify import MakePool
from diffcert_ray.votes.units import Item, Result

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Vote = tuple[float, int, str, int]

on_ray: MakePool = usual_pool
in_this_process: MakePool = partial(usual_pool, local=True)


def noting(book: Path, make: MakePool = in_this_process) -> MakePool:
    """The pools of ``make``, whose workers note in ``book`` what they evaluate."""
    return lambda spec, config: make(Noting(spec, book), config)


def at_third_item(happens: Callable[[], object], make: MakePool = in_this_process) -> MakePool:
    """The pools of ``make``, during whose third item something else happens."""

    def made(spec: Any, config: Config) -> Pool:
        pool = make(spec, config)
        collect, left = pool.collect, 3

        def collect_meanwhile(timeout_s: float) -> list[Any]:
            nonlocal left
            left -= 1
            if left == 0:
                happens()
            return collect(timeout_s)

        pool.collect = collect_meanwhile
        return pool

    return made


@dataclasses.dataclass(frozen=True)
class Noting:
    """What ``inner`` loads, with each vote noted in ``book`` when its evaluation begins."""

    inner: Any
    book: Path

    @property
    def device(self) -> str:
        """What the actors ask for."""
        return str(self.inner.device)

    def load(self, name: str) -> "NotingWorker":
        return NotingWorker(self.inner.load(name), self.book)


class NotingWorker:
    """A worker that notes what it evaluates; items come with fresh votes only."""

    def __init__(self, inner: Any, book: Path) -> None:
        self.inner, self.book = inner, book
        self.numerics, self.compiled = inner.numerics, inner.compiled
        alive = os.open(book, os.O_RDONLY | os.O_CREAT)
        fcntl.flock(alive, fcntl.LOCK_SH)  # until this worker ends, in whatever way
        weakref.finalize(self, os.close, alive)

    def evaluate(self, item: Item) -> Result:
        lines = [
            f"{p.unit.sigma} {p.unit.image_id} {p.unit.stream} {p.start} {p.stop}\n"
            for p in item.parts
        ]
        with self.book.open("a") as notes:
            notes.write("".join(lines))
        result: Result = self.inner.evaluate(item)
        return result


def no_worker_left(book: Path) -> bool:
    """Whether no worker that notes in ``book`` is alive; actors outlive drivers a little."""
    with book.open("a") as notes:
        try:
            fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def noted(book: Path) -> Counter[Vote]:
    """How often the evaluation of each vote was begun."""
    votes: Counter[Vote] = Counter()
    for line in book.read_text().splitlines() if book.exists() else ():
        sigma, image_id, stream, start, stop = line.split()
        for vote in range(int(start), int(stop)):
            votes[float(sigma), int(image_id), stream, vote] += 1
    return votes


def votes_of(counts: dict[Any, Any]) -> set[Vote]:
    """The votes of stored units, as ``tests.worlds.counts_of`` keys them."""
    return {(s, i, stream, v) for s, i, stream, start, stop in counts for v in range(start, stop)}
