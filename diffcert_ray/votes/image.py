"""The votes of one image at one sigma: the class they choose, the looks, the certificate.

Decisions follow the order of the votes, never the order of arrival: a look is taken only at the end
of a gap-free prefix of units, because votes for the leading class tend to finish sooner. Units that
come after a decision change nothing, and neither do estimation units that were asked about another
class than the one that is chosen. The same code decides during a run and when a stored run is
certified or verified again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.radius import two_class_counts
from diffcert_ray.certificates.stopping import SequentialLooks
from diffcert_ray.conventions import ABSTAIN, ALL_CLASSES
from diffcert_ray.errors import VotesError
from diffcert_ray.method.grid import rounding_radius, slack
from diffcert_ray.votes.selection import Selection
from diffcert_ray.votes.units import Unit


@dataclass(frozen=True)
class Plan:
    """What is asked of every image."""

    image_ids: np.ndarray  # int64 [N], in the order in which they are worked on
    sigmas: tuple[float, ...]  # smoothing noise, pixel units
    n0: int  # selection votes
    n: int  # estimation votes (for ``sequential`` the most)
    unit: int  # votes in a unit
    alpha: float  # failure probability of one certificate
    bound: str  # "clopper-pearson", "two-class" or "sequential"
    radii: tuple[float, ...]  # asked for, pixel units
    dimensions: int  # D, numbers in the noise of a vote
    estimate: str = "complete"  # "complete" or "target" votes in the estimation stream
    # Posterior probability below which a radius is given up (``sequential``)
    futility: float = 0.05
    # Distance of each image from the grid, l2, pixel units, where it is not 0.
    off_grid: Mapping[int, float] = field(default_factory=dict)
    # Votes by which a class must lead for selection to stop before n0; None: never
    select: int | None = None
    select_unit: int = 1  # selection votes in a unit, where ``select`` is set

    def slack(self, sigma: float) -> float:
        """What the noise of a vote takes off a probability."""
        return slack(sigma, self.dimensions)

    def taken_off(self, image_id: int | None = None) -> float:
        """What rounding takes off the radius of an image, pixel units; None: of one on the grid."""
        own = 0.0 if image_id is None else self.off_grid.get(image_id, 0.0)
        return rounding_radius(self.dimensions) + own

    def ranges(self, stream: str) -> Sequence[tuple[int, int]]:
        """(start, stop) of every unit of a stream; the last may be shorter."""
        if stream == "estimate":
            return _ranges(self.n, self.unit)
        return _ranges(self.n0, self.unit if self.select is None else self.select_unit)


@cache
def _ranges(votes: int, unit: int) -> tuple[tuple[int, int], ...]:
    """Made once: thousands of images under way share the pairs."""
    return tuple((a, min(a + unit, votes)) for a in range(0, votes, unit))


@dataclass(frozen=True)
class UnitCounts:
    """One complete unit: counts per class (or NOT_TARGET), and its cost."""

    unit: Unit
    target: int  # the class asked for, or -1: any
    counts: Mapping[int, int]
    nfe: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """The certificate of one image at one sigma, with the counts behind it."""

    predicted: int  # class, or ABSTAIN
    radius: float  # certified l2 radius, pixel units, 0.0 when abstaining
    p_low: float  # lower confidence bound on the probability of the class
    n_a: int  # estimation votes for the class, of the ``n`` used
    n: int  # estimation votes used
    n0_used: int  # selection votes used
    nfe: int  # evaluations for all votes of the image, used or not
    seconds: float  # worker time of all votes of the image


class ImageVotes:
    """Complete units of one image at one sigma, added in any order.

    Args:
        stop_at: take no decision at looks, and stop at this many estimation votes: how a stored
            ``sequential`` certificate is recomputed, whatever made its image stop there.
    """

    def __init__(
        self, plan: Plan, sigma: float, image_id: int, *, stop_at: int | None = None
    ) -> None:
        self.plan, self.sigma, self.image_id = plan, sigma, image_id
        self._stop_at = stop_at
        self._looks = (
            SequentialLooks(
                plan.n,
                sigma,
                plan.radii,
                plan.alpha,
                plan.futility,
                plan.slack(sigma),
                plan.taken_off(image_id),
            )
            if plan.bound == "sequential" and stop_at is None
            else None
        )
        self.selection = Selection(plan.n0, plan.select)
        self.stopped: str | None = None
        self.nfe = 0
        self.seconds = 0.0
        # Units beyond what has been looked at; of a range, one unit for each class asked about.
        self._select: dict[int, UnitCounts] = {}
        self._estimate: dict[int, list[UnitCounts]] = {}
        self._looks_n: list[int] = []
        self._looks_a: list[int] = []
        self._total: Counter[int] = Counter()
        self._arrived = 0

    @property
    def chosen(self) -> int | None:
        """The class that the selection votes choose, ABSTAIN or, while they have not, None."""
        return self.selection.chosen

    @property
    def finished(self) -> bool:
        """Whether no further vote can change the certificate."""
        return self.stopped is not None

    def add(self, counted: UnitCounts) -> None:
        """Take in one complete unit.

        Raises:
            VotesError: its votes are not the kind that choosing a class, or the bound, needs.
        """
        self.nfe += counted.nfe
        self.seconds += counted.seconds
        if counted.unit.stream == "select":
            if self.chosen is None:
                self._select[counted.unit.start] = counted
                self._choose()
        elif self.chosen is None or self._usable(counted):
            self._arrived += counted.unit.votes
            self._estimate.setdefault(counted.unit.start, []).append(counted)
        if self.chosen is not None:
            self._advance()

    def missing(self, stream: str, stop: int | None = None) -> list[tuple[int, int]]:
        """(start, stop) of the units of a stream, up to vote ``stop``, that have not been added.

        None of the selection once a class is chosen: further votes would change nothing.
        """
        selects = stream == "select"
        if selects and self.chosen is not None:
            return []
        begun = self.selection.used if selects else self.prefix
        there = self._select if selects else self._estimate
        return [
            (a, b)
            for a, b in self.plan.ranges(stream)
            if a >= begun and (stop is None or a < stop) and a not in there
        ]

    @property
    def prefix(self) -> int:
        """Estimation votes in the gap-free prefix that has been looked at."""
        return self._looks_n[-1] if self._looks_n else 0

    @property
    def votes_beyond(self) -> int:
        """Estimation votes that have been added beyond that prefix."""
        return self._arrived - self.prefix

    def target(self, stream: str) -> int:
        """The class that votes of a stream are asked about, or ALL_CLASSES."""
        if stream == "select" or self.plan.estimate == "complete":
            return ALL_CLASSES
        return ALL_CLASSES if self.chosen is None else self.chosen

    def _choose(self) -> None:
        """Count the gap-free prefix of the selection up to where it chooses a class."""
        while self.chosen is None:
            counted = self._select.pop(self.selection.used, None)
            if counted is None:
                return
            if counted.target != ALL_CLASSES:
                raise VotesError(
                    f"image {self.image_id}: selection votes "
                    f"{counted.unit.start}:{counted.unit.stop} are "
                    f"only about class {counted.target}; selection needs complete votes: "
                    "recompute them"
                )
            self.selection.add(counted.unit.votes, counted.counts)
        self._select.clear()
        if self.chosen == ABSTAIN:
            self.stopped = "unresolved"
        self._leave_out_others()

    def _usable(self, counted: UnitCounts) -> bool:
        """Whether estimation votes are about the chosen class: others are ignored, cast anew."""
        return counted.target in (ALL_CLASSES, self.chosen)

    def _leave_out_others(self) -> None:
        """Let go what came before the class was chosen, and is about another one."""
        kept = {a: [u for u in units if self._usable(u)] for a, units in self._estimate.items()}
        self._estimate = {start: units for start, units in kept.items() if units}
        self._arrived = sum(u.unit.votes for units in self._estimate.values() for u in units)

    def _advance(self) -> None:
        """Take every look that the gap-free prefix allows; stop at the first one that stops."""
        while not self.finished:
            units = self._estimate.pop(self.prefix, None)
            if units is None:
                return
            counted = units[0]
            self._check_kind(counted)
            self._total.update(counted.counts)
            self._looks_n.append(counted.unit.stop)
            self._looks_a.append(self._total[self.chosen or 0])
            self._look()

    def _look(self) -> None:
        if self._looks is None:
            stop_at = self.plan.n if self._stop_at is None else self._stop_at
            self.stopped = "cap" if self.prefix == stop_at else None
            return
        decision = self._looks.look(self._looks_a[-1], self.prefix)
        self.stopped = None if decision == "continue" else decision

    def _check_kind(self, counted: UnitCounts) -> None:
        if self.plan.bound == "two-class" and counted.target != ALL_CLASSES:
            raise VotesError(
                f'image {self.image_id}: bound "two-class" needs complete votes, but votes '
                f"{counted.unit.start}:{counted.unit.stop} stopped at class {counted.target}; use "
                '"clopper-pearson" or "sequential", or a run with votes.estimate = "complete"'
            )

    def verdict(self) -> Verdict | None:
        """The certificate, or None while units are missing that it needs.

        A fixed-n bound holds at its n only; ``sequential`` may use the longest prefix.
        """
        if self.chosen is None:
            return None
        if self.chosen == ABSTAIN:
            return self._verdict(ABSTAIN, 0.0, 0.0, 0, 0)
        if not self.finished and (self.plan.bound != "sequential" or not self._looks_n):
            return None
        n_a, n = self._looks_a[-1], self._looks_n[-1]
        sequential, two_class = (self.plan.bound == b for b in ("sequential", "two-class"))
        certified = executed_certificate(
            self._looks_a if sequential else n_a,
            self._looks_n if sequential else n,
            sigma=self.sigma,
            slack=self.plan.slack(self.sigma),
            taken_off=self.plan.taken_off(self.image_id),
            n_b=two_class_counts(self._total, self.chosen)[1] if two_class else None,
            alpha=self.plan.alpha,
            bound=self.plan.bound,
        )
        predicted = ABSTAIN if certified.abstained else self.chosen
        return self._verdict(predicted, certified.radius, certified.p_low, n_a, n)

    def _verdict(self, predicted: int, radius: float, p_low: float, n_a: int, n: int) -> Verdict:
        used = self.selection.used
        return Verdict(predicted, radius, p_low, n_a, n, used, self.nfe, self.seconds)
