"""Which settings go on, and which one is taken: from votes on the same noise.

Shape letters: I images, V votes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.tuning.candidates import Setting
from diffcert_ray.tuning.casting import Votes
from diffcert_ray.tuning.intervals import images_needed, intervals, lower_bounds

CONFIDENCE = 0.95  # of all bounds of a choice together
HOPELESS = 0.975  # a setting is dropped early where it is so sure that it agrees too rarely
FINALISTS = 5


@dataclass(frozen=True)
class Measured:
    """A setting at one sigma, against the votes in full on the same images and noise.

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
class Compared:
    """A setting at every sigma, with bounds that hold together with those of all others compared.

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
        return mean_nfe(self.measured)

    @property
    def agreement(self) -> float:
        """At the sigma where it is least."""
        return least_agreement(self.measured)

    @property
    def bound(self) -> float:
        """The least lower bound of the sigmas."""
        return min(self.lower)


@dataclass(frozen=True)
class Choice:
    """Settings that one was chosen among.

    Attributes:
        compared: the cheapest first.
        taken: the one.
        reached: whether its bounds are above the target at every sigma.
        target: the agreement asked for.
    """

    compared: tuple[Compared, ...]
    taken: Compared
    reached: bool
    target: float

    def facts(self) -> dict[str, Any]:
        """What was chosen, for machines."""
        return {
            "sift": self.taken.setting.sift.model_dump(exclude_unset=True),
            "nfe_per_vote": self.taken.nfe,
            "agreement": self.taken.agreement,
            "lower_bound": self.taken.bound,
            "target": self.target,
            "reached": self.reached,
        }

    def images_needed(self) -> int | None:
        """Images that would show the target, were they as these; None where none would.

        They are for the setting that agrees most often, at its worst sigma.
        """
        best = max(self.compared, key=lambda c: (c.agreement, c.bound))
        number = sum(len(c.measured) for c in self.compared)
        alpha = (1.0 - CONFIDENCE) / number
        needed = [
            images_needed(m.agreeing, m.votes, alpha=alpha, target=self.target)
            for m in best.measured
        ]
        known = [n for n in needed if n is not None]
        return max(known) if len(known) == len(needed) else None


def mean_nfe(group: Sequence[Measured]) -> float:
    """Evaluations of a vote of a setting, mean over the sigmas."""
    return float(np.mean([m.nfe for m in group]))


def least_agreement(group: Sequence[Measured]) -> float:
    """Agreement of a setting at the sigma where it is least."""
    return min(m.agreement for m in group)


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


def promising(
    groups: Sequence[Sequence[Measured]], target: float, count: int = FINALISTS
) -> list[Setting]:
    """The settings that go on: by fronts of NFE and agreement, the first ones first.

    Settings that agree too rarely for the target at some sigma, beyond doubt, are left out, unless
    all do: then the one that agrees most often is left.

    Args:
        groups: a setting at each sigma, for each setting.
        target: the agreement asked for.
        count: of settings that go on, at most.
    """
    left = [group for group in groups if all(_may_reach(m, target) for m in group)]
    if not left:
        left = [max(groups, key=lambda g: (least_agreement(g), -mean_nfe(g)))]
    kept: list[Sequence[Measured]] = []
    while left and len(kept) < count:
        leading = front(left)
        names = {group[0].setting.name for group in leading}
        kept += _spread(leading, count - len(kept))
        left = [group for group in left if group[0].setting.name not in names]
    return [group[0].setting for group in kept]


def front(groups: Sequence[Sequence[Measured]]) -> list[Sequence[Measured]]:
    """Those that no other beats in both NFE and agreement, the cheapest first."""
    best: list[Sequence[Measured]] = []
    for group in sorted(groups, key=lambda g: (mean_nfe(g), -least_agreement(g))):
        if not best or least_agreement(group) > least_agreement(best[-1]):
            best.append(group)
    return best


def chosen(groups: Sequence[Sequence[Measured]], target: float) -> Choice:
    """The cheapest setting whose bounds are above the target at every sigma.

    Where there is none: the one that agrees most often, and ``reached`` is False.

    Args:
        groups: a setting at each sigma, for each setting.
        target: the agreement asked for.
    """
    compared = tuple(compare(groups))
    reaching = [c for c in compared if c.bound > target]
    if reaching:
        return Choice(compared, reaching[0], True, target)
    best = max(compared, key=lambda c: (c.agreement, c.bound, -c.nfe))
    return Choice(compared, best, False, target)


def compare(groups: Sequence[Sequence[Measured]]) -> list[Compared]:
    """Bounds for all settings at all sigmas at once; the cheapest setting first."""
    flat = [m for group in groups for m in group]
    table, votes = np.stack([m.agreeing for m in flat], axis=1), flat[0].votes
    lower = lower_bounds(table, votes, CONFIDENCE, len(flat)).tolist()
    low, high = (ends.tolist() for ends in intervals(table, votes, CONFIDENCE, len(flat)))
    found, at = [], 0
    for group in groups:
        part = slice(at, at + len(group))
        ends = tuple(zip(low[part], high[part], strict=True))
        found.append(Compared(tuple(group), tuple(lower[part]), ends))
        at += len(group)
    return sorted(found, key=lambda c: c.nfe)


def _may_reach(one: Measured, target: float) -> bool:
    _, high = intervals(one.agreeing[:, None], one.votes, HOPELESS, 1)
    return bool(high[0] >= target)


def _spread(leading: list[Sequence[Measured]], count: int) -> list[Sequence[Measured]]:
    """At most so many of a front, evenly, with its ends."""
    places = np.unique(np.linspace(0, len(leading) - 1, min(count, len(leading))).round())
    return [leading[int(i)] for i in places]
