"""Units of many certificates at once, and the votes in them, in flat arrays."""

import numpy as np
import numpy.typing as npt

from diffcert_ray.storage.done_units import UnitGroup

Integers = npt.NDArray[np.int64]


def units_of(
    group: UnitGroup, image_id: Integers, votes: Integers, unit: int
) -> tuple[Integers, Integers]:
    """(certificate, unit) of each unit that an image's first ``votes`` votes are made of."""
    at = np.minimum(np.searchsorted(group.images, image_id), len(group.images) - 1)
    there = group.images[at] == image_id
    count = np.where(there, group.first[at + 1] - group.first[at], 0)
    of = np.repeat(np.arange(len(image_id)), count)
    units = ranges(group.first[at], count)
    start, stop = group.start[units], group.stop[units]
    kept = (start % unit == 0) & (stop == np.minimum(start + unit, votes[of]))
    return of[kept], units[kept]


def ranges(start: Integers, count: Integers) -> Integers:
    """start[0], start[0] + 1, ... count[0] of them, then those of the next."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - ends + count, count)


def entries(group: UnitGroup, units: Integers) -> tuple[Integers, Integers, Integers]:
    """Position in ``units``, class and votes of each count of some units."""
    count = group.offsets[units + 1] - group.offsets[units]
    flat = ranges(group.offsets[units], count)
    position = np.repeat(np.arange(len(units)), count)
    return position, group.classes[flat].astype(np.int64), group.counts[flat].astype(np.int64)


def votes_of(group: UnitGroup, units: Integers) -> Integers:
    """Votes of each of some units."""
    return (group.stop[units] - group.start[units]).astype(np.int64)


def summed(of: Integers, values: Integers, rows: int) -> Integers:
    """Sum of the values of each row; ``of`` is the row of each value."""
    return np.bincount(of, values, minlength=rows).astype(np.int64)


def votes_for(group: UnitGroup, units: Integers, klass: Integers) -> Integers:
    """Votes of each unit for the class given with it."""
    position, classes, counts = entries(group, units)
    own = classes == klass[position]
    return summed(position[own], counts[own], len(units))


def by_class(
    group: UnitGroup, of: Integers, units: Integers
) -> tuple[Integers, Integers, Integers]:
    """Certificate, class and votes, summed over the units of a certificate."""
    position, classes, counts = entries(group, units)
    low = int(classes.min(initial=0))
    span = int(classes.max(initial=0)) - low + 1
    keys, where = np.unique(of[position] * span + (classes - low), return_inverse=True)
    total = np.bincount(where.reshape(-1), counts, minlength=len(keys)).astype(np.int64)
    return keys // span, keys % span + low, total
