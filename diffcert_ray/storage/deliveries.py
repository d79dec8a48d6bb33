"""Which of several stored deliveries of the same rows counts.

A lost answer is computed again, so rows may be stored more than once. Each key counts once: what a
compaction took over, else the delivery in the part whose name sorts first. Two deliveries of one
numerics kind must be equal.
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
        table: at least UNIT_COUNT_COLUMNS, rows in the order that counts.
        source: names the file of a row, for messages.

    Returns:
        The rows that count, and the number of units for which kinds returned other counts.

    Raises:
        StoreError: two deliveries of one kind differ, or one image_id has two pixel hashes.
    """
    return first_deliveries(table, source, UNIT_KEY, UNIT_KEY, same_votes, votes_differ)


def resolve_losses(table: pa.Table, source: Callable[[int], str]) -> Resolution:
    """The same for each row of losses; the table has at least LOSS_DECIDING_COLUMNS.

    A unit's rows lie in one part, so that all of them are of one delivery.
    """
    return first_deliveries(table, source, LOSS_KEY, LOSS_UNIT_KEY, same_losses, losses_differ)


def first_deliveries(
    table: pa.Table,
    source: Callable[[int], str],
    key: tuple[str, ...],
    unit_key: tuple[str, ...],
    same: Callable[[pa.Table, Rows, Rows], Booleans],
    differ: Callable[[pa.Table, Rows, Rows, Callable[[int], str]], str],
) -> Resolution:
    """The first row of each key, after repeats have been compared with it.

    Args:
        table: rows in the order that counts.
        source: names the file of a row, for messages.
        key: columns that name a row.
        unit_key: columns that name the unit that a row is of.
        same: whether rows left[i] and right[i] hold the same.
        differ: the message about rows of one kind that do not, from both rows of each pair.
    """
    if table.num_rows == 0:
        return Resolution(np.zeros(0, np.int64), 0)
    order, first = grouped(packed_keys(table, key))
    check_images(table, order, source)
    rows = order[first]
    if len(rows) == len(order):
        return Resolution(rows, 0)
    winners, repeats = rows[np.cumsum(first) - 1][~first], order[~first]
    compared = np.unique(np.concatenate([winners, repeats]))  # ascending: in the order of storage
    part = table.select([*key, "numerics"]).take(pa.array(compared))
    by_kind, kind_first = grouped(packed_keys(part, (*key, "numerics")))
    others = compared[by_kind]
    references = others[kind_first][np.cumsum(kind_first) - 1]
    wrong = ~same(table, references, others)
    if wrong.any():
        raise StoreError(differ(table, references[wrong], others[wrong], source))
    by_kinds = repeats[~same(table, winners, repeats)]
    if not len(by_kinds):
        return Resolution(rows, 0)
    units = packed_keys(table.select(unit_key).take(pa.array(by_kinds)), unit_key)
    return Resolution(rows, len(np.unique(units)))


def resolve_certificates(table: pa.Table) -> Resolution:
    """Choose the certificate that counts for each key: the last in the table."""
    if table.num_rows == 0:
        return Resolution(np.zeros(0, np.int64), 0)
    order, first = grouped(packed_keys(table, CERTIFICATE_KEY))
    last = np.append(first[1:], True)
    return Resolution(order[last], 0)


def check_images(table: pa.Table, order: Rows, source: Callable[[int], str]) -> None:
    """Refuse two pixel hashes for one image_id in units or losses, given in the order of a key."""
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
    """Whether the counts of the units in rows left[i] and right[i] are equal."""
    needed, inverse = np.unique(np.concatenate([left, right]), return_inverse=True)
    part = table.select(["classes", "counts"]).take(pa.array(needed))
    a, b = inverse[: len(left)], inverse[len(left) :]
    return Lists.of(part["classes"]).equal(a, b) & Lists.of(part["counts"]).equal(a, b)


def same_losses(table: pa.Table, left: Rows, right: Rows) -> Booleans:
    """Whether the sums and the sums of squares of rows left[i] and right[i] are equal."""
    columns = [table[name].to_numpy() for name in ("sum", "sumsq")]
    return np.logical_and.reduce([column[left] == column[right] for column in columns])


def votes_differ(table: pa.Table, left: Rows, right: Rows, source: Callable[[int], str]) -> str:
    """The message about deliveries of one kind whose counts differ."""
    a, b = int(left[0]), int(right[0])
    key = {name: table[name][a].as_py() for name in UNIT_KEY}
    return (
        f"{len(left)} stored deliveries of one numerics kind differ, first the unit {key}: "
        f"{votes_text(table, a)} in {source(a)}, {votes_text(table, b)} in {source(b)} (kind "
        f"{table['numerics'][a].as_py()}). Votes of one kind must be equal: find the faulty device "
        f"({source(b)} names it), then move the wrong part out of the run"
    )


def losses_differ(table: pa.Table, left: Rows, right: Rows, source: Callable[[int], str]) -> str:
    """The message about deliveries of one kind whose losses differ."""
    a, b = int(left[0]), int(right[0])
    image_id, start, stop = (table[name][a].as_py() for name in LOSS_UNIT_KEY)
    return (
        f"stored deliveries of losses of one numerics kind differ, first of image {image_id} "
        f"draws {start}:{stop} in {source(a)} and {source(b)}: find the faulty device (column "
        "device), then move its part out of the run"
    )


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
