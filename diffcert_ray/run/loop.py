"""The loop of a run: stages say what comes next, a pool evaluates it, the store keeps it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from diffcert_ray.pool.local import Pool, PoolState
from diffcert_ray.run.budget import Budget, Spending
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.writer import Writer

POLL_S = 1.0
FIRST_ITEM_NFE = 4000.0  # before a worker's speed is known: for small networks, part of a second
LEAST_BATCHES = 32  # in an item of a slow network: those at its end are not full
LONGER = 2.0  # times as long as asked, at most, an item may become for that
GROWTH = 4.0  # how much longer than the longest item so far the next may be, while speed is learned


class Answer(Protocol):
    """What the driver needs of a result: its cost, and what it was about."""

    @property
    def tallies(self) -> Sequence[Any]:
        """An entry for each unit, with its number of ``votes``."""
        ...

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser."""
        ...

    @property
    def padded(self) -> int:
        """Rows that only filled batches."""
        ...

    @property
    def seconds(self) -> float:
        """Wall time on the worker."""
        ...

    @property
    def numerics(self) -> str:
        """The worker's numerics kind."""
        ...


class Work(Protocol):
    """What comes next, and what is complete: `votes.stages.Stages` or `plain.stages.LossStages`."""

    images_done: int
    votes_done: int
    votes_unused: int
    finished_images: list[Any]

    @property
    def images_total(self) -> int:
        """Images times sigmas."""
        ...

    @property
    def votes_total(self) -> int:
        """Votes (or draws) asked for at most."""
        ...

    @property
    def nfe_per_vote(self) -> float:
        """Mean evaluations per vote so far, or a guess."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do and nothing under way."""
        ...

    def all_stored(self) -> bool:
        """Whether nothing has to be evaluated: looks at images until one needs something."""
        ...

    def take(self, nfe: float, workers: int = 1) -> Any | None:
        """The next item, of about ``nfe`` evaluations, or None if all there is is under way."""
        ...

    def deliver(self, result: Any) -> Sequence[Any]:
        """Take in a result; returns the units that it completed."""
        ...

    def abandon(self, item: Any) -> list[tuple[float, int]]:
        """Give up an item; returns (sigma, image_id) of the images that this costs."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Args:
        images_done: certificates ready, of ``images_total`` (images times sigmas).
        images_total: all that was asked for.
        votes_done: votes settled, stored ones included.
        votes_total: votes asked for at most.
        nfe: evaluations in this start of the driver.
        nfe_per_s: evaluations per second of wall time, recently.
        seconds_left: estimate, or None while nothing is known.
        pool: what the workers do.
        votes: votes settled in this start.
        items: items evaluated in this start.
        item_seconds: sum of their compute times on the workers.
        bytes_written: bytes of the parts stored in this start.
        budget: limits of this start and what is spent of them, or "".
    """

    images_done: int
    images_total: int
    votes_done: int
    votes_total: int
    nfe: int
    nfe_per_s: float
    seconds_left: float | None
    pool: PoolState
    votes: int = 0
    items: int = 0
    item_seconds: float = 0.0
    bytes_written: int = 0
    budget: str = ""


@dataclass
class Outcome:
    """How a run ended.

    Args:
        complete: every image has its certificate.
        interrupted: it was asked to stop, or its budget was reached.
        reached: the limit of its budget that was reached, or "".
        given_up: (sigma, image_id) of images whose votes killed workers or raised.
        nfe: evaluations in this start.
        votes: votes settled in this start.
        votes_unused: votes that came back after their image had stopped (``sequential``); stored.
        padded: rows that only filled batches.
        seconds: wall time of the loop.
        item_seconds: sum of the items' compute times on the workers.
        items: items evaluated.
        requeued: items put back after a loss.
        numerics: numerics kinds of the workers.
        unreadable: image_id of images that could not be decoded; they count as abstentions.
    """

    complete: bool
    interrupted: bool = False
    reached: str = ""
    given_up: list[tuple[float, int]] = field(default_factory=list)
    nfe: int = 0
    votes: int = 0
    votes_unused: int = 0
    padded: int = 0
    seconds: float = 0.0
    item_seconds: float = 0.0
    items: int = 0
    requeued: int = 0
    numerics: set[str] = field(default_factory=set)
    unreadable: list[int] = field(default_factory=list)


@dataclass
class Driver:
    """Drives stages over a pool into a store.

    Args:
        record: (result, units that it completed) -> hand their rows to the writer.
        certify: finished image -> its row of the certificates table, or None if that is stored.
        item_s: compute time that an item should take, seconds.
        batch: rows of a worker's batches; an item of a slow network takes up to twice as long, so
            that it holds enough of them. 0: it does not.
        on_progress: called about once a second and at the end.
        should_stop: asked between polls; True flushes and ends the run incomplete.
        spending: of this start; a limit that is reached ends the run incomplete.
        clock: monotonic seconds.
    """

    work: Work
    pool: Pool
    writer: Writer
    record: Callable[[Any, Sequence[Any]], None]
    certify: Callable[[Any], CertificateRow | None]
    item_s: float = 5.0
    batch: int = 0
    on_progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    spending: Spending = field(default_factory=lambda: Spending(Budget()))
    clock: Callable[[], float] = time.monotonic

    def run(self) -> Outcome:
        """Run until every image is certified, or the driver is asked to stop.

        Whatever ends it, complete units that have come back are stored before it returns.

        Raises:
            PoolError: no worker can be had.
            StoreError: the store stays unwritable.
        """
        started = self.clock()
        outcome = Outcome(complete=False)
        speed = _Speed(self.item_s, self.batch)
        recent = _Recent(started)
        try:
            while not self.work.finished:
                outcome.reached = self.spending.reached(outcome.nfe)
                if outcome.reached or self.should_stop():
                    outcome.interrupted = True
                    break
                self._feed(speed)
                for result in self.pool.collect(POLL_S):
                    self._take_in(result, outcome, speed)
                for item in self.pool.given_up():
                    lost = self.work.abandon(item)
                    outcome.given_up += [key for key in lost if key not in outcome.given_up]
                self.spending.look(self.pool.state().live)
                self._store_certificates()
                self.writer.flush()
                if recent.add(self.clock(), outcome.nfe):
                    self.on_progress(self._progress(outcome, recent))
        finally:
            self.writer.flush(force=True)
            outcome.seconds = self.clock() - started
            outcome.requeued = self.pool.state().requeued
            outcome.votes_unused = self.work.votes_unused
        self._store_certificates()
        self.writer.flush(force=True)
        recent.add(self.clock(), outcome.nfe)
        self.on_progress(self._progress(outcome, recent))
        outcome.complete = not (outcome.interrupted or outcome.given_up)
        return outcome

    def _feed(self, speed: "_Speed") -> None:
        workers = max(self.pool.state().live, 1)
        for _ in range(self.pool.room()):
            item = self.work.take(speed.item_nfe, workers)
            if item is None:
                return
            self.pool.submit(item)

    def _take_in(self, result: Answer, outcome: Outcome, speed: "_Speed") -> None:
        outcome.items += 1
        outcome.nfe += result.nfe
        outcome.padded += result.padded
        outcome.item_seconds += result.seconds
        outcome.votes += sum(t.votes for t in result.tallies)
        outcome.numerics.add(result.numerics)
        speed.add(result)
        self.record(result, self.work.deliver(result))

    def _store_certificates(self) -> None:
        self.writer.add_certificates(self._certificates())

    def _certificates(self) -> Iterator[CertificateRow]:
        while self.work.finished_images:
            row = self.certify(self.work.finished_images.pop())
            if row is not None:
                yield row

    def _progress(self, outcome: Outcome, recent: "_Recent") -> Progress:
        total = self.work.votes_total
        left = max(total - self.work.votes_done, 0) * self.work.nfe_per_vote
        rate = recent.rate
        return Progress(
            images_done=self.work.images_done,
            images_total=self.work.images_total,
            votes_done=self.work.votes_done,
            votes_total=total,
            nfe=outcome.nfe,
            nfe_per_s=rate,
            seconds_left=left / rate if rate else None,
            pool=self.pool.state(),
            votes=outcome.votes,
            items=outcome.items,
            item_seconds=outcome.item_seconds,
            bytes_written=self.writer.bytes_written,
            budget=self.spending.said(outcome.nfe),
        )


class _Speed:
    """How many evaluations an item should have, learned from the items so far."""

    def __init__(self, item_s: float, batch: int = 0) -> None:
        self._item_s, self._least_nfe = item_s, LEAST_BATCHES * batch
        self._rate: float | None = None
        self._longest_nfe = FIRST_ITEM_NFE / GROWTH

    @property
    def item_nfe(self) -> float:
        limit = GROWTH * self._longest_nfe
        if self._rate is None:
            return limit
        usual = self._rate * self._item_s
        return min(limit, max(usual, min(self._least_nfe, LONGER * usual)))

    def add(self, result: Answer) -> None:
        if result.seconds <= 0 or not result.nfe:
            return
        rate = result.nfe / result.seconds
        self._longest_nfe = max(self._longest_nfe, result.nfe)
        self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate


class _Recent:
    """Evaluations per second over about the last half minute."""

    WINDOW_S = 30.0

    def __init__(self, now: float) -> None:
        self._points = [(now, 0)]

    def add(self, now: float, nfe: int) -> bool:
        """Note a moment; whether it is time to say so (about once a second)."""
        due = now - self._points[-1][0] >= POLL_S
        if due:
            self._points.append((now, nfe))
            while len(self._points) > 2 and now - self._points[0][0] > self.WINDOW_S:
                self._points.pop(0)
        return due

    @property
    def rate(self) -> float:
        (t0, n0), (t1, n1) = self._points[0], self._points[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0
