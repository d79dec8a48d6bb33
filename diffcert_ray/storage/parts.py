"""One stored file of rows: its name, its bytes, and reading many of them at a time."""

import hashlib
import re
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.schemas import (
    ADDED_IN_2,
    PUBLISHED_KEY,
    SCHEMA_VERSION,
    VERSION_KEY,
)

READERS = 16  # files fetched at a time: enough to hide an object store's latency
PART_NAME = re.compile(r"^(?P<folder>.+)/part-(?P<writer>[^/]+)-(?P<seq>\d{6,})\.parquet$")


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
    """A file that should be there and whole, and is not."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class ReadPart:
    """A file's rows with its name and the unix time of its publication, microseconds."""

    name: str
    published_us: int
    table: pa.Table


def part_name(folder: str, writer: str, seq: int) -> str:
    """The name of a writer's part; names of one writer sort in the order of publication."""
    return f"{folder}/part-{writer}-{seq:06d}.parquet"


def missing_parts(names: Iterable[str]) -> list[str]:
    """Parts that a writer must have published before others: it numbers them without gaps.

    The names given are of parts that are stored, or were until a compaction took them over.
    """
    seen: dict[tuple[str, str], set[int]] = {}
    for name in names:
        match = PART_NAME.match(name)
        if match:
            seen.setdefault((match["folder"], match["writer"]), set()).add(int(match["seq"]))
    return sorted(
        part_name(folder, writer, seq)
        for (folder, writer), present in seen.items()
        for seq in set(range(max(present))) - present
    )


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a zstd Parquet file with page checksums."""
    stamp = {PUBLISHED_KEY: str(time.time_ns() // 1000).encode()}
    table = table.replace_schema_metadata((table.schema.metadata or {}) | stamp)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def decode(name: str, data: bytes, schema: pa.Schema, columns: Sequence[str]) -> ReadPart:
    """The rows of a file's bytes; strings come as dictionaries, to save memory.

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
    lacking = [c for c in columns if version < SCHEMA_VERSION and c in ADDED_IN_2]
    table = file.read(columns=[c for c in columns if c not in lacking], use_threads=False)
    for column in lacking:
        table = table.append_column(column, pa.array(np.zeros(table.num_rows)))
    table = table.select(list(columns))
    published_us = int(metadata.get(PUBLISHED_KEY, b"0"))
    return ReadPart(name, published_us, table.cast(reading_schema(schema, columns)))


def reading_schema(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema of decoded rows: the columns asked for, strings as dictionaries."""
    fields = [schema.field(column) for column in columns]
    kind = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([f.with_type(kind) if f.type == pa.string() else f for f in fields])


def read_files(
    location: Location, files: Collection[StoredFile], schema: pa.Schema, columns: Sequence[str]
) -> tuple[list[ReadPart], list[Damage], list[str]]:
    """Fetch and decode files, many at a time.

    Returns:
        The rows in the order of `files`, the damaged files, and the names of vanished ones.

    Raises:
        StoreError: the store cannot be read, or a file is of a later version.
    """

    def fetch(file: StoredFile) -> ReadPart | Damage | str:
        try:
            data = location.read(file.name)
        except FileNotFoundError:
            return file.name
        if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
            return Damage(file.name, f"{len(data)} bytes whose sha256 is not the manifest's")
        try:
            return decode(file.name, data, schema, columns)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            return Damage(file.name, f"{len(data)} bytes: {error}".strip().splitlines()[0])

    with ThreadPoolExecutor(READERS, thread_name_prefix="store-read") as pool:
        results = list(pool.map(fetch, files))
    return (
        [result for result in results if isinstance(result, ReadPart)],
        [result for result in results if isinstance(result, Damage)],
        [result for result in results if isinstance(result, str)],
    )
