"""What one start of a driver may spend: hours, evaluations, or money for its workers."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from diffcert_ray.errors import ConfigError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.views import replace_view

VIEW = "budget.json"
NOTED_S = 60.0  # between two notes in the store


@dataclass(frozen=True)
class Budget:
    """Limits of one start; None is no limit. The same command goes on, with as much again.

    Args:
        hours: of wall time, > 0, calibration included.
        nfe: evaluations that have come back, >= 1; what is under way when it is reached is lost.
        cost: of all workers that took items, in the price's currency, > 0.
        price: of one worker for an hour, >= 0; ``cost`` needs it.

    Raises:
        ConfigError: a number is out of range, or ``cost`` is without ``price``.
    """

    hours: float | None = None
    nfe: int | None = None
    cost: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("hours", self.hours), ("nfe", self.nfe), ("cost", self.cost)):
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"--max-{name} {limit:g} must be above 0, and finite")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ConfigError(f"--price {self.price:g} must be at least 0, and finite")
        if self.cost is not None and self.price is None:
            raise ConfigError(
                f"--max-cost {self.cost:g} needs the price of a worker for an hour: give --price, "
                "as to diffcert plan"
            )

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return (self.hours, self.nfe, self.cost) != (None, None, None)


@dataclass(frozen=True)
class Part:
    """One limit, and how much of it is spent."""

    name: str  # of the option
    spent: float
    limit: float
    unit: str

    def __str__(self) -> str:
        return f"{_number(self.spent)} of {_number(self.limit)}{self.unit}"


@dataclass
class Spending:
    """What a start has spent so far.

    Args:
        budget: its limits.
        clock: monotonic seconds; it has begun when this is made.
    """

    budget: Budget
    clock: Callable[[], float] = time.monotonic
    worker_s: float = 0.0
    _began: float = field(init=False)
    _seen: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._seen = self.clock()

    def look(self, workers: int) -> None:
        """Take note of time that has passed with so many workers that take items."""
        now = self.clock()
        self.worker_s += workers * (now - self._seen)
        self._seen = now

    def parts(self, nfe: int) -> Iterator[Part]:
        """Each limit that there is, when so many evaluations have come back."""
        budget = self.budget
        if budget.hours is not None:
            yield Part("--max-hours", (self.clock() - self._began) / 3600, budget.hours, " h")
        if budget.nfe is not None:
            yield Part("--max-nfe", nfe, budget.nfe, " NFE")
        if budget.cost is not None and budget.price is not None:
            cost = self.worker_s / 3600 * budget.price
            yield Part("--max-cost", cost, budget.cost, " for workers")

    def reached(self, nfe: int) -> str:
        """The limit that is reached, in words, or ""."""
        over = (part for part in self.parts(nfe) if part.spent >= part.limit)
        return next((f"{part.name} ({part})" for part in over), "")

    def said(self, nfe: int) -> str:
        """All limits and what is spent of them, or ""."""
        return ", ".join(map(str, self.parts(nfe)))


class BudgetNote:
    """What is spent, for others to see in the run's store: at the start, each minute, at the end.

    Args:
        location: the run's.
        clock: seconds since the epoch.
    """

    def __init__(self, location: Location, clock: Callable[[], float] = time.time) -> None:
        self._location, self._clock = location, clock
        self._noted_at: float | None = None

    def note(self, said: str, reached: str = "", *, now: bool = False) -> None:
        """Write it if it is time, or ``now``; nothing where there is no limit."""
        at = self._clock()
        if not said or not (now or self._noted_at is None or at - self._noted_at >= NOTED_S):
            return
        self._noted_at = at
        facts = {"budget": said, "reached": reached, "at": round(at, 1)}
        with contextlib.suppress(FileExistsError):  # another driver's note came between
            replace_view(self._location, VIEW, json.dumps(facts).encode())


def noted_budget(location: Location) -> dict[str, Any]:
    """What `BudgetNote` noted last: budget, reached, at; empty where there was no limit."""
    try:
        facts = json.loads(location.read(VIEW))
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.3g}"
