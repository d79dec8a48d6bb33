"""One stored file of rows: its name, its bytes, and reading many of them at a time.

The name of a file ends in a checksum of its bytes. They are built before it is published, so that
name and bytes appear in one step.
"""

import hashlib
import re
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.origin import CHECKSUM_DIGITS, Origin, checksum
from diffcert_ray.storage.schemas import (
    LATER_COLUMNS,
    PUBLISHED_KEY,
    SCHEMA_VERSION,
    VERSION_KEY,
)

READERS = 16  # files fetched at a time: enough to hide an object store's latency
# As short a writer as fits: a checksum of digits alone is no number. Old names have no checksum; a
# star stands for an unknown one, of a part that is missing.
PART_NAME = re.compile(
    r"^(?P<folder>.+)/part-(?P<writer>[^/]+?)-(?P<seq>\d{6,})"
    rf"(?:-[0-9a-f]{{{CHECKSUM_DIGITS}}}|\*)?\.parquet$"
)
CHECKSUM = re.compile(rf"-([0-9a-f]{{{CHECKSUM_DIGITS}}})\.parquet$")


@dataclass(frozen=True)
class StoredFile:
    """A file to read; of a part, only the name is known beforehand.

    Args:
        name: relative to the run.
        sha256: of its bytes, or "".
        rows: their number, or -1.
    """

    name: str
    sha256: str = ""
    rows: int = -1


@dataclass(frozen=True)
class Damage:
    """A file that should be there and whole and is not, or one that should not be there.

    Args:
        name: relative to the run.
        reason: what is wrong with it.
        foreign: it is not of this run.
        kind: numerics kind of a unit in it that no note names, or "": once one does, it is whole.
    """

    name: str
    reason: str
    foreign: bool = False
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class ReadPart:
    """A file's rows with its name and the unix time of its publication, microseconds."""

    name: str
    published_us: int
    table: pa.Table


def part_name(folder: str, writer: str, seq: int, data: bytes) -> str:
    """The name of a writer's part; names of one writer sort in the order of publication."""
    return f"{folder}/part-{writer}-{seq:06d}-{checksum(data)}.parquet"


def is_like_part(name: str, folder: str) -> bool:
    """Whether a file of a folder is taken for a part: who put it there meant it to be read."""
    return name.startswith(f"{folder}/part-") and name.endswith(".parquet")


def part_number(name: str) -> tuple[str, str, int] | None:
    """Folder, writer and number of a part; None for other names."""
    match = PART_NAME.match(name)
    return (match["folder"], match["writer"], int(match["seq"])) if match else None


def missing_parts(names: Iterable[str]) -> list[str]:
    """Parts that a writer must have published before others: it numbers them without gaps.

    The names given are of parts that are stored, or were until a compaction took them over. Those
    returned have a star in place of the checksum, which nobody knows.
    """
    seen: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if number := part_number(name):
            seen.setdefault(number[:2], set()).add(number[2])
    return sorted(
        f"{folder}/part-{writer}-{seq:06d}*.parquet"
        for (folder, writer), present in seen.items()
        for seq in set(range(max(present))) - present
    )


def encode(table: pa.Table, origin: Origin) -> bytes:
    """A table as the bytes of a zstd Parquet file with page checksums, which says whose it is."""
    stamp = {PUBLISHED_KEY: str(time.time_ns() // 1000).encode(), **origin.metadata()}
    table = table.replace_schema_metadata((table.schema.metadata or {}) | stamp)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def decode(
    name: str, data: bytes, schema: pa.Schema, columns: Sequence[str], origin: Origin
) -> ReadPart | Damage:
    """The rows of a file's bytes; strings come as dictionaries, to save memory.

    Returns:
        The rows, or why they are not of this run.

    Raises:
        StoreError: the file was written by a later version of the program.
        OSError, pyarrow.ArrowException: the file is damaged.
    """
    strings = [column for column in columns if schema.field(column).type == pa.string()]
    file = pq.ParquetFile(
        pa.BufferReader(data), read_dictionary=strings, page_checksum_verification=True
    )
    metadata = file.schema_arrow.metadata or {}
    version = int(metadata.get(VERSION_KEY, b"/0").rpartition(b"/")[2])
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{name} has schema version {version}, this program knows {SCHEMA_VERSION}: upgrade "
            "diffcert_ray to continue this run"
        )
    if why := origin.why_foreign(metadata):
        return Damage(name, why, foreign=True)
    table = _read_columns(file, schema, columns, version)
    table = table.select(list(columns)).cast(reading_schema(schema, columns))
    return ReadPart(name, int(metadata.get(PUBLISHED_KEY, b"0")), table)


def _read_columns(
    file: pq.ParquetFile, schema: pa.Schema, columns: Sequence[str], version: int
) -> pa.Table:
    """The columns of a file, and those that files of its version of the schema lack, filled in."""
    there = file.schema_arrow.names
    later = {c: LATER_COLUMNS[c] for c in columns if c in LATER_COLUMNS and c not in there}
    filled = {c: value for c, (since, value) in later.items() if version < since}
    copied = {c: value[0] for c, value in filled.items() if isinstance(value, tuple)}
    wanted = [c for c in columns if c not in filled]
    table = file.read(columns=list(dict.fromkeys([*wanted, *copied.values()])), use_threads=False)
    for name, value in filled.items():
        cells = (
            table[copied[name]]
            if name in copied
            else pa.array([value] * table.num_rows, schema.field(name).type)
        )
        table = table.append_column(schema.field(name), cells)
    return table


def reading_schema(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema of decoded rows: the columns asked for, strings as dictionaries."""
    fields = [schema.field(column) for column in columns]
    kind = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([f.with_type(kind) if f.type == pa.string() else f for f in fields])


def read_files(
    location: Location,
    files: Collection[StoredFile],
    schema: pa.Schema,
    columns: Sequence[str],
    origin: Origin,
) -> tuple[list[ReadPart], list[Damage], list[str]]:
    """Fetch, check and decode files, many at a time.

    Returns:
        The rows in the order of `files`, the damaged and foreign files, and the names of vanished
        ones.

    Raises:
        StoreError: the store cannot be read, or a file is of a later version.
    """

    def fetch(file: StoredFile) -> ReadPart | Damage | str:
        try:
            data = location.read(file.name)
        except FileNotFoundError:
            return file.name
        if damage := checked(file, data, origin):
            return damage
        try:
            return decode(file.name, data, schema, columns, origin)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            return Damage(file.name, f"{len(data)} bytes: {error}".strip().splitlines()[0])

    with ThreadPoolExecutor(READERS, thread_name_prefix="store-read") as pool:
        results = list(pool.map(fetch, files))
    return (
        [result for result in results if isinstance(result, ReadPart)],
        [result for result in results if isinstance(result, Damage)],
        [result for result in results if isinstance(result, str)],
    )


def checked(file: StoredFile, data: bytes, origin: Origin) -> Damage | None:
    """What is wrong with the bytes of a file, by its name and by the manifest that names it."""
    stated = CHECKSUM.search(file.name)
    if not file.sha256 and not PART_NAME.match(file.name):
        return Damage(file.name, "foreign: its name is no part's", foreign=True)
    if not stated and not origin.unmarked:
        return Damage(file.name, "foreign: its name has no checksum", foreign=True)
    if stated and checksum(data) != stated[1]:
        return Damage(file.name, f"{len(data)} bytes whose checksum is not the name's")
    if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
        return Damage(file.name, f"{len(data)} bytes whose sha256 is not the manifest's")
    return None
