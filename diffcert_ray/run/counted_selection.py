"""The classes that the stored selection votes of many images choose, as `votes.selection` does."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import ABSTAIN, NOT_TARGET
from diffcert_ray.run.contradictions import Booleans
from diffcert_ray.run.unit_votes import Integers, by_class, entries, summed, units_of, votes_of
from diffcert_ray.storage.done_units import UnitGroup

AT_ONCE = 20_000  # images whose votes by class are in memory together


@dataclass(frozen=True, eq=False)
class CountedSelection:
    """What the selection votes of each of R images say."""

    used: Integers  # votes that chose, or those that are there, [R]
    chosen: Integers  # the class, or ABSTAIN, [R]
    decided: Booleans  # whether the votes that choose it are all there, [R]


def counted_selection(
    group: UnitGroup,
    image_id: Integers,
    *,
    n0: int,
    unit: int,
    select: int | None = None,
    select_unit: int = 1,
) -> CountedSelection:
    """Choose the class of each image.

    Args:
        group: selection units of one sigma.
        image_id: the images, [R]; an image may stand there more than once.
        n0: as `VotesConfig`.
        unit: as `VotesConfig`.
        select: as `VotesConfig`.
        select_unit: as `VotesConfig`.
    """
    most = np.full(len(image_id), n0)
    if select is None:
        of, units = units_of(group, image_id, most, unit)
        used = summed(of, votes_of(group, units), len(image_id))
        return CountedSelection(used, _leading(group, of, units, len(image_id)), used == n0)
    parts = []
    for low in range(0, max(len(image_id), 1), AT_ONCE):
        part = slice(low, low + AT_ONCE)
        of, units = units_of(group, image_id[part], most[part], select_unit)
        parts.append(_stopped(group, of, units, len(image_id[part]), n0, select))
    return CountedSelection(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _leading(group: UnitGroup, of: Integers, units: Integers, rows: int) -> Integers:
    """The class with most votes, the lowest of those that tie; ABSTAIN where there is none."""
    row, klass, total = by_class(group, of, units)
    row, klass, total = (part[klass != NOT_TARGET] for part in (row, klass, total))
    chosen = np.full(rows, ABSTAIN, np.int64)
    order = np.lexsort((klass, -total, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    chosen[row[first]] = klass[first]
    return chosen


def _stopped(
    group: UnitGroup, of: Integers, units: Integers, rows: int, n0: int, lead: int
) -> tuple[Integers, Integers, Booleans]:
    """(votes used, class, whether it is decided) of each image, by the rule of a lead."""
    used, decided = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
    chosen = np.full(rows, ABSTAIN, np.int64)
    votes = votes_of(group, units)
    before = np.cumsum(votes) - votes
    first = np.flatnonzero(np.diff(of, prepend=-1))
    repeats = np.diff(first, append=len(of))
    gapless = group.start[units] == before - np.repeat(before[first], repeats)
    turn = (np.arange(len(of)) - np.repeat(first, repeats))[gapless]
    of, units, votes = of[gapless], units[gapless], votes[gapless]

    entry, klass, counts = entries(group, units)
    entry, klass, counts = (part[klass != NOT_TARGET] for part in (entry, klass, counts))
    column, names = _columns(of[entry], klass, rows)
    total = np.zeros(names.shape, np.int64)
    unit_order, entry_order = (np.argsort(a, kind="stable") for a in (turn, turn[entry]))
    ends = np.arange(int(turn.max(initial=-1)) + 2)
    unit_ends = np.searchsorted(turn[unit_order], ends)
    entry_ends = np.searchsorted(turn[entry][entry_order], ends)
    for k in ends[:-1]:  # the units that come next, of all images at once
        here = unit_order[unit_ends[k] : unit_ends[k + 1]]
        here = here[~decided[of[here]]]
        if not len(here):
            break
        cast = entry_order[entry_ends[k] : entry_ends[k + 1]]
        cast = cast[~decided[of[entry[cast]]]]
        np.add.at(total, (of[entry[cast]], column[cast]), counts[cast])
        row = of[here]
        used[row] += votes[here]
        ranked = np.partition(total[row], -2, axis=1)
        done = row[(ranked[:, -1] - ranked[:, -2] >= lead) | (used[row] == n0)]
        decided[done] = True
        chosen[done] = names[done, np.argmax(total[done], axis=1)]
    return used, chosen, decided


def _columns(row: Integers, klass: Integers, rows: int) -> tuple[Integers, Integers]:
    """A column for each class of a row, ascending, and the class of each row's columns.

    Rows with fewer classes than others have columns of ABSTAIN, behind theirs.
    """
    pairs, where = np.unique(np.stack([row, klass]), axis=1, return_inverse=True)
    first = np.searchsorted(pairs[0], np.arange(rows))
    column = np.arange(pairs.shape[1]) - first[pairs[0]]
    names = np.full((rows, max(2, int(column.max(initial=0)) + 1)), ABSTAIN, np.int64)
    names[pairs[0], column] = pairs[1]
    return column[where.reshape(-1)], names
