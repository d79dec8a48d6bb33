"""The stored losses of a run, each unit once.

Losses are kept in parts like units, one row for each noise level and class, a unit's rows together
in one part. They are read whole: about 32 bytes a row in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.loss_work import LossUnit, UnitLosses
from diffcert_ray.storage.create_only import StoreError
from diffcert_ray.storage.parts import (
    PART_NAME,
    Damage,
    ReadPart,
    StoredFile,
    missing_parts,
    read_files,
    reading_schema,
)
from diffcert_ray.storage.schemas import LOSS_SCHEMA
from diffcert_ray.storage.store import RunStore

FOLDER = "losses"


@dataclass(frozen=True, eq=False)
class StoredLosses:
    """The units of losses in a store, each once, sorted by image and draws.

    Attributes:
        units: int64 [N, 3]: image_id, start, stop.
        sums: float64 [N, T, K].
        squares: float64 [N, T, K].
        nfe: int64 [N].
        seconds: float64 [N].
        differing: units for which other numerics kinds returned other sums.
    """

    units: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    nfe: NDArray[np.int64]
    seconds: NDArray[np.float64]
    differing: int

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
    """Read the losses of a run.

    Args:
        store: the run; its ``on_damaged`` decides about damaged parts.
        levels: T.
        classes: K.

    Returns:
        Each unit once, the first delivery where there are several.

    Raises:
        StoreError: a part is damaged (unless on_damaged is "recompute"), holds part of a unit, two
            deliveries of one numerics kind differ, or an image_id has two pixel hashes.
    """
    parts = _readable_parts(store)
    nothing = reading_schema(LOSS_SCHEMA, LOSS_SCHEMA.names).empty_table()
    table = pa.concat_tables([nothing, *(part.table for part in parts)]).unify_dictionaries()
    rows = levels * classes
    _check_whole_units(table, levels, classes, store.address)
    keys = np.stack(
        [_column(table, name)[::rows] for name in ("image_id", "start", "stop")], axis=1
    )
    sums, squares = (_column(table, c).reshape(-1, levels, classes) for c in ("sum", "sumsq"))
    kinds, hashes = (_codes(table, name)[::rows] for name in ("numerics", "image_sha"))
    nfe, seconds = (_column(table, c).reshape(-1, rows).sum(axis=1) for c in ("nfe", "seconds"))
    if not len(keys):
        return StoredLosses(keys, sums, squares, nfe, seconds, differing=0)
    _check_hashes(keys[:, 0], hashes, store.address)
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    same = _same_as(sums, squares, first[group])
    _check_kinds(keys, kinds, group, sums, squares, store.address)
    return StoredLosses(
        units=keys[first],
        sums=sums[first],
        squares=squares[first],
        nfe=nfe[first],
        seconds=seconds[first],
        differing=len(np.unique(group[~same])),
    )


def _readable_parts(store: RunStore) -> list[ReadPart]:
    """The parts in the order of their publication."""
    names = [name for name in store.location.list(FOLDER) if PART_NAME.match(name)]
    files = [StoredFile(name) for name in names]
    parts, damaged, vanished = read_files(store.location, files, LOSS_SCHEMA, LOSS_SCHEMA.names)
    damaged += [Damage(name, "missing") for name in [*missing_parts(names), *vanished]]
    if damaged and store.on_damaged == "refuse":
        raise StoreError(
            f"{len(damaged)} damaged files in {store.address}: "
            f"{', '.join(map(str, damaged[:3]))}. Restore them from a copy, or run again with "
            'on_damaged="recompute" (--recompute-damaged): their units are computed again'
        )
    return sorted(parts, key=lambda part: (part.published_us, part.name))


def _check_whole_units(table: pa.Table, levels: int, classes: int, address: str) -> None:
    rows = levels * classes
    place = _column(table, "level").astype(np.int64) * classes + _column(table, "class")
    whole = table.num_rows % rows == 0 and np.array_equal(
        place.reshape(-1, rows), np.broadcast_to(np.arange(rows), (table.num_rows // rows, rows))
    )
    if not whole:
        raise StoreError(
            f"the losses in {address} are not units of {levels} levels and {classes} classes: they "
            "belong to another configuration or were changed; use another run folder"
        )


def _check_hashes(image_id: NDArray[np.int64], hashes: NDArray[np.int64], address: str) -> None:
    pairs = np.unique(np.stack([image_id, hashes], axis=1), axis=0)
    clash = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if len(clash):
        raise StoreError(
            f"image_id {pairs[clash[0], 0]} has two pixel hashes in the losses of {address}: the "
            "dataset changed between two starts; use the same images, or another run folder"
        )


def _check_kinds(
    keys: NDArray[np.int64],
    kinds: NDArray[np.int64],
    group: NDArray[np.int64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    address: str,
) -> None:
    """Refuse two deliveries of one unit and one numerics kind that differ."""
    pairs = np.stack([group, kinds], axis=1)
    _, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    wrong = np.flatnonzero(~_same_as(sums, squares, first[inverse.reshape(-1)]))
    if len(wrong):
        image_id, start, stop = keys[wrong[0]]
        raise StoreError(
            f"{len(wrong)} deliveries of losses of one numerics kind differ in {address}, first "
            f"image {image_id} draws {start}:{stop}: find the faulty device (column device), then "
            "move its part out of the run"
        )


def _same_as(
    sums: NDArray[np.float64], squares: NDArray[np.float64], other: NDArray[np.int64]
) -> NDArray[np.bool_]:
    axes = (1, 2)
    same = (sums == sums[other]).all(axis=axes) & (squares == squares[other]).all(axis=axes)
    return np.asarray(same)


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def _codes(table: pa.Table, name: str) -> NDArray[np.int64]:
    values = np.asarray(table[name].cast(pa.string()).to_pylist(), dtype=str)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
