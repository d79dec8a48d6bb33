"""Everything that a run has stored in one folder, repeats included, in the order that counts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

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
from diffcert_ray.storage.noted_kinds import KindCheck
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import (
    Damage,
    ReadPart,
    StoredFile,
    is_like_part,
    missing_parts,
    part_number,
    read_files,
    reading_schema,
)
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA, LOSS_SCHEMA, UNIT_SCHEMA
from diffcert_ray.storage.superseded import read_superseded

SCHEMAS = {"units": UNIT_SCHEMA, "losses": LOSS_SCHEMA, "certificates": CERTIFICATE_SCHEMA}


@dataclass(frozen=True)
class StoredRows:
    """Rows as stored, repeats included: compacted ones first, then parts in order of their names.

    Args:
        folder: units, losses or certificates.
        table: the rows.
        sources: names of the files that they come from, in order.
        bounds: row after the last of each file.
        compacted_files: of the sources, how many are compacted files; they come first.
        damaged: files that were left out.
        manifest: of the compaction that was read.
        set_aside: damaged files that were left out as a note or the manifest says.
        hint: what a message about the damage adds.
    """

    folder: str
    table: pa.Table
    sources: tuple[str, ...]
    bounds: tuple[int, ...]
    compacted_files: int
    damaged: tuple[Damage, ...]
    manifest: Manifest
    set_aside: tuple[Damage, ...] = ()
    hint: str = ""

    @property
    def compacted(self) -> int:
        """The rows that come from compacted files; they come first."""
        return self.bounds[self.compacted_files - 1] if self.compacted_files else 0

    def source(self, row: int) -> str:
        """The file of a row."""
        return self.sources[int(np.searchsorted(self.bounds, row, side="right"))]

    def standing(self) -> Resolution:
        """The rows that count, without certificates that were withdrawn; all columns are there."""
        resolution = self.resolve()
        if self.folder != "certificates":
            return resolution
        withdrawn = self.table["withdrawn"].to_numpy()
        return replace(resolution, rows=resolution.rows[~withdrawn[resolution.rows]])

    def withdrawing(self) -> set[str]:
        """The files that hold certificates' withdrawals."""
        return {self.source(int(row)) for row in np.flatnonzero(self.table["withdrawn"].to_numpy())}

    def resolve(self) -> Resolution:
        """The rows that count."""
        if self.folder == "units":
            return resolve_units(self.table, self.source)
        if self.folder == "losses":
            return resolve_losses(self.table, self.source)
        return resolve_certificates(self.table)


def read_once(
    location: Location, origin: Origin, folder: str, columns: Sequence[str], recompute: bool
) -> tuple[StoredRows, list[str]]:
    """Read a folder from one listing.

    Args:
        location: the run's folder.
        origin: of the run.
        folder: units, losses or certificates.
        columns: what to read.
        recompute: leave out damaged files and fall back on what else holds their rows.

    Returns:
        The rows, and the names of listed files that were gone when read.
    """
    superseded = read_superseded(location, origin)
    # The listing comes before the manifest: a part deleted in between is then named by it.
    listed = location.list(folder)
    manifest = Manifests(location, origin).newest(superseded, recompute)
    schema = SCHEMAS[folder]
    base, damaged, vanished = read_files(location, manifest.files[folder], schema, columns, origin)
    kinds = KindCheck(location, origin)
    base, strange = kinds.sorted_out(base)
    damaged += strange
    names = loose_parts(listed, manifest, folder)
    if damaged or vanished:  # what a lost compacted file held may still be in its sources
        names = [name for name in listed if is_like_part(name, folder)]
    files = [StoredFile(name) for name in names]
    parts, more_damaged, more_vanished = read_files(location, files, schema, columns, origin)
    damaged, vanished = [*damaged, *more_damaged], [*vanished, *more_vanished]
    foreign = {damage.name for damage in damaged if damage.foreign}
    own = [name for name in listed if name not in foreign]
    gone = set(missing_parts([*own, *manifest.sources[folder]])).difference(superseded.notes)
    if gone:  # or published while the folder was listed
        numbers = {part_number(name) for name in gone}
        now = set(location.list(folder)).difference(listed)
        late = [StoredFile(name) for name in sorted(now) if part_number(name) in numbers]
        found, hurt, lost = read_files(location, late, schema, columns, origin)
        parts, damaged, vanished = [*parts, *found], [*damaged, *hurt], [*vanished, *lost]
        come = {part_number(file.name) for file in late}
        gone = {name for name in gone if part_number(name) not in come}
    replaced = set(manifest.sources[folder]).difference(manifest.given_up[folder])
    parts, twins = without_twins(parts, replaced)
    parts, strange = kinds.sorted_out(parts)
    damaged += [*twins, *strange]
    superseded.refuse_whole(location, [part.name for part in (*base, *parts)])
    parts.sort(key=lambda part: part.name)  # never by time or content, which nothing fixes
    known = {*superseded.notes, *manifest.given_up[folder]}
    reported = [damage for damage in damaged if damage.name not in known]
    reported += [Damage(name, "missing") for name in sorted(gone)]
    rows = stored_rows(folder, columns, base, parts)
    aside = tuple(damage for damage in damaged if damage.name in known)
    return (
        StoredRows(*rows, tuple(reported), manifest, aside, superseded.hint()),
        [name for name in vanished if name not in known],
    )


def without_twins(
    parts: list[ReadPart], replaced: Iterable[str]
) -> tuple[list[ReadPart], list[Damage]]:
    """The parts whose number no other file has, and the others: writers number nothing twice."""
    names: dict[object, set[str]] = {}
    for name in (*(part.name for part in parts), *replaced):
        names.setdefault(part_number(name), set()).add(name)
    own = [part for part in parts if len(names[part_number(part.name)]) == 1]
    twins = [
        Damage(part.name, f"foreign: its number is that of {other} too", foreign=True)
        for part in parts
        for other in sorted(names[part_number(part.name)] - {part.name})[:1]
    ]
    return own, twins


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
    """The parts among a folder's listed files that the newest manifest does not replace.

    Those that a compaction gave up are among them: one that is whole again counts again.
    """
    replaced = set(manifest.sources[folder]) - set(manifest.given_up[folder])
    return [name for name in listed if is_like_part(name, folder) and name not in replaced]
