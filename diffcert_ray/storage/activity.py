"""Who is writing into a run, and how fast, as its newest parts say.

`activity` judges a run from outside; `OtherWriters` notices, in a driver, another one that works on
the same images meanwhile.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.manifest import Manifests
from diffcert_ray.storage.parts import PART_NAME, ReadPart, StoredFile, read_files
from diffcert_ray.storage.schemas import LOSS_UNIT_KEY
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.stored_rows import SCHEMAS, loose_parts
from diffcert_ray.storage.superseded import read_superseded
from diffcert_ray.storage.writer import Writer

logger = logging.getLogger(__name__)

RECENT_S = 600.0  # before the newest part: what the rate rests on
PATIENCE_S = 120.0  # without a part, before a run is taken for abandoned
PATIENCE_GAPS = 3.0  # the same, in the longest of the recent gaps between parts


@dataclass(frozen=True)
class Write:
    """One part: when it was published (unix time, s), by which writer, with how many votes."""

    time: float
    writer: str
    votes: int


@dataclass(frozen=True)
class Activity:
    """What the newest parts say.

    Attributes:
        last_s: seconds since the newest part, by this machine's clock against the writer's; None
            where there is none (or all are compacted).
        writers: that published in the ten minutes before it.
        votes_per_s: stored in these, by all of them; None while a single part tells nothing.
        alive: whether somebody seems to be at work: a guess.
    """

    last_s: float | None
    writers: int
    votes_per_s: float | None
    alive: bool


def activity(writes: Sequence[Write], now: float) -> Activity:
    """Judge a run by its newest parts, in any order, at a unix time in s."""
    if not writes:
        return Activity(None, 0, None, alive=False)
    newest = max(write.time for write in writes)
    recent = sorted((w for w in writes if w.time >= newest - RECENT_S), key=lambda w: w.time)
    span = newest - recent[0].time
    votes = sum(write.votes for write in recent[1:])  # those of the first were cast before it
    gaps = [b.time - a.time for a, b in pairwise(recent)]
    patience = max([PATIENCE_S, *(PATIENCE_GAPS * gap for gap in gaps)])
    last_s = max(0.0, now - newest)
    return Activity(
        last_s=last_s,
        writers=len({write.writer for write in recent}),
        votes_per_s=votes / span if span > 0 and votes else None,
        alive=last_s <= patience,
    )


def newest_writes(store: RunStore, folder: str) -> list[Write]:
    """The parts of "units" or "losses", whose draws count as votes, that are not compacted."""
    listed = store.location.list(folder)
    superseded = read_superseded(store.location, store.origin)
    manifest = Manifests(store.location, store.origin).newest(superseded, skip_damaged=True)
    names = loose_parts(listed, manifest, folder)
    columns = LOSS_UNIT_KEY if folder == "losses" else ("start", "stop")
    files = [StoredFile(name) for name in names]
    parts, _, _ = read_files(store.location, files, SCHEMAS[folder], columns, store.origin)
    return [_write(part, folder) for part in parts]


def _write(part: ReadPart, folder: str) -> Write:
    rows = part.table.to_pandas()
    if folder == "losses":  # one row for each level and class
        rows = rows.drop_duplicates()
    match = PART_NAME.match(part.name)
    votes = int((rows["stop"] - rows["start"]).sum())
    return Write(part.published_us / 1e6, match["writer"] if match else part.name, votes)


class OtherWriters:
    """Says once for each other writer that it works on the same images: one of the two is in vain.

    Drivers with other images (``--images``) or sigmas share a run on purpose: nothing is said.

    Args:
        location: the run's folder; what it holds now is not looked at.
        folder: units or losses, which have no sigmas.
        own: the writer of this driver; while it cannot write, nobody looks.
        every_s: how often to look at most, seconds, since a look lists the folder.
    """

    def __init__(
        self,
        location: Location,
        folder: str,
        own: Writer,
        image_ids: Iterable[int],
        sigmas: Iterable[float],
        *,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._location, self._folder, self._own = location, folder, own
        self._images = frozenset(map(int, image_ids))
        self._sigmas = frozenset(sigmas)
        self._every_s, self._clock = every_s, clock
        self._looked_at = clock()
        self._seen = set(location.list(folder))
        self._said: set[str] = set()

    def look(self, *, now: bool = False) -> None:
        """Look for parts of other writers, if it is time; a store that is away is not an error."""
        early = self._clock() - self._looked_at < self._every_s
        if self._own.failing or (early and not now):
            return
        self._looked_at = self._clock()
        with contextlib.suppress(StoreError):
            names = set(self._location.list(self._folder)) - self._seen
            self._seen |= names
            for name in sorted(names):
                match = PART_NAME.match(name)
                if match and match["writer"] not in self._said | {self._own.name}:
                    self._compare(name, match["writer"])

    def _compare(self, name: str, writer: str) -> None:
        schema = SCHEMAS[self._folder]
        columns = [column for column in ("sigma", "image_id") if column in schema.names]
        file, origin = StoredFile(name), self._own.origin
        parts, _, _ = read_files(self._location, [file], schema, columns, origin)
        same: set[int] = set()
        for part in parts:
            rows = part.table.to_pandas()
            if "sigma" in columns:
                rows = rows[rows["sigma"].isin(self._sigmas)]
            same |= self._images.intersection(rows["image_id"].tolist())
        if same:
            self._said.add(writer)
            logger.warning(
                "another driver (writer %s) works on the same images of %s, %d of them in its last "
                "part: every result stays right, but work is done twice. End one of the two, or "
                "give each its own images (--images)",
                writer,
                self._location.address,
                len(same),
            )
