"""Joins many small parts into few large files that hold each row once.

A generation is a folder of files and, written last, its manifest; without the manifest readers
ignore the folder. A new generation keeps the files of the one before it and adds only what the
parts bring, so that its cost follows the new rows, not the run.
"""

import hashlib
import logging
import secrets
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.deliveries import Rows
from diffcert_ray.storage.manifest import FOLDER, FOLDERS, Manifest, Manifests
from diffcert_ray.storage.origin import checksum
from diffcert_ray.storage.parts import StoredFile, encode, is_like_part, read_files
from diffcert_ray.storage.schemas import (
    CERTIFICATE_KEY,
    LOSS_DECIDING_COLUMNS,
    UNIT_COUNT_COLUMNS,
)
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.stored_rows import SCHEMAS, StoredRows
from diffcert_ray.storage.superseded import read_superseded

logger = logging.getLogger(__name__)

COMPACT_AT = 2000  # loose parts at which a driver compacts when it starts
ROWS_PER_FILE = 1_000_000
ATTEMPTS = 3
DECIDING_COLUMNS = {
    "units": UNIT_COUNT_COLUMNS,
    "losses": LOSS_DECIDING_COLUMNS,
    "certificates": CERTIFICATE_KEY,
}


@dataclass(frozen=True)
class CompactionReport:
    """What a compaction did."""

    generation: int
    """Number of the generation that was written."""
    parts: int
    """Parts newly taken over."""
    rows: int
    """Rows newly written."""
    deleted: int
    """Source parts removed."""


def compact(store: RunStore, delete_sources: bool = False) -> CompactionReport:
    """Write the next generation of compacted files.

    Drivers may go on writing, and readers reading, meanwhile. With the store's on_damaged at
    "recompute", damaged parts are given up for good: later readers no longer report them.

    Args:
        store: the run.
        delete_sources: afterwards read every compacted file back, then delete the parts that the
            manifest names (damaged ones stay).

    Returns:
        What was done; nothing is written where no part is loose.

    Raises:
        StoreError: the store cannot be read or written, a part is damaged, deliveries differ, or
            other compactions kept publishing first.
    """
    for _ in range(ATTEMPTS):
        report = publish_next(store)
        if report is not None:
            break
        logger.warning("another compaction of %s was first, starting over", store.address)
    else:
        raise StoreError(
            f"other compactions of {store.address} published first {ATTEMPTS} times: let one of "
            "them run alone; nothing is lost"
        )
    if delete_sources:
        report = replace(report, deleted=delete_replaced(store))
    return report


def publish_next(store: RunStore) -> CompactionReport | None:
    """Write one generation; None if another compaction published the same number first."""
    manifests = Manifests(store.location, store.origin)
    # The number is fixed before anything is read: if another compaction publishes after this line,
    # it takes this number, and what was read here is thrown away.
    number = max([0, *manifests.generations()]) + 1
    superseded = read_superseded(store.location, store.origin)
    base = manifests.newest(superseded, store.on_damaged == "recompute")
    folder_name = f"{FOLDER}/{number:06d}-{secrets.token_hex(4)}"
    manifest = replace(base, generation=number)
    written: list[StoredFile] = []
    parts = 0
    differing = base.differing
    for folder in FOLDERS:
        rows = store.read_rows(folder, DECIDING_COLUMNS[folder])
        resolution = rows.resolve()
        rows = replace(rows, table=rows.table.schema.empty_table())  # frees its memory
        files = write_rows(store, rows, resolution.rows, f"{folder_name}/{folder}")
        written += files
        manifest = with_folder(manifest, rows, files)
        parts += len(set(manifest.sources[folder]) - set(base.sources[folder]))
        differing += resolution.differing
    if manifest == replace(base, generation=number):
        return CompactionReport(base.generation, 0, 0, 0)
    try:
        store.location.create(
            manifests.name(number), replace(manifest, differing=differing).to_json(store.origin)
        )
    except FileExistsError:
        discard(store, written)
        return None
    return CompactionReport(number, parts, sum(file.rows for file in written), 0)


def write_rows(store: RunStore, rows: StoredRows, counted: Rows, prefix: str) -> list[StoredFile]:
    """Write those rows that count and that no compacted file holds yet.

    Args:
        store: the run.
        rows: what was read to decide; only its files and their row numbers are used.
        counted: the rows that count, sorted by key.
        prefix: how the names of the new files begin.

    Returns:
        The new files, each sorted by key and made from about ROWS_PER_FILE rows of whole parts,
        so that memory does not grow with the run.
    """
    files: list[StoredFile] = []
    low = rows.compacted_files
    while low < len(rows.sources):
        first_row = rows.bounds[low - 1] if low else 0
        high = max(low + 1, bisect_right(rows.bounds, first_row + ROWS_PER_FILE))
        wanted = counted[(counted >= first_row) & (counted < rows.bounds[high - 1])] - first_row
        if len(wanted):
            table = read_parts(store, rows.folder, rows.sources[low:high]).take(pa.array(wanted))
            files.append(write_file(store, rows.folder, table, f"{prefix}-{len(files):04d}"))
        low = high
    return files


def read_parts(store: RunStore, folder: str, names: Sequence[str]) -> pa.Table:
    """All columns of the named parts, rows in the order of the names."""
    schema = SCHEMAS[folder]
    files = [StoredFile(name) for name in names]
    parts, damaged, vanished = read_files(store.location, files, schema, schema.names, store.origin)
    if damaged or vanished:
        raise StoreError(
            f"{[*map(str, damaged), *vanished][0]} in {store.address} was lost while it was being "
            "compacted: run the compaction again"
        )
    return pa.concat_tables([part.table for part in parts]).unify_dictionaries().combine_chunks()


def write_file(store: RunStore, folder: str, table: pa.Table, stem: str) -> StoredFile:
    """Store one compacted file; its name is the stem, then a checksum of its bytes."""
    schema = SCHEMAS[folder]
    data = encode(table.cast(schema).replace_schema_metadata(schema.metadata), store.origin)
    name = f"{stem}-{checksum(data)}.parquet"
    store.location.create(name, data)
    return StoredFile(name, hashlib.sha256(data).hexdigest(), table.num_rows)


def with_folder(manifest: Manifest, rows: StoredRows, files: list[StoredFile]) -> Manifest:
    """The manifest with what was read of one folder, and the files that were written of it."""
    folder = rows.folder
    lost = {damage.name for damage in (*rows.damaged, *rows.set_aside)}
    kept = tuple(file for file in manifest.files[folder] if file.name not in lost)
    read = rows.sources[rows.compacted_files :]
    given_up = {*manifest.given_up[folder], *(n for n in lost if is_like_part(n, folder))}
    given_up -= set(read)  # whole again
    sources = {*manifest.sources[folder], *read, *given_up}
    return replace(
        manifest,
        files={**manifest.files, folder: (*kept, *files)},
        sources={**manifest.sources, folder: tuple(sorted(sources))},
        given_up={**manifest.given_up, folder: tuple(sorted(given_up))},
    )


def discard(store: RunStore, files: list[StoredFile]) -> None:
    """Remove the files of a generation that was not published."""
    for file in files:
        store.location.delete(file.name)


def delete_replaced(store: RunStore) -> int:
    """Delete the parts that the newest manifest replaces; the number deleted."""
    superseded = read_superseded(store.location, store.origin)
    manifest = Manifests(store.location, store.origin).newest(superseded)
    deleted = 0
    for folder in FOLDERS:
        schema = SCHEMAS[folder]
        for file in manifest.files[folder]:  # one at a time: the rows are not needed, only proved
            _, damaged, vanished = read_files(
                store.location, [file], schema, schema.names, store.origin
            )
            if damaged or vanished:
                raise StoreError(
                    f"{file.name} in {store.address} cannot be read back: no source was deleted; "
                    'compact again with on_damaged="recompute"'
                )
    for folder in FOLDERS:
        doomed = set(manifest.sources[folder]) - set(manifest.given_up[folder])
        for name in store.location.list(folder):
            if name in doomed:
                store.location.delete(name)
                deleted += 1
    return deleted
