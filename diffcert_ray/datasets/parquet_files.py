"""Parquet files by row group: footers read once, single columns of single row groups on demand."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles, RangeFile
from diffcert_ray.errors import DatasetError

TAIL_BYTES = 256 * 2**10  # of a file in the first request: statistics of images make long footers
KEPT_BYTES = 64 * 2**20  # of row groups in memory; at least one is kept, whatever its size
REQUESTS_AT_ONCE = 8
MAGIC = b"PAR1"

Ints = NDArray[np.int64]
Columns = str | tuple[str, ...]


@dataclass(frozen=True)
class _Footer:
    """What a file says of itself at its end."""

    name: str
    size: int
    metadata: Any
    sha256: str
    schema: Any


class RowGroups:
    """The row groups of several files, end to end; rows are numbered through all of them.

    Args:
        files: where they are.
        footers: of the files, in order.
        kept_bytes: how much of them may stay in memory.
    """

    def __init__(self, files: DataFiles, footers: list[_Footer], kept_bytes: int) -> None:
        self.files, self._kept_bytes, self._all = files, kept_bytes, footers
        footers = [file for file in footers if file.metadata.num_rows] or footers[:1]
        self._footers = footers  # an empty file says nothing, not even by its types
        self._groups = [
            (file, index) for file in footers for index in range(file.metadata.num_row_groups)
        ]
        sizes = [file.metadata.row_group(index).num_rows for file, index in self._groups]
        self._starts = np.cumsum([0, *sizes])
        self._kept: OrderedDict[tuple[int, Columns], Any] = OrderedDict()
        self._first_of_file = np.cumsum([0, *(file.metadata.num_rows for file in footers)])
        self.schema = footers[0].schema

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    @property
    def identity(self) -> str:
        """Names, sizes, row counts and footer hashes of the files."""
        facts = [(f.name, f.size, f.metadata.num_rows, f.sha256) for f in self._all]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def schemas(self) -> list[Any]:
        """The Arrow schema of each file."""
        return [file.schema for file in self._footers]

    @property
    def file_names(self) -> list[str]:
        """The path of each file, relative to the address."""
        return [file.name or self.files.address for file in self._footers]

    def types(self, column: str) -> list[Any]:
        """The Arrow type of a column in each file."""
        return [file.schema.field(column).type for file in self._footers]

    def files_of(self, rows: Ints) -> Ints:
        """The index of the file that each row is in."""
        return np.searchsorted(self._first_of_file, rows, side="right").astype(np.int64) - 1

    def place(self, row: int) -> str:
        """Where a row is, in words: its file and its number there."""
        file = int(self.files_of(np.array([row]))[0])
        return f"row {row - int(self._first_of_file[file])} of {self.file_names[file]}"

    def differing_columns(self, used: Collection[str]) -> list[str]:
        """Notes about columns that files do not have alike, but which are not used.

        Raises:
            DatasetError: a file lacks a column that is used.
        """
        notes, others = [], set[str]()
        for file, name in zip(self._footers, self.file_names, strict=True):
            if missing := [column for column in used if column not in file.schema.names]:
                raise DatasetError(
                    f"{name} has no column {missing[0]!r}, which {self.file_names[0]} has (it has "
                    f"{', '.join(file.schema.names[:8])}): give dataset.path and dataset.split the "
                    "files of one dataset only"
                )
            others |= {
                column
                for column in {*file.schema.names, *self.schema.names} - {*used}
                if column not in file.schema.names
                or column not in self.schema.names
                or file.schema.field(column).type != self.schema.field(column).type
            }
        if others:
            shown = ", ".join(map(repr, sorted(others)))
            notes.append(f"columns {shown} are not alike in all files; they are not used")
        return notes

    def locate(self, row: int) -> tuple[int, int]:
        """The row group that a row is in, and where it stands there."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def read(self, group: int, column: Columns) -> Any:
        """One column of one row group as an Arrow column; the last ones read are kept.

        Args:
            group: which one.
            column: its name, or those of some of its leaves, which are read together.
        """
        key = (group, column)
        if key not in self._kept:
            self._kept[key] = self._fetch(group, column)
            while len(self._kept) > 1 and self._bytes() > self._kept_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def values(self, column: str, rows: Ints | None = None) -> Any:
        """A column of small values: of all rows, or of some in their order; not kept."""
        if rows is None:
            rows = np.arange(self.rows)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        needed = np.unique(groups)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            parts = list(pool.map(lambda group: self._fetch(int(group), column), needed))
        if not parts:
            return pa.chunked_array([], self.schema.field(column).type)
        chunks = _of_one_type([chunk for part in parts for chunk in part.chunks])
        offsets = np.cumsum([0, *map(len, parts)])[np.searchsorted(needed, groups)]
        return pa.chunked_array(chunks).take(pa.array(offsets + rows - self._starts[groups]))

    def largest(self, column: str) -> int:
        """The largest value of a column of whole numbers, from statistics where there are any."""
        maxima = []
        for file, index in self._groups:
            group = file.metadata.row_group(index)
            chunks = (group.column(j) for j in range(group.num_columns))
            chunk = next(c for c in chunks if c.path_in_schema == column)
            if group.num_rows == 0:
                continue
            if not (chunk.is_stats_set and chunk.statistics.has_min_max):
                values = self.values(column).drop_null().to_numpy()
                return int(np.nanmax(values, initial=-1))
            maxima.append(chunk.statistics.max)
        return int(max(maxima, default=-1))

    def _bytes(self) -> int:
        return sum(column.nbytes for column in self._kept.values())

    def _fetch(self, group: int, column: Columns) -> Any:
        file, index = self._groups[group]
        source = RangeFile(self.files, file.name, file.size)
        try:
            columns = [column] if isinstance(column, str) else list(column)
            together = len(columns) > 1  # in one request, as they lie side by side
            with pq.ParquetFile(source, metadata=file.metadata, pre_buffer=together) as opened:
                table = opened.read_row_group(index, columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            if source.failed:  # the store, not the file
                raise
            raise DatasetError(
                f"{self.files.address}/{file.name} is damaged in row group {index} ({error}): "
                "write it again"
            ) from None
        return table.column(0)


def open_row_groups(files: DataFiles, sizes: dict[str, int]) -> RowGroups:
    """Read the footers of files, given their bytes by name in the order of their rows.

    Raises:
        DatasetError: one is no Parquet file.
    """
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        footers = list(pool.map(lambda item: _footer(files, *item), sizes.items()))
    return RowGroups(files, footers, KEPT_BYTES)


def _footer(files: DataFiles, name: str, size: int) -> _Footer:
    tail = files.read(name, max(0, size - TAIL_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little")
    if len(tail) < 12 or tail[-4:] != MAGIC or length + 12 > size:
        raise DatasetError(
            f"{files.address}/{name} is no Parquet file, or its end is missing: write it again"
        )
    if length + 8 > len(tail):
        tail = files.read(name, size - length - 8, size)
    footer = tail[-(length + 8) :]
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DatasetError(f"{files.address}/{name} has a damaged footer: {error}") from None
    return _Footer(name, size, metadata, hashlib.sha256(footer).hexdigest(), schema)


def _of_one_type(chunks: list[Any]) -> list[Any]:
    """Chunks of several files as one type: plain values in place of categories, the widest type.

    ArrowInvalid where there is none: who uses the column has compared the kinds.
    """
    plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in chunks]
    kinds = {chunk.type for chunk in plain}
    if len(kinds) < 2:
        return plain
    fields = [pa.schema([pa.field("", kind)]) for kind in kinds]
    if any(pa.types.is_boolean(kind) for kind in kinds):  # beside numbers
        kind = pa.float64() if any(map(pa.types.is_floating, kinds)) else pa.int64()
    elif any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds):
        kind = pa.large_binary()
    else:
        kind = pa.unify_schemas(fields, promote_options="permissive").field(0).type
    return [chunk.cast(kind) for chunk in plain]
