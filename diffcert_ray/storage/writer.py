"""Buffers finished rows and publishes them as parts, each by one atomic create."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.noted_kinds import note_kind
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import encode, part_name
from diffcert_ray.storage.schemas import (
    CertificateRow,
    LossRow,
    UnitRow,
    certificate_table,
    check_unit,
    loss_table,
    unit_table,
)

logger = logging.getLogger(__name__)

RETRY_S = 5.0


def writer_name(after: Iterable[str] = ()) -> str:
    """A random name, new for each start of a driver; later starts sort later.

    Args:
        after: names of writers whose parts sort before this one's, whatever the clock says.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(6)}"
    latest = max(after, default="")
    return name if name > latest else f"{latest}0{secrets.token_hex(6)}"


class Writer:
    """Stores rows of one driver; not for use by several threads.

    Rows wait in memory for at most `flush_s` while `flush` is called now and then. A part that
    could not be put is kept, with its name, and put again: the driver loses rows only by dying.

    Args:
        location: the run's folder.
        origin: whose votes its rows are.
        flush_s: how long rows may wait, seconds, >= 0.
        give_up_s: how long the store may stay unwritable before `flush` raises, seconds.
        clock: monotonic seconds.
        name: of this writer; by default a new one.
    """

    def __init__(
        self,
        location: Location,
        origin: Origin,
        *,
        flush_s: float = 30.0,
        give_up_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        self.name = name or writer_name()
        self.origin = origin
        self.bytes_written = 0
        self._flush_s = flush_s
        self._give_up_s = give_up_s
        self._clock = clock
        self._failing_since: float | None = None
        self._last_try = 0.0
        self._waiting_since: float | None = None
        self._location = location
        self._kinds: dict[str, Mapping[str, Any] | None] = {}  # None: noted
        self._units = Buffer(location, origin, "units", self.name, unit_table)
        self._losses = Buffer(location, origin, "losses", self.name, loss_table)
        self._certificates = Buffer(location, origin, "certificates", self.name, certificate_table)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Rows that are not stored yet."""
        return len(self._units) + len(self._losses) + len(self._certificates)

    @property
    def failing(self) -> bool:
        """Whether the last flush could not store its rows."""
        return self._failing_since is not None

    def meet_kind(self, kind: str, about: Mapping[str, Any]) -> None:
        """Take a numerics kind, which is noted before any row that is taken after it is stored."""
        if self.origin.notes_kinds:
            self._kinds.setdefault(kind, about)

    def add_units(self, rows: Iterable[UnitRow]) -> None:
        """Take complete units; a repeat of a stored one does no harm.

        Raises:
            ValueError: a unit is not complete; none of `rows` is taken.
        """
        rows = list(rows)
        for row in rows:
            check_unit(row)
        self._take(self._units, rows)

    def add_losses(self, rows: Iterable[LossRow]) -> None:
        """Take complete units of losses; a repeat of a stored one does no harm."""
        self._take(self._losses, list(rows))

    def add_certificates(self, rows: Iterable[CertificateRow]) -> None:
        """Take certificates."""
        self._take(self._certificates, list(rows))

    def flush(self, force: bool = False) -> bool:
        """Publish the waiting rows when they have waited long enough, or now; True if none is left.

        Raises:
            StoreError: the store is unwritable, with force at once, else for give_up_s. The rows
                are kept, and a later flush tries again.
        """
        now = self._clock()
        if not force and not self._due(now):
            return self.pending == 0
        self._last_try = now
        try:
            self._note_kinds()
            # Certificates last: one must never be stored without the votes that it rests on.
            for buffer in (self._units, self._losses, self._certificates):
                self.bytes_written += buffer.publish()
        except StoreError as error:
            since = now if self._failing_since is None else self._failing_since
            self._failing_since = since
            if force or now - since >= self._give_up_s:
                raise StoreError(
                    f"{error}. {self.pending} rows are not stored (unwritable for "
                    f"{now - since:.0f} s); what is stored stays good, and the same command "
                    "continues from it"
                ) from error
            logger.warning("%s rows wait in memory: %s", self.pending, error)
            return False
        self._failing_since = None
        self._waiting_since = None
        return True

    def _note_kinds(self) -> None:
        for kind, about in self._kinds.items():
            if about is not None:
                note_kind(self._location, self.origin, self.name, kind, about)
                self._kinds[kind] = None

    def close(self) -> None:
        """Publish everything; StoreError if that fails."""
        self.flush(force=True)

    def _take(self, buffer: "Buffer", rows: list[Any]) -> None:
        if rows and self._waiting_since is None:
            self._waiting_since = self._clock()
        buffer.rows.extend(rows)

    def _due(self, now: float) -> bool:
        if self._waiting_since is None:
            return False
        if self._failing_since is not None:
            return now - self._last_try >= min(RETRY_S, self._flush_s)
        return now - self._waiting_since >= self._flush_s


class Buffer:
    """The rows of one folder that wait to be stored, and the part being put."""

    def __init__(
        self,
        location: Location,
        origin: Origin,
        folder: str,
        writer: str,
        to_table: Callable[[list[Any]], pa.Table],
    ) -> None:
        self.rows: list[Any] = []
        self._location = location
        self._origin = origin
        self._folder = folder
        self._writer = writer
        self._to_table = to_table
        self._seq = 0
        self._part: bytes | None = None
        self._part_rows = 0

    def __len__(self) -> int:
        return len(self.rows) + self._part_rows

    def publish(self) -> int:
        """Put everything that waits, an earlier failed part first; the number of bytes put."""
        written = 0
        while self.rows or self._part is not None:
            if self._part is None:
                self._part = encode(self._to_table(self.rows), self._origin)
                self._part_rows, self.rows = len(self.rows), []
            self._put(part_name(self._folder, self._writer, self._seq, self._part), self._part)
            written += len(self._part)
            self._seq += 1
            self._part, self._part_rows = None, 0
        return written

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._location.create(name, data)
        except FileExistsError:
            # The name is ours alone: an earlier put of this part went through, its answer lost.
            if self._location.read(name) != data:
                raise StoreError(
                    f"{self._location.address}/{name} was changed by something else: parts are "
                    "never rewritten; move it away and run the same command again"
                ) from None
