"""Parts of a run changed by somebody who knows the format: under a name that fits the new bytes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffcert_ray.storage.parts import part_name, part_number


def named_anew(part: Path, data: bytes) -> Path:
    """Put other bytes in place of a part, with their checksum in its name; the new path."""
    number = part_number(f"{part.parent.name}/{part.name}")
    assert number is not None
    part.unlink()
    part = part.parent.parent / part_name(*number, data)
    part.write_bytes(data)
    return part


def edited(part: Path, table: pa.Table) -> Path:
    """Put other rows in place of a part, said to be of the same run; the new path."""
    metadata = pq.read_schema(part).metadata | (table.schema.metadata or {})
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return named_anew(part, sink.getvalue().to_pybytes())


def copied_part(part: Path, writer: str, folder: Path | None = None) -> Path:
    """Copy a part as the first of another writer, into its own folder or another; the copy."""
    data = part.read_bytes()
    copy = (folder or part.parent) / Path(part_name("x", writer, 0, data)).name
    copy.write_bytes(data)
    return copy


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def unmarked(part: Path) -> Path:
    """Make a part one of the time before files said whose they are; the new path."""
    metadata = dict(pq.read_schema(part).metadata)
    del metadata[b"diffcert.votes_id"], metadata[b"diffcert.method_version"]
    pq.write_table(pq.read_table(part).replace_schema_metadata(metadata), part)
    old = part.with_name(part.stem.rpartition("-")[0] + ".parquet")
    return part.rename(old)
