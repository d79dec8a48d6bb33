"""Stored units that a run cannot have stored: off its grid, beyond its votes, of other classes."""

from collections.abc import Iterator

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET
from diffcert_ray.storage.done_units import DoneUnits


def odd_units(
    done: DoneUnits,
    *,
    classes: int,
    n0: int,
    n: int,
    unit: int,
    complete: bool,
    fixed: bool,
    select: int | None = None,
    select_unit: int = 1,
) -> Iterator[str]:
    """Find units that this run cannot have stored.

    Args:
        done: all that are stored.
        classes: K.
        n0: as `VotesConfig`.
        n: as `VotesConfig`.
        unit: as `VotesConfig`.
        complete: estimation votes name their class.
        fixed: no start of the run may have asked for another n.
        select: as `VotesConfig`.
        select_unit: as `VotesConfig`.

    Yields:
        A sentence for the first of each kind.
    """
    for (sigma, stream), group in done.groups.items():
        start, stop, target = (a.astype(np.int64) for a in (group.start, group.stop, group.target))
        selects = stream == "select"
        most, each = n0 if selects else n, select_unit if selects and select is not None else unit
        ends = selects or fixed
        regular = (start % each == 0) & (stop <= start + each)
        if ends:
            regular &= (stop == start + each) | (stop == most)
        open_to_all = selects or complete
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
            (~regular, f"are no unit of {each} votes"),
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
