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
from diffcert_ray.storage.done_units import DoneUnits, UnitGroup

Integers = npt.NDArray[np.int64]
FARTHEST_ERROR = 1e-6  # relative, of the distance of an image from the grid


@dataclass(frozen=True, eq=False)
class CountedVotes:
    """What is stored for each of R certificates, of the units that its n0 and n are made of."""

    select: Integers  # selection votes, [R]
    chosen: Integers  # the class that they choose, or ABSTAIN, [R]
    estimate: Integers  # estimation votes up to n, [R]
    n_a: Integers  # of them, for the chosen class, [R]
    n_b: Integers  # for the strongest other class, unresolved ones included, [R]
    look_row: Integers  # certificate of each of its units, in vote order, [L]
    look_k: Integers  # votes for the chosen class up to the unit's end, [L]
    look_n: Integers  # votes up to there, [L]


def counted_votes(
    done: DoneUnits, certificates: pd.DataFrame, *, n0: int, unit: int
) -> CountedVotes:
    """Count the stored votes of each certificate's image and sigma, as the run counts them."""
    rows = len(certificates)
    image_id, n = (certificates[c].to_numpy(np.int64) for c in ("image_id", "n"))
    out = CountedVotes(*(np.zeros(rows, np.int64) for _ in range(5)), *[np.zeros(0, np.int64)] * 3)
    looks = []
    for sigma in np.unique(certificates["sigma"].to_numpy()):
        (here,) = np.nonzero(certificates["sigma"].to_numpy() == sigma)
        if (group := done.groups.get((float(sigma), "select"))) is not None:
            of, units = _units_of(group, image_id[here], np.full(len(here), n0), unit)
            out.select[here] = _sum(of, _votes(group, units), len(here))
            out.chosen[here] = _leading(group, of, units, len(here))
        if (group := done.groups.get((float(sigma), "estimate"))) is not None:
            of, units = _units_of(group, image_id[here], n[here], unit)
            # Votes about another class are those of a driver of another numerics kind.
            asked = group.target[units] == ALL_CLASSES
            asked |= group.target[units] == out.chosen[here][of]
            of, units = of[asked], units[asked]
            out.estimate[here] = _sum(of, _votes(group, units), len(here))
            k = _votes_for(group, units, out.chosen[here][of])
            out.n_a[here] = _sum(of, k, len(here))
            out.n_b[here] = _strongest_other(group, of, units, out.chosen[here])
            before = np.cumsum(k) - k
            first = np.flatnonzero(np.diff(of, prepend=-1))
            within = before - np.repeat(before[first], np.diff(first, append=len(of)))
            looks.append((here[of], within + k, group.stop[units].astype(np.int64)))
    if not looks:
        return out
    return CountedVotes(
        out.select, out.chosen, out.estimate, out.n_a, out.n_b,
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


def _units_of(
    group: UnitGroup, image_id: Integers, votes: Integers, unit: int
) -> tuple[Integers, Integers]:
    """(certificate, unit) of each unit that an image's first ``votes`` votes are made of."""
    at = np.minimum(np.searchsorted(group.images, image_id), len(group.images) - 1)
    there = group.images[at] == image_id
    count = np.where(there, group.first[at + 1] - group.first[at], 0)
    of = np.repeat(np.arange(len(image_id)), count)
    units = _ranges(group.first[at], count)
    start, stop = group.start[units], group.stop[units]
    kept = (start % unit == 0) & (stop == np.minimum(start + unit, votes[of]))
    return of[kept], units[kept]


def _ranges(start: Integers, count: Integers) -> Integers:
    """start[0], start[0] + 1, ... count[0] of them, then those of the next."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - ends + count, count)


def _entries(group: UnitGroup, units: Integers) -> tuple[Integers, Integers, Integers]:
    """Position in ``units``, class and votes of each count of some units."""
    count = group.offsets[units + 1] - group.offsets[units]
    flat = _ranges(group.offsets[units], count)
    position = np.repeat(np.arange(len(units)), count)
    return position, group.classes[flat].astype(np.int64), group.counts[flat].astype(np.int64)


def _votes(group: UnitGroup, units: Integers) -> Integers:
    return (group.stop[units] - group.start[units]).astype(np.int64)


def _sum(of: Integers, values: Integers, rows: int) -> Integers:
    return np.bincount(of, values, minlength=rows).astype(np.int64)


def _votes_for(group: UnitGroup, units: Integers, klass: Integers) -> Integers:
    """Votes of each unit for the class given with it."""
    position, classes, counts = _entries(group, units)
    own = classes == klass[position]
    return _sum(position[own], counts[own], len(units))


def _by_class(
    group: UnitGroup, of: Integers, units: Integers
) -> tuple[Integers, Integers, Integers]:
    """Certificate, class and votes, summed over the units of a certificate."""
    position, classes, counts = _entries(group, units)
    low = int(classes.min(initial=0))
    span = int(classes.max(initial=0)) - low + 1
    keys, where = np.unique(of[position] * span + (classes - low), return_inverse=True)
    total = np.bincount(where.reshape(-1), counts, minlength=len(keys)).astype(np.int64)
    return keys // span, keys % span + low, total


def _leading(group: UnitGroup, of: Integers, units: Integers, rows: int) -> Integers:
    """The class with most votes, the lowest of those that tie; ABSTAIN where there is none."""
    row, klass, total = _by_class(group, of, units)
    row, klass, total = (part[klass != NOT_TARGET] for part in (row, klass, total))
    chosen = np.full(rows, ABSTAIN, np.int64)
    order = np.lexsort((klass, -total, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    chosen[row[first]] = klass[first]
    return chosen


def _strongest_other(group: UnitGroup, of: Integers, units: Integers, chosen: Integers) -> Integers:
    row, klass, total = _by_class(group, of, units)
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
    certificates: pd.DataFrame, votes: CountedVotes, *, n0: int, alpha: float, bound: str
) -> Iterator[Contradiction]:
    """Certificates that the stored votes do not bear out."""
    column = {name: certificates[name].to_numpy() for name in certificates.columns}
    n, n_a, predicted = column["n"], column["n_a"], column["predicted"]
    whole = (votes.select == n0) & (votes.estimate == n)
    yield from contradiction(
        ~whole,
        lambda row: (
            f"it rests on votes that are not stored: {votes.select[row]} + {votes.estimate[row]} "
            f"votes are there of {n0} + {n[row]}"
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


def odd_units(
    done: DoneUnits, *, classes: int, n0: int, n: int, unit: int, complete: bool, fixed: bool
) -> Iterator[str]:
    """Units that this run cannot have stored, one sentence for the first of each kind."""
    for (sigma, stream), group in done.groups.items():
        start, stop, target = (a.astype(np.int64) for a in (group.start, group.stop, group.target))
        most = n0 if stream == "select" else n
        ends = stream == "select" or fixed
        regular = (start % unit == 0) & (stop <= start + unit)
        if ends:
            regular &= (stop == start + unit) | (stop == most)
        open_to_all = stream == "select" or complete
        asked = (target == ALL_CLASSES) if open_to_all else (target >= 0) & (target < classes)
        known = (group.classes >= 0) & (group.classes < classes) | (group.classes == NOT_TARGET)
        of_entry = np.repeat(np.arange(len(group)), np.diff(group.offsets))
        named = np.ones(len(group), bool)
        named[of_entry[~known]] = False
        if not open_to_all:
            named[of_entry[(group.classes != NOT_TARGET) & (group.classes != target[of_entry])]] = (
                False
            )
        for wrong, why in (
            (ends & (stop > most), f"lie beyond the {most} that the run asks for"),
            (~regular, f"are no unit of {unit} votes"),
            (~asked, "have a target that the run does not ask about"),
            (~named, f"name a class that they could not be for (the run has {classes})"),
        ):
            rows = np.flatnonzero(wrong)
            if len(rows):
                row = int(rows[0])
                listed, counts = group.votes(row)
                yield (
                    f"{len(rows)} stored units {'are' if len(rows) > 1 else 'is'} none of this "
                    f"run's: {stream} votes {start[row]}:{stop[row]} of image "
                    f"{group.image_id[row]} at sigma {sigma:g} (target {target[row]}, classes "
                    f"{listed.tolist()}, counts {counts.tolist()}) {why}"
                )
