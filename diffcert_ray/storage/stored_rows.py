"""Everything that a run has stored in one folder, repeats included, in the order that counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diffcert_ray.storage.deliveries import (
    Resolution,
    resolve_certificates,
    resolve_losses,
    resolve_units,
)
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.manifest import Manifest, Manifests
from diffcert_ray.storage.parts import (
    PART_NAME,
    Damage,
    ReadPart,
    StoredFile,
    missing_parts,
    read_files,
    reading_schema,
)
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA, LOSS_SCHEMA, UNIT_SCHEMA

SCHEMAS = {"units": UNIT_SCHEMA, "losses": LOSS_SCHEMA, "certificates": CERTIFICATE_SCHEMA}


@dataclass(frozen=True)
class StoredRows:
    """Rows as stored, repeats included: compacted ones first, then in order of publication.

    Args:
        folder: units, losses or certificates.
        table: the rows.
        sources: names of the files that they come from, in order.
        bounds: row after the last of each file.
        compacted_files: of the sources, how many are compacted files; they come first.
        damaged: files that were left out.
        manifest: of the compaction that was read.
    """

    folder: str
    table: pa.Table
    sources: tuple[str, ...]
    bounds: tuple[int, ...]
    compacted_files: int
    damaged: tuple[Damage, ...]
    manifest: Manifest

    @property
    def compacted(self) -> int:
        """The rows that come from compacted files; they come first."""
        return self.bounds[self.compacted_files - 1] if self.compacted_files else 0

    def source(self, row: int) -> str:
        """The file of a row."""
        return self.sources[int(np.searchsorted(self.bounds, row, side="right"))]

    def resolve(self) -> Resolution:
        """The rows that count."""
        if self.folder == "units":
            return resolve_units(self.table, self.source)
        if self.folder == "losses":
            return resolve_losses(self.table, self.source)
        return resolve_certificates(self.table)


def read_once(
    location: Location, folder: str, columns: Sequence[str], recompute: bool
) -> tuple[StoredRows, list[str]]:
    """Read a folder from one listing.

    Args:
        location: the run's folder.
        folder: units, losses or certificates.
        columns: what to read.
        recompute: leave out damaged files and fall back on what else holds their rows.

    Returns:
        The rows, and the names of listed files that were gone when read.
    """
    # The listing comes before the manifest: a part deleted in between is then named by it.
    listed = location.list(folder)
    manifest = Manifests(location).newest(recompute)
    schema = SCHEMAS[folder]
    base, damaged, vanished = read_files(location, manifest.files[folder], schema, columns)
    names = loose_parts(listed, manifest, folder)
    if damaged or vanished:  # what a lost compacted file held may still be in its sources
        names = [name for name in listed if PART_NAME.match(name)]
    gone = missing_parts([*listed, *manifest.sources[folder]])
    late = [name for name in gone if location.exists(name)]
    parts, more_damaged, more_vanished = read_files(
        location, [StoredFile(name) for name in [*names, *late]], schema, columns
    )
    parts.sort(key=lambda part: (part.published_us, part.name))
    lost = [Damage(name, "missing") for name in sorted(set(gone) - set(late))]
    rows = stored_rows(folder, columns, base, parts)
    return (
        StoredRows(*rows, (*damaged, *more_damaged, *lost), manifest),
        [*vanished, *more_vanished],
    )


def stored_rows(
    folder: str, columns: Sequence[str], base: list[ReadPart], parts: list[ReadPart]
) -> tuple[str, pa.Table, tuple[str, ...], tuple[int, ...], int]:
    """Join the rows of compacted files and parts, in this order; empties both lists.

    Column after column, and what was joined is let go: the rows are in memory once, not twice.
    """
    everything, compacted = [*base, *parts], len(base)
    base.clear()
    parts.clear()
    names = tuple(part.name for part in everything)
    bounds = tuple(np.cumsum([part.table.num_rows for part in everything]).tolist())
    schema = reading_schema(SCHEMAS[folder], columns)
    table = pa.concat_tables([schema.empty_table(), *(part.table for part in everything)])
    waiting = dict(zip(columns, table.columns, strict=True))
    del everything, table
    return folder, column_by_column(waiting, schema, _in_one_piece), names, bounds, compacted


def column_by_column(
    waiting: dict[str, pa.ChunkedArray],
    schema: pa.Schema,
    change: Callable[[pa.ChunkedArray], pa.ChunkedArray],
) -> pa.Table:
    """Change every column; each is let go, and taken out of ``waiting``, before the next.

    Nobody else should hold the waiting columns.
    """
    return pa.table({name: change(waiting.pop(name)) for name in list(waiting)}, schema=schema)


def _in_one_piece(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([column.unify_dictionaries().combine_chunks()])


def loose_parts(listed: Sequence[str], manifest: Manifest, folder: str) -> list[str]:
    """The parts among a folder's listed files that the newest manifest does not name."""
    taken = set(manifest.sources[folder])
    return [name for name in listed if PART_NAME.match(name) and name not in taken]
