"""The units that a run has already stored, with their counts, in flat arrays for a resume."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.deliveries import Lists, dense

Integers = npt.NDArray[Any]


@dataclass(frozen=True)
class UnitGroup:
    """The units of one sigma and stream, sorted by (image_id, start, stop, target).

    Unit i holds votes start[i]..stop[i]-1 of image image_id[i]; its counts are counts[o:p] for
    classes[o:p], o = offsets[i], p = offsets[i + 1]; it took nfe[i] evaluations and seconds[i].
    ``images`` are the distinct image ids, sorted; image j has the units first[j]..first[j + 1]-1.
    """

    image_id: npt.NDArray[np.int64]
    start: npt.NDArray[np.int32]
    stop: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    nfe: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_id)

    def rows(self, image_id: int) -> range:
        """The units of one image, in vote order; empty if it has none."""
        i = int(np.searchsorted(self.images, image_id))
        if i == len(self.images) or self.images[i] != image_id:
            return range(0)
        return range(int(self.first[i]), int(self.first[i + 1]))

    def votes(self, row: int) -> tuple[Integers, Integers]:
        """The classes and counts of one unit."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.classes[part], self.counts[part]


@dataclass(frozen=True)
class DoneUnits:
    """Stored units by (sigma, stream), and the pixel hash of each image that has any."""

    groups: dict[tuple[float, str], UnitGroup]
    image_sha: dict[int, str]

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups.values())

    @classmethod
    def from_table(cls, table: pa.Table) -> "DoneUnits":
        """Build from units sorted by UNIT_KEY, each key once; about 66 bytes for each unit."""
        if table.num_rows == 0:
            return cls({}, {})
        sigma, stream = table["sigma"].to_numpy(), dense(table["stream"])
        change = (sigma[1:] != sigma[:-1]) | (stream[1:] != stream[:-1])
        bounds = [0, *(np.flatnonzero(change) + 1).tolist(), table.num_rows]
        groups, images, rows = {}, [], []
        for low, high in pairwise(bounds):
            key = float(sigma[low]), str(table["stream"][low].as_py())
            group = groups[key] = unit_group(table.slice(low, high - low))
            images.append(group.images)
            rows.append(low + group.first[:-1])
        ids, index = np.unique(np.concatenate(images), return_index=True)
        shas = table["image_sha"].take(pa.array(np.concatenate(rows)[index])).to_pylist()
        return cls(groups, dict(zip(ids.tolist(), shas, strict=True)))


def check_counts(table: pa.Table, classes: Lists, counts: Lists) -> None:
    """Refuse units that no writer lets through, see ``schemas.check_unit``: changed since then.

    Args:
        table: units; at least image_id, start and stop.
        classes: of each, ascending.
        counts: votes for each of these.

    Raises:
        StoreError: a class stands twice, a count is negative, or they do not add up to the votes.
    """
    start, stop = (table[name].to_numpy().astype(np.int64) for name in ("start", "stop"))
    offsets, listed = counts.offsets, classes.values
    whole = (start >= 0) & (start < stop) & (np.diff(offsets) > 0)
    whole &= np.diff(offsets) == np.diff(classes.offsets)
    if whole.all():
        votes = np.add.reduceat(counts.values, offsets[:-1], dtype=np.int64)
        least = np.minimum.reduceat(counts.values, offsets[:-1])
        whole = (votes == stop - start) & (least >= 0)
        unordered = listed[1:] <= listed[:-1]
        unordered[offsets[1:-1] - 1] = False  # from one unit to the next
        whole[np.searchsorted(offsets, np.flatnonzero(unordered), side="right") - 1] = False
    if not whole.all():
        row = int(np.argmin(whole))
        part = slice(offsets[row], offsets[row + 1])
        raise StoreError(
            f"the stored unit of image {table['image_id'][row].as_py()} votes {start[row]}:"
            f"{stop[row]} has counts {counts.values[part].tolist()} for classes "
            f"{classes.values[part].tolist()}, which are not {stop[row] - start[row]} votes: its "
            "part was changed after it was written; restore it from a copy, or delete it and run "
            'again with on_damaged="recompute" (--recompute-damaged)'
        )


def unit_group(table: pa.Table) -> UnitGroup:
    """Flat arrays of the units of one sigma and stream; views of a table in one chunk."""
    classes, counts = Lists.of(table["classes"]), Lists.of(table["counts"])
    check_counts(table, classes, counts)
    image_id = table["image_id"].to_numpy()
    first = np.flatnonzero(np.append(True, image_id[1:] != image_id[:-1]))
    return UnitGroup(
        image_id=image_id,
        start=table["start"].to_numpy(),
        stop=table["stop"].to_numpy(),
        target=table["target"].to_numpy(),
        offsets=classes.offsets,
        classes=classes.values,
        counts=counts.values,
        nfe=table["nfe"].to_numpy(),
        seconds=table["seconds"].to_numpy(),
        images=image_id[first],
        first=np.append(first, len(image_id)),
    )
