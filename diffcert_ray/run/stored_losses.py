"""The stored losses of a run, each unit once.

Losses are kept in parts and compacted like units, one row for each noise level and class, a unit's
rows together in one part. They are read whole: about 32 bytes a row in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.errors import StoreError
from diffcert_ray.plain.units import LossUnit, UnitLosses
from diffcert_ray.storage.store import RunStore


@dataclass(frozen=True, eq=False)
class StoredLosses:
    """The units of losses in a store, each once, sorted by image and draws."""

    units: NDArray[np.int64]  # [N, 3]: image_id, start, stop
    sums: NDArray[np.float64]  # [N, T, K]
    squares: NDArray[np.float64]  # [N, T, K]
    nfe: NDArray[np.int64]  # [N]
    seconds: NDArray[np.float64]  # [N]
    differing: int  # units for which other numerics kinds returned other sums
    image_sha: Mapping[int, str]  # of the pixels of each image that has any
    numerics: NDArray[np.object_]  # kind of each, [N]

    def of(self, image_id: int) -> list[UnitLosses]:
        """The stored units of one image in the order of their draws."""
        low, high = np.searchsorted(self.units[:, 0], [image_id, image_id + 1])
        return [
            UnitLosses(
                LossUnit(*map(int, self.units[row])),
                self.sums[row],
                self.squares[row],
                int(self.nfe[row]),
                float(self.seconds[row]),
            )
            for row in range(low, high)
        ]

    def draws_held(self) -> Callable[[float, int], tuple[int, int]]:
        """(sigma, image_id) -> (0, stored draws): there is neither smoothing nor selection."""
        images, group = np.unique(self.units[:, 0], return_inverse=True)
        counts = np.bincount(group.reshape(-1), self.units[:, 2] - self.units[:, 1]).astype(int)
        held = dict(zip(images.tolist(), counts.tolist(), strict=True))
        return lambda sigma, image_id: (0, held.get(image_id, 0))


def read_losses(store: RunStore, levels: int, classes: int) -> StoredLosses:
    """Read the losses of a run, each unit once: the first delivery where there are several.

    Raises:
        StoreError: a part is damaged (unless on_damaged is "recompute"), holds part of a unit, two
            deliveries of one numerics kind differ, or an image_id has two pixel hashes.
    """
    table = store.losses()
    rows = levels * classes
    _check_whole_units(table, levels, classes, store.address)
    units = [_column(table, name)[::rows] for name in ("image_id", "start", "stop")]
    sums, squares = (_column(table, c).reshape(-1, levels, classes) for c in ("sum", "sumsq"))
    nfe, seconds = (_column(table, c).reshape(-1, rows).sum(axis=1) for c in ("nfe", "seconds"))
    keys = np.stack(units, axis=1).astype(np.int64)
    images, first = np.unique(keys[:, 0], return_index=True)
    shas = table["image_sha"].take(pa.array(first * rows)).to_pylist()
    image_sha = dict(zip(images.tolist(), shas, strict=True))
    kinds = table["numerics"].take(pa.array(np.arange(len(keys)) * rows)).to_pylist()
    numerics = np.array(kinds, np.object_)
    return StoredLosses(keys, sums, squares, nfe, seconds, store.differing, image_sha, numerics)


def _check_whole_units(table: pa.Table, levels: int, classes: int, address: str) -> None:
    rows = levels * classes
    cell = _column(table, "level").astype(np.int64) * classes + _column(table, "class")
    whole = table.num_rows % rows == 0 and np.array_equal(
        cell.reshape(-1, rows), np.broadcast_to(np.arange(rows), (table.num_rows // rows, rows))
    )
    for name in ("image_id", "start", "stop"):  # of one unit, not of two halves
        if whole:
            key = _column(table, name).reshape(-1, rows)
            whole = bool((key == key[:, :1]).all())
    if not whole:
        raise StoreError(
            f"the losses in {address} are not units of {levels} levels and {classes} classes: they "
            "belong to another configuration or were changed; use another run folder"
        )


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())
