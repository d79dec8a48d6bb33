"""Which settings go on, and which one is taken: from votes on the same noise.

Shape letters: I images, V votes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.tuning.candidates import Setting
from diffcert_ray.tuning.casting import Votes
from diffcert_ray.tuning.intervals import intervals, lower_bounds

CONFIDENCE = 0.95  # of all bounds of a choice together
HOPELESS = 0.975  # a setting is dropped early where it is so sure that it agrees too rarely
FINALISTS = 6  # at each sigma


@dataclass(frozen=True)
class Measured:
    """A setting at one sigma, against the votes in full on the same images.

    Attributes:
        setting: the rule.
        sigma: smoothing noise, pixel units.
        agreeing: share of each image's votes whose class is the full vote's, float64 [I].
        nfe: evaluations of a vote, mean.
        right: share of votes for the label, or None without labels.
        votes: of each image.
    """

    setting: Setting
    sigma: float
    agreeing: NDArray[np.float64]
    nfe: float
    right: float | None
    votes: int

    @property
    def agreement(self) -> float:
        """Share of all votes."""
        return float(self.agreeing.mean())


@dataclass(frozen=True)
class Bounded:
    """A setting with bounds that hold together with those of the others it is chosen among.

    Attributes:
        measured: at each sigma.
        lower: lower bound on its agreement at each sigma.
        interval: two-sided interval at each sigma.
    """

    measured: tuple[Measured, ...]
    lower: tuple[float, ...]
    interval: tuple[tuple[float, float], ...]

    @property
    def setting(self) -> Setting:
        """The rule."""
        return self.measured[0].setting

    @property
    def nfe(self) -> float:
        """Evaluations of a vote, mean over the sigmas."""
        return float(np.mean([m.nfe for m in self.measured]))

    @property
    def agreement(self) -> float:
        """At the sigma where it is least."""
        return min(m.agreement for m in self.measured)

    @property
    def bound(self) -> float:
        """The least lower bound of the sigmas."""
        return min(self.lower)


def measured(
    setting: Setting,
    sigma: float,
    votes: Votes,
    full: Votes,
    labels: NDArray[np.int64] | None,
) -> Measured:
    """Compare the votes of a setting with those in full; ``labels`` are int64 [I]."""
    agreeing = (votes.classes == full.classes).mean(axis=1)
    right = None if labels is None else float((votes.classes == labels[:, None]).mean())
    cast = votes.nfe > 0
    nfe = float(votes.nfe.sum() / max(int(cast.sum()), 1))
    return Measured(setting, sigma, agreeing, nfe, right, votes.classes.shape[1])


def promising(found: Sequence[Measured], target: float, count: int) -> list[Measured]:
    """The settings at one sigma that go on: by fronts of NFE and agreement, the first ones first.

    Settings that agree too rarely for the target, beyond doubt, are left out, unless all do.
    """
    _, high = intervals(_agreeing(found), found[0].votes, HOPELESS, 1)
    left = [m for m, upper in zip(found, high, strict=True) if upper >= target]
    if not left:
        left = [max(found, key=lambda m: (m.agreement, -m.nfe))]
    kept: list[Measured] = []
    while left and len(kept) < count:
        leading = front(left)
        kept += leading[: count - len(kept)] if len(leading) <= count else _spread(leading, count)
        left = [m for m in left if m not in leading]
    return kept[:count]


def front(found: Sequence[Measured]) -> list[Measured]:
    """Those that no other beats in both NFE and agreement, the cheapest first."""
    best: list[Measured] = []
    for one in sorted(found, key=lambda m: (m.nfe, -m.agreement)):
        if not best or one.agreement > best[-1].agreement:
            best.append(one)
    return best


def bounded(groups: Sequence[Sequence[Measured]], confidence: float = CONFIDENCE) -> list[Bounded]:
    """Bounds for settings that are chosen among, all at once.

    Args:
        groups: a setting at each sigma, for each setting.
        confidence: of all bounds together.

    Returns:
        The settings, the cheapest first.
    """
    flat = [m for group in groups for m in group]
    number = len(flat)
    table, votes = _agreeing(flat), flat[0].votes
    lower = lower_bounds(table, votes, confidence, number).tolist()
    low, high = (ends.tolist() for ends in intervals(table, votes, confidence, number))
    found, at = [], 0
    for group in groups:
        part = slice(at, at + len(group))
        ends = tuple(zip(low[part], high[part], strict=True))
        found.append(Bounded(tuple(group), tuple(lower[part]), ends))
        at += len(group)
    return sorted(found, key=lambda b: b.nfe)


def chosen(found: Sequence[Bounded], target: float) -> tuple[Bounded, bool]:
    """The cheapest setting whose bounds are all above the target, and True.

    Where there is none: the one with the highest bound, and False.
    """
    reaching = [b for b in found if b.bound >= target]
    if reaching:
        return min(reaching, key=lambda b: b.nfe), True
    return max(found, key=lambda b: (b.agreement, b.bound, -b.nfe)), False


def _spread(leading: list[Measured], count: int) -> list[Measured]:
    """Some of a front, evenly, with its ends."""
    places = np.unique(np.linspace(0, len(leading) - 1, count).round().astype(int))
    return [leading[i] for i in places]


def _agreeing(found: Sequence[Measured]) -> NDArray[np.float64]:
    return np.stack([m.agreeing for m in found], axis=1)
