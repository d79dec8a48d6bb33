"""Drivers in forked processes, to be killed: a fork needs no import, and dies without clean-up.

What their workers begin to evaluate is noted in a file, which outlives them.
"""

import dataclasses
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from diffcert_ray.run import certify as certification
from diffcert_ray.run import loop as run
from diffcert_ray.storage import local_folder
from diffcert_ray.votes.units import Item, Result

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Vote = tuple[float, int, str, int]
POINTS = ("result", "half a file", "before the name", "after the name", "moment")


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

    def evaluate(self, item: Item) -> Result:
        lines = [
            f"{p.unit.sigma} {p.unit.image_id} {p.unit.stream} {p.start} {p.stop}\n"
            for p in item.parts
        ]
        with self.book.open("a") as notes:
            notes.write("".join(lines))
        result: Result = self.inner.evaluate(item)
        return result


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


def forked(body: Callable[[], None], log: Path) -> int:
    """Run ``body`` in a fork of this process, its output in ``log``; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(0)  # of a test's own time limit
        with log.open("ab", 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # pytest's own objects would keep what is printed to themselves.
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        body()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        raise
    finally:
        os._exit(code)


def ended(pid: int, limit_s: float) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    until = time.monotonic() + limit_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} did not end in {limit_s:g} s")
        time.sleep(0.01)


def small_items(nfe: float) -> None:
    """In this process, let the first item of a driver be small, as the others are."""
    run.FIRST_ITEM_NFE = nfe


def note_evaluations(book: Path) -> None:
    """In this process, let the workers of every pool note what they evaluate."""
    make = certification.usual_pool
    certification.usual_pool = lambda spec, *given, **named: make(
        Noting(spec, book), *given, **named
    )


def die_at(point: str, rng: random.Random) -> None:
    """In this process, arrange a SIGKILL at one of POINTS; "moment" is the parent's business."""
    left = rng.randint(1, 3)

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if point == "result":
        _wrap_collect(due)
    elif point == "half a file":
        write = local_folder.write_durably

        def write_half(path: Path, data: bytes) -> None:
            if path.parent.name in ("units", "certificates") and due():
                path.write_bytes(data[: rng.randrange(len(data))])
                _die()
            write(path, data)

        local_folder.write_durably = write_half
    elif point in ("before the name", "after the name"):
        link = local_folder.link_new

        def link_and_die(temporary: Path, target: Path) -> bool:
            last = target.parent.name in ("units", "certificates") and due()
            if last and point == "before the name":
                _die()
            made = link(temporary, target)
            if last:
                _die()
            return made

        local_folder.link_new = link_and_die


def _wrap_collect(due: Callable[[], bool]) -> None:
    """Die with results in hand that nothing has been done with."""
    make = certification.usual_pool

    def made(*given: Any, **named: Any) -> Any:
        pool = make(*given, **named)
        collect = pool.collect

        def collect_and_die(timeout_s: float) -> list[Any]:
            results: list[Any] = collect(timeout_s)
            if results and due():
                _die()
            return results

        pool.collect = collect_and_die
        return pool

    certification.usual_pool = made


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
