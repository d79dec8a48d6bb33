"""A run's folder: its document, its units and its certificates, local or on an object store."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from diffcert_ray.config import identity
from diffcert_ray.errors import StoreError
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.manifest import FOLDER as COMPACTED
from diffcert_ray.storage.manifest import Manifests
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import Damage, part_number
from diffcert_ray.storage.schemas import (
    CERTIFICATE_SCHEMA,
    LOSS_SCHEMA,
    UNIT_COUNT_COLUMNS,
    UNIT_SCHEMA,
)
from diffcert_ray.storage.stored_rows import (
    SCHEMAS,
    StoredRows,
    column_by_column,
    loose_parts,
    read_once,
)
from diffcert_ray.storage.superseded import read_superseded, store_superseded
from diffcert_ray.storage.writer import Writer, writer_name

logger = logging.getLogger(__name__)

RUN_DOCUMENT = "run.toml"
LISTINGS = 5  # readings from a fresh listing while compactions remove what was listed
SECRET_OPTIONS = ("key", "secret", "token", "password", "passwd", "credential")
OnDamaged = Literal["refuse", "recompute"]


@dataclass
class RunStore:
    """One run's folder. Made by `RunStore.create` or `RunStore.open`.

    Args:
        location: the folder.
        on_damaged: "refuse" a damaged or missing part, or "recompute": leave it out, so that its
            units count as missing.
    """

    location: Location
    on_damaged: OnDamaged = "refuse"
    differing: int = field(default=0, init=False)
    """Units of the last reading for which other kinds returned other counts."""
    damaged: tuple[Damage, ...] = field(default=(), init=False)
    """Files that the last reading left out."""
    _left_out: dict[str, Damage] = field(default_factory=dict, init=False, repr=False)
    _read: set[str] = field(default_factory=set, init=False, repr=False)
    _withdrawing: set[str] = field(default_factory=set, init=False, repr=False)
    _origin: Origin | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        address: str | Location,
        run_document: bytes,
        storage_options: Mapping[str, Any] | None = None,
        *,
        on_damaged: OnDamaged = "refuse",
    ) -> "RunStore":
        """Start a run: prove that the folder is writable, then write run.toml, once.

        Returns:
            The store; also where a driver started at the same moment wrote the same document.

        Raises:
            StoreError: the folder is unwritable, holds a run with another document, or rows of one
                whose document is gone.
            ValueError: the document contains a credential from the storage options.
        """
        refuse_secrets(run_document, storage_options or {})
        location = _located(address, storage_options)
        location.check_writable()
        refuse_orphans(location)
        try:
            location.create(RUN_DOCUMENT, run_document)
        except FileExistsError as error:
            if location.read(RUN_DOCUMENT) != run_document:
                raise StoreError(
                    f"{location.address} already holds another run: open it to continue, or give "
                    "another run folder"
                ) from error
        return cls(location, on_damaged)

    @classmethod
    def open(
        cls,
        address: str | Location,
        storage_options: Mapping[str, Any] | None = None,
        *,
        on_damaged: OnDamaged = "refuse",
    ) -> "RunStore":
        """Open a run that exists; StoreError if there is none, or it cannot be read."""
        store = cls(_located(address, storage_options), on_damaged)
        store.run_document()
        return store

    @staticmethod
    def exists(address: str | Location, storage_options: Mapping[str, Any] | None = None) -> bool:
        """Whether the folder holds a run."""
        return _located(address, storage_options).exists(RUN_DOCUMENT)

    @property
    def address(self) -> str:
        """Where the run is."""
        return self.location.address

    def run_document(self) -> bytes:
        """The bytes of run.toml; StoreError if there is no run."""
        try:
            return self.location.read(RUN_DOCUMENT)
        except FileNotFoundError as error:
            raise StoreError(
                f"no run at {self.address}: {RUN_DOCUMENT} is missing; check the address, or start "
                "a run there"
            ) from error

    @property
    def origin(self) -> Origin:
        """Whose votes the run holds, as its run.toml says."""
        if self._origin is None:
            self._origin = Origin.of_document(self.run_document())
        return self._origin

    def writer(
        self,
        flush_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        give_up_s: float = 300.0,
    ) -> Writer:
        """A writer with a random name, for one driver; close it at the end.

        Its certificates count although others with their keys were withdrawn, as far as this store
        has read or written that.
        """
        name = writer_name(after=self._withdrawing) if self._withdrawing else None
        return Writer(
            self.location,
            self.origin,
            name=name,
            flush_s=flush_s,
            give_up_s=give_up_s,
            clock=clock,
        )

    def units(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The stored units, each once, sorted by key; string columns are dictionaries.

        Raises:
            StoreError: a part is damaged (unless on_damaged is "recompute"), two deliveries of one
                numerics kind differ, or an image_id has two pixel hashes.
        """
        wanted = list(columns or UNIT_SCHEMA.names)
        needed = [n for n in UNIT_SCHEMA.names if n in {*wanted, *UNIT_COUNT_COLUMNS}]
        return self._resolved("units", needed).select(wanted)

    def done_units(self) -> DoneUnits:
        """The stored units with their counts, for planning and for resuming."""
        return DoneUnits.from_table(self.units((*UNIT_COUNT_COLUMNS, "nfe", "seconds")))

    def losses(self) -> pa.Table:
        """The stored losses of a run without votes, each row once, sorted by key."""
        return self._resolved("losses", LOSS_SCHEMA.names)

    def certificates(self) -> pa.Table:
        """The stored certificates, the last of each key by part names, sorted by key.

        A key whose last row is withdrawn has none.
        """
        return self._resolved("certificates", CERTIFICATE_SCHEMA.names)

    def loose_part_count(self) -> int:
        """Parts that no compaction has taken over; from 2,000 on, compact."""
        listed = {folder: self.location.list(folder) for folder in SCHEMAS}
        superseded = read_superseded(self.location, self.origin)
        manifests = Manifests(self.location, self.origin)
        manifest = manifests.newest(superseded, self.on_damaged == "recompute")
        return sum(len(loose_parts(names, manifest, f)) for f, names in listed.items())

    def supersede(self, writer: str) -> int:
        """Note what the readings left out as superseded: later readers open the run without it.

        Call it when everything that was missing is stored again.

        Args:
            writer: whose parts hold what was computed again.

        Returns:
            How many files that are; none of them is deleted.
        """
        for folder in SCHEMAS:
            if folder not in self._read:  # nobody needed it, but a compaction will read it
                self.read_rows(folder, ["image_id"])
        store_superseded(self.location, self.origin, self._left_out.values(), writer)
        for damage in self._left_out.values():
            logger.warning("set aside for good: %s/%s", self.address, damage)
        number = len(self._left_out)
        self._left_out.clear()
        return number

    def read_rows(self, folder: str, columns: Sequence[str]) -> StoredRows:
        """Read everything stored in units, losses or certificates, repeats included.

        Raises:
            StoreError: a part is damaged and on_damaged is "refuse", or a note says so of a whole
                one.
        """
        recompute = self.on_damaged == "recompute"
        for last in [False] * (LISTINGS - 1) + [True]:
            rows, vanished = read_once(self.location, self.origin, folder, columns, recompute)
            if last or not vanished:
                break
        damaged = (*rows.damaged, *(Damage(name, "missing") for name in vanished))
        self.damaged = damaged
        if damaged and not recompute:
            raise StoreError(self._refusal(damaged, rows.hint))
        for damage in damaged:
            logger.warning("left out the damaged file %s/%s", self.address, damage)
        self._read.add(folder)
        self._left_out |= {d.name: d for d in (*damaged, *rows.manifest.passed_over)}
        return replace(rows, damaged=damaged)

    def superseding_writer(self) -> Writer:
        """A writer whose certificates count instead of all that are stored now."""
        name = writer_name(map(_writer_of, self.location.list("certificates")))
        self._withdrawing.add(name)
        return Writer(self.location, self.origin, name=name)

    def _refusal(self, damaged: Sequence[Damage], hint: str) -> str:
        """The message about damaged or foreign files."""
        shown = ", ".join(str(damage) for damage in damaged[:3])
        foreign = all(damage.foreign for damage in damaged)
        what, remedy = "damaged files", "Restore them from a copy"
        if foreign:
            what, remedy = "foreign files", "Move them out of the run"
        elif any(damage.foreign for damage in damaged):
            what, remedy = "damaged or foreign files", f"{remedy} or move them out of the run"
        elif all(damage.kind for damage in damaged):
            what = "files with units of unknown numerics kinds"
            remedy = (
                "Restore the notes of these kinds from a copy, or move the files out of the run"
            )
        again = (
            ', or certify again with on_damaged="recompute" (--recompute-damaged): they are set '
            "aside for good, and what units are missing is computed again"
        )
        if self.origin.method_version not in (0, identity.METHOD_VERSION):
            again = "; this program cannot cast the run's votes again"
        return f"{len(damaged)} {what} in {self.address}: {shown}. {remedy}{again}.{hint}"

    def _resolved(self, folder: str, columns: Sequence[str]) -> pa.Table:
        rows = self.read_rows(folder, columns)
        resolution = rows.standing()
        if folder == "certificates":
            self._withdrawing |= set(map(_writer_of, rows.withdrawing())) - {""}
        self.differing = rows.manifest.differing + resolution.differing
        if is_sorted_range(resolution.rows, rows.table.num_rows):
            return rows.table
        table, wanted = rows.table, pa.array(resolution.rows)
        del rows  # column after column, and the unsorted one is let go
        waiting = dict(zip(columns, table.columns, strict=True))
        schema = table.schema
        del table
        return column_by_column(waiting, schema, lambda column: column.take(wanted))


def _writer_of(name: str) -> str:
    """The writer of a part; "" for other files, such as compacted ones, which sort before parts."""
    number = part_number(name)
    return number[1] if number else ""


def is_sorted_range(rows: np.ndarray, count: int) -> bool:
    """Whether rows are all of 0..count-1 in order, so that nothing need be copied."""
    return len(rows) == count and bool(np.array_equal(rows, np.arange(count)))


def refuse_orphans(location: Location) -> None:
    """Refuse rows without a run document: nothing says what their votes were cast with."""
    left = [name for folder in (*SCHEMAS, COMPACTED) for name in location.list(folder)]
    if left and not location.exists(RUN_DOCUMENT):  # else another driver has just begun the run
        raise StoreError(
            f"{location.address} has no {RUN_DOCUMENT}, but {len(left)} files of a run, first "
            f"{left[0]}: restore {RUN_DOCUMENT} to continue that run, or give another run folder"
        )


def refuse_secrets(document: bytes, storage_options: Mapping[str, Any]) -> None:
    """Refuse a run document that contains a credential of the storage options."""
    for name, value in storage_options.items():
        if isinstance(value, Mapping):
            refuse_secrets(document, value)
        elif (
            isinstance(value, str)
            and len(value) >= 4
            and any(word in name.lower() for word in SECRET_OPTIONS)
            and value.encode() in document
        ):
            raise ValueError(
                f"run.toml contains the value of the storage option {name!r}: leave storage "
                "options out of it; credentials are never written into a run"
            )


def _located(address: str | Location, storage_options: Mapping[str, Any] | None) -> Location:
    """One folder, one client: who starts a run looks at it many times."""
    return open_location(address, storage_options) if isinstance(address, str) else address
