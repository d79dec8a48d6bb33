"""The stored votes behind many certificates at once, and certificates that they do not bear out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffcert_ray.certificates.recomputed import radius_of_bound, recomputed, sequential_agrees
from diffcert_ray.conventions import ABSTAIN, ALL_CLASSES, NOT_TARGET
from diffcert_ray.method.grid import rounding_radius, slack
from diffcert_ray.run.contradictions import Booleans, Contradiction, contradiction
from diffcert_ray.run.counted_selection import counted_selection
from diffcert_ray.run.unit_votes import Integers, by_class, summed, units_of, votes_for, votes_of
from diffcert_ray.storage.done_units import DoneUnits, UnitGroup

FARTHEST_ERROR = 1e-6  # relative, of the distance of an image from the grid


@dataclass(frozen=True, eq=False)
class CountedVotes:
    """What is stored for each of R certificates, of the units that its n0 and n are made of."""

    select: Integers  # selection votes that chose the class, or those that are there, [R]
    chosen: Integers  # the class that they choose, or ABSTAIN, [R]
    decided: Booleans  # whether the votes that choose it are all there, [R]
    estimate: Integers  # estimation votes up to n, [R]
    n_a: Integers  # of them, for the chosen class, [R]
    n_b: Integers  # for the strongest other class, unresolved ones included, [R]
    look_row: Integers  # certificate of each of its units, in vote order, [L]
    look_k: Integers  # votes for the chosen class up to the unit's end, [L]
    look_n: Integers  # votes up to there, [L]


def counted_votes(
    done: DoneUnits,
    certificates: pd.DataFrame,
    *,
    n0: int,
    unit: int,
    select: int | None = None,
    select_unit: int = 1,
) -> CountedVotes:
    """Count the stored votes of each certificate's image and sigma, as the run counts them.

    The keys are those of `VotesConfig`.
    """
    rows = len(certificates)
    image_id, n = (certificates[c].to_numpy(np.int64) for c in ("image_id", "n"))
    selected, abstained, estimated, n_a, n_b = (np.zeros(rows, np.int64) for _ in range(5))
    out = CountedVotes(
        selected, abstained + ABSTAIN, np.zeros(rows, np.bool_), estimated, n_a, n_b,
        *[np.zeros(0, np.int64)] * 3,
    )  # fmt: skip
    looks = []
    for sigma in np.unique(certificates["sigma"].to_numpy()):
        (here,) = np.nonzero(certificates["sigma"].to_numpy() == sigma)
        if (group := done.groups.get((float(sigma), "select"))) is not None:
            selection = counted_selection(
                group, image_id[here], n0=n0, unit=unit, select=select, select_unit=select_unit
            )
            out.select[here], out.chosen[here] = selection.used, selection.chosen
            out.decided[here] = selection.decided
        if (group := done.groups.get((float(sigma), "estimate"))) is not None:
            of, units = units_of(group, image_id[here], n[here], unit)
            # Votes about another class are those of a driver of another numerics kind.
            asked = group.target[units] == ALL_CLASSES
            asked |= group.target[units] == out.chosen[here][of]
            of, units = of[asked], units[asked]
            out.estimate[here] = summed(of, votes_of(group, units), len(here))
            k = votes_for(group, units, out.chosen[here][of])
            out.n_a[here] = summed(of, k, len(here))
            out.n_b[here] = _strongest_other(group, of, units, out.chosen[here])
            before = np.cumsum(k) - k
            first = np.flatnonzero(np.diff(of, prepend=-1))
            within = before - np.repeat(before[first], np.diff(first, append=len(of)))
            looks.append((here[of], within + k, group.stop[units].astype(np.int64)))
    if not looks:
        return out
    return CountedVotes(
        out.select, out.chosen, out.decided, out.estimate, out.n_a, out.n_b,
        *(np.concatenate(parts) for parts in zip(*looks, strict=True)),
    )  # fmt: skip


def counted_nfe(done: DoneUnits, certificates: pd.DataFrame) -> Integers:
    """Evaluations of all stored units of each certificate's image and sigma, int64 [R]."""
    sigma, image_id = (certificates[c].to_numpy() for c in ("sigma", "image_id"))
    total = np.zeros(len(certificates), np.int64)
    for (at, _), group in done.groups.items():
        each = np.add.reduceat(group.nfe, group.first[:-1]).astype(np.int64)
        image = np.minimum(np.searchsorted(group.images, image_id), len(group.images) - 1)
        own = (sigma == at) & (group.images[image] == image_id)
        total += np.where(own, each[image], 0)
    return total


def _strongest_other(group: UnitGroup, of: Integers, units: Integers, chosen: Integers) -> Integers:
    row, klass, total = by_class(group, of, units)
    strongest = np.zeros(len(chosen), np.int64)
    other = (klass != NOT_TARGET) & (klass != chosen[row])
    np.maximum.at(strongest, row[other], total[other])
    unresolved = klass == NOT_TARGET
    np.add.at(strongest, row[unresolved], total[unresolved])
    return strongest


@dataclass(frozen=True, eq=False)
class Limits:
    """What is said to be taken off p_low and off the radius of each certificate, [R]."""

    slack: npt.NDArray[np.float64]
    taken_off: npt.NDArray[np.float64]

    @classmethod
    def of(cls, certificates: pd.DataFrame) -> "Limits":
        """Of stored rows."""
        return cls(*(certificates[name].to_numpy() for name in ("slack", "taken_off")))


def off_contradictions(certificates: pd.DataFrame, dimensions: int) -> Iterator[Contradiction]:
    """Certificates off which less or more is taken than the run has to take.

    An image's own distance from the grid is only known with the image: 0 to that of the farthest
    point of a cell.

    Args:
        certificates: stored rows; nothing is taken off those of images that could not be read.
        dimensions: D, numbers in the noise of a vote; 0 where it is on no grid.
    """
    sigma, read = certificates["sigma"].to_numpy(), certificates["nfe"].to_numpy() > 0
    stated = Limits.of(certificates)
    sigmas, where = np.unique(sigma, return_inverse=True)
    slacks = np.array([slack(s, dimensions) for s in sigmas.tolist()])[where.reshape(-1)]
    expected = np.where(read, slacks, 0.0)
    least = np.where(read, rounding_radius(dimensions), 0.0)
    most = 2 * least * (1 + FARTHEST_ERROR)
    yield from contradiction(
        ~(stated.slack == expected),
        lambda row: f"slack is {stated.slack[row]}, the run's is {expected[row]}",
    )
    yield from contradiction(
        ~((stated.taken_off >= least) & (stated.taken_off <= most)),
        lambda row: (
            f"taken_off is {stated.taken_off[row]}, the run's is {least[row]}, and for images off "
            f"the grid at most {most[row]}"
        ),
    )


def vote_contradictions(
    certificates: pd.DataFrame, *, alpha: float, bound: str
) -> Iterator[Contradiction]:
    """Certificates that are not what their own counts give."""
    column = {name: certificates[name].to_numpy() for name in certificates.columns}
    counted = column["n"] > 0
    without = ~counted & ((column["p_low"] != 0) | (column["radius"] != 0) | (column["n_a"] != 0))
    yield from contradiction(
        without, lambda row: f"p_low {column['p_low'][row]} although it has no votes"
    )
    limits = Limits.of(certificates)
    p_low, radius = column["p_low"], column["radius"]
    if bound == "clopper-pearson":
        given = recomputed(
            column["n_a"], np.maximum(column["n"], 1), sigma=column["sigma"], alpha=alpha,
            bound=bound, slack=limits.slack, taken_off=limits.taken_off,
        )  # fmt: skip
        yield from contradiction(
            counted & ~given.p_low_agrees(p_low),
            lambda row: (
                f"p_low {p_low[row]}, but {column['n_a'][row]} of {column['n'][row]} votes give "
                f"{1 - given.q[row]}"
            ),
        )
    elif bound == "two-class":  # whose radius needs the votes of the other classes
        return
    else:
        q = np.clip(1.0 - p_low, 1e-300, 1.0)
        given = radius_of_bound(q, column["sigma"], limits.taken_off)
    yield from contradiction(
        counted & ~given.radius_agrees(radius, column["abstained"]),
        lambda row: (
            f"radius {radius[row]} (abstained {column['abstained'][row]}), but p_low "
            f"{p_low[row]} gives {max(given.radius[row] - given.taken_off[row], 0.0)}"
        ),
    )


def unborne(
    certificates: pd.DataFrame, votes: CountedVotes, *, alpha: float, bound: str
) -> Iterator[Contradiction]:
    """Certificates that the stored votes do not bear out."""
    column = {name: certificates[name].to_numpy() for name in certificates.columns}
    n, n_a, predicted = column["n"], column["n_a"], column["predicted"]
    n0_used = column["n0_used"]
    whole = votes.decided & (votes.estimate == n)
    yield from contradiction(
        ~whole,
        lambda row: (
            f"it rests on votes that are not stored: {votes.select[row]} + {votes.estimate[row]} "
            f"votes are there of {n0_used[row]} + {n[row]}"
        ),
    )
    yield from contradiction(
        whole & (n0_used != votes.select),
        lambda row: (
            f"n0_used is {n0_used[row]}, but its class is chosen by {votes.select[row]} selection "
            "votes"
        ),
    )
    yield from contradiction(
        whole & (predicted != ABSTAIN) & (predicted != votes.chosen),
        lambda row: f"predicted {predicted[row]}, but its votes chose {votes.chosen[row]}",
    )
    yield from contradiction(
        whole & ((n == 0) != (votes.chosen == ABSTAIN)),
        lambda row: f"n is {n[row]}, but its selection votes chose {votes.chosen[row]} (-1: none)",
    )
    counted = whole & (n > 0) & (votes.chosen != ABSTAIN)
    same = votes.n_a == n_a
    yield from contradiction(
        counted & ~same,
        lambda row: f"n_a is {n_a[row]}, but {votes.n_a[row]} stored votes are for its class",
    )
    counted &= same
    if bound == "two-class":
        yield from _two_class(column, votes, counted, alpha, Limits.of(certificates))
    elif bound == "sequential":
        yield from _sequential(column, votes, counted, alpha, Limits.of(certificates))


def _two_class(
    column: dict[str, np.ndarray],
    votes: CountedVotes,
    counted: Booleans,
    alpha: float,
    limits: Limits,
) -> Iterator[Contradiction]:
    p_low, radius = column["p_low"], column["radius"]
    n = np.maximum(column["n"], 1)
    given = recomputed(
        np.minimum(column["n_a"], n), n, sigma=column["sigma"], alpha=alpha, bound="two-class",
        n_b=np.minimum(votes.n_b, n), slack=limits.slack, taken_off=limits.taken_off,
    )  # fmt: skip
    wrong = ~given.p_low_agrees(p_low) | ~given.radius_agrees(radius, column["abstained"])
    yield from contradiction(
        counted & wrong,
        lambda row: (
            f"p_low {p_low[row]} and radius {radius[row]}, but {column['n_a'][row]} votes of "
            f"{n[row]}, and {votes.n_b[row]} for the next class, give {1 - given.q[row]} and "
            f"{max(given.radius[row] - given.taken_off[row], 0.0)}"
        ),
    )


def _sequential(
    column: dict[str, np.ndarray],
    votes: CountedVotes,
    counted: Booleans,
    alpha: float,
    limits: Limits,
) -> Iterator[Contradiction]:
    p_low = column["p_low"]
    q = np.clip(1.0 - p_low - limits.slack, 1e-300, 1.0)
    used = counted[votes.look_row]
    agrees = sequential_agrees(
        q, votes.look_row[used], votes.look_k[used], votes.look_n[used], alpha
    )
    yield from contradiction(
        counted & ~agrees,
        lambda row: (
            f"p_low {p_low[row]}, which is not what its votes give at the looks up to vote "
            f"{column['n'][row]}"
        ),
    )
