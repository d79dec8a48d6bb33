"""Which of several stored deliveries of the same rows counts.

A lost answer is computed again, so rows may be stored more than once. Each key counts once: the
first stored delivery. Two deliveries of one numerics kind must be equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.schemas import CERTIFICATE_KEY, LOSS_KEY, LOSS_UNIT_KEY, UNIT_KEY

Rows = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lists:
    """A list column as flat arrays: row i holds values[offsets[i]:offsets[i + 1]]."""

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Lists":
        """The lists of a column without nulls."""
        lengths = pc.list_value_length(column).to_numpy()
        offsets = np.zeros(len(column) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, pc.list_flatten(column).to_numpy())

    def equal(self, left: Rows, right: Rows) -> Booleans:
        """Whether row left[i] holds the same list as row right[i], for each i."""
        lengths = self.offsets[left + 1] - self.offsets[left]
        same: Booleans = lengths == self.offsets[right + 1] - self.offsets[right]
        pair = np.flatnonzero(same)
        lengths = lengths[pair]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        a = self.values[np.repeat(self.offsets[left[pair]], lengths) + within]
        b = self.values[np.repeat(self.offsets[right[pair]], lengths) + within]
        same[np.repeat(pair, lengths)[a != b]] = False
        return same


@dataclass(frozen=True)
class Resolution:
    """The rows that count, in the order of their keys, and how many units differ by kind."""

    rows: Rows
    differing: int


def resolve_units(table: pa.Table, source: Callable[[int], str]) -> Resolution:
    """Choose the delivery that counts for each unit: the first in the table.

    Args:
        table: at least UNIT_COUNT_COLUMNS, rows in the order in which they were stored.
        source: names the file of a row, for messages.

    Returns:
        The rows that count, and the number of units for which kinds returned other counts.

    Raises:
        StoreError: two deliveries of one kind differ, or one image_id has two pixel hashes.
    """
    if table.num_rows == 0:
        return Resolution(np.zeros(0, np.int64), 0)
    order, first = grouped(packed_keys(table, UNIT_KEY))
    check_images(table, order, source)
    rows = order[first]
    if len(rows) == len(order):
        return Resolution(rows, 0)
    group = np.cumsum(first) - 1
    repeated = order[~first]
    winners = rows[group[~first]]
    check_repeats(table, np.concatenate([winners, repeated]), source)
    differs = ~same_votes(table, winners, repeated)
    return Resolution(rows, len(np.unique(winners[differs])))


def resolve_losses(table: pa.Table, source: Callable[[int], str]) -> Resolution:
    """Choose the delivery that counts for each row of losses: the first in the table.

    A unit's rows lie in one part, so that all of them are of one delivery.

    Args:
        table: at least LOSS_DECIDING_COLUMNS, rows in the order in which they were stored.
        source: names the file of a row, for messages.

    Returns:
        The rows that count, and the number of units for which kinds returned other losses.

    Raises:
        StoreError: two deliveries of one kind differ, or one image_id has two pixel hashes.
    """
    if table.num_rows == 0:
        return Resolution(np.zeros(0, np.int64), 0)
    order, first = grouped(packed_keys(table, LOSS_KEY))
    check_images(table, order, source)
    rows = order[first]
    if len(rows) == len(order):
        return Resolution(rows, 0)
    values = [table[name].to_numpy() for name in ("sum", "sumsq")]

    def same(left: Rows, right: Rows) -> Booleans:
        return np.logical_and.reduce([column[left] == column[right] for column in values])

    by_kind, kind_first = grouped(packed_keys(table, (*LOSS_KEY, "numerics")))
    reference = by_kind[kind_first][np.cumsum(kind_first) - 1]
    wrong = np.flatnonzero(~same(reference, by_kind))
    if len(wrong):
        a, b = int(reference[wrong[0]]), int(by_kind[wrong[0]])
        image_id, start, stop = (table[name][a].as_py() for name in LOSS_UNIT_KEY)
        raise StoreError(
            f"stored deliveries of losses of one numerics kind differ, first of image {image_id} "
            f"draws {start}:{stop} in {source(a)} and {source(b)}: find the faulty device (column "
            "device), then move its part out of the run"
        )
    differs = order[~same(rows[np.cumsum(first) - 1], order)]
    return Resolution(rows, len(np.unique(packed_keys(table, LOSS_UNIT_KEY)[differs])))


def resolve_certificates(table: pa.Table) -> Resolution:
    """Choose the certificate that counts for each key: the last in the table."""
    if table.num_rows == 0:
        return Resolution(np.zeros(0, np.int64), 0)
    order, first = grouped(packed_keys(table, CERTIFICATE_KEY))
    last = np.append(first[1:], True)
    return Resolution(order[last], 0)


def check_repeats(table: pa.Table, rows: Rows, source: Callable[[int], str]) -> None:
    """Refuse two deliveries of one unit and one kind that differ.

    Args:
        table: units.
        rows: int64 [n], repeats of a key, in any order.
        source: row -> the file that it came from.
    """
    rows = np.unique(rows)  # ascending: still in the order of storage
    part = table.select([*UNIT_KEY, "numerics"]).take(pa.array(rows))
    order, first = grouped(packed_keys(part, (*UNIT_KEY, "numerics")))
    reference = rows[order[first]][np.cumsum(first) - 1]
    wrong = np.flatnonzero(~same_votes(table, reference, rows[order]))
    if not len(wrong):
        return
    a, b = int(reference[wrong[0]]), int(rows[order[wrong[0]]])
    key = {name: table[name][a].as_py() for name in UNIT_KEY}
    raise StoreError(
        f"{len(wrong)} stored deliveries of one numerics kind differ, first the unit {key}: "
        f"{votes_text(table, a)} in {source(a)}, {votes_text(table, b)} in {source(b)} (kind "
        f"{table['numerics'][a].as_py()}). Votes of one kind must be equal: find the faulty device "
        f"({source(b)} names it), then move the wrong part out of the run"
    )


def check_images(table: pa.Table, order: Rows, source: Callable[[int], str]) -> None:
    """Refuse two pixel hashes for one image_id.

    Args:
        table: units or losses.
        order: int64 [n], rows in the order of sigma and image_id.
        source: row -> the file that it came from.
    """
    image = table["image_id"].to_numpy()[order]
    sha = dense(table["image_sha"])[order]
    change = np.ones(len(order), bool)
    change[1:] = (image[1:] != image[:-1]) | (sha[1:] != sha[:-1])
    rows = order[change]
    pairs, index = np.unique(np.stack([image[change], sha[change]]), axis=1, return_index=True)
    clash = np.flatnonzero(pairs[0][1:] == pairs[0][:-1])
    if not len(clash):
        return
    a, b = int(rows[index[clash[0]]]), int(rows[index[clash[0] + 1]])
    raise StoreError(
        f"image_id {pairs[0][clash[0]]} has pixel hash {table['image_sha'][a].as_py()} in "
        f"{source(a)} and {table['image_sha'][b].as_py()} in {source(b)}: the dataset changed "
        "between two starts; use the same images, or another run folder"
    )


def same_votes(table: pa.Table, left: Rows, right: Rows) -> Booleans:
    """Whether the counts of rows left[i] and right[i] are equal.

    Args:
        table: units.
        left: rows, int64 [n].
        right: rows, int64 [n].
    """
    needed, inverse = np.unique(np.concatenate([left, right]), return_inverse=True)
    part = table.select(["classes", "counts"]).take(pa.array(needed))
    a, b = inverse[: len(left)], inverse[len(left) :]
    return Lists.of(part["classes"]).equal(a, b) & Lists.of(part["counts"]).equal(a, b)


def votes_text(table: pa.Table, row: int) -> str:
    """The counts of a row as text."""
    return str(dict(zip(table["classes"][row].as_py(), table["counts"][row].as_py(), strict=True)))


def grouped(keys: Rows) -> tuple[Rows, Booleans]:
    """Sort keys stably: the order, and where in it a new key begins."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order, first


def packed_keys(table: pa.Table, names: tuple[str, ...]) -> Rows:
    """One int64 per row that orders and tells apart rows as the named columns together do."""
    keys = np.zeros(table.num_rows, np.int64)
    size = 1
    for name in names:
        codes = dense(table[name])
        low = int(codes.min())
        span = int(codes.max()) - low + 1
        if size * span >= 2**62:  # renumber without holes: at most the number of rows each
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            codes = np.unique(codes, return_inverse=True)[1]
            size, low, span = table.num_rows, 0, table.num_rows
        keys *= span
        keys += codes
        keys -= low
        size *= span
    return keys


def dense(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Integers as they are; anything else as its rank among the column's values."""
    if pa.types.is_integer(column.type):
        values: npt.NDArray[Any] = column.to_numpy()
        return values
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().chunk(0)
    ranks = np.unique(np.asarray(array.dictionary.to_pylist()), return_inverse=True)[1]
    codes: npt.NDArray[Any] = ranks.astype(np.int64)[array.indices.to_numpy()]
    return codes
