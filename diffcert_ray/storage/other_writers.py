"""Notices another driver that stores rows of the same images into the same run meanwhile."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.parts import PART_NAME, StoredFile, read_files
from diffcert_ray.storage.schemas import LOSS_SCHEMA, UNIT_SCHEMA
from diffcert_ray.storage.writer import Writer

logger = logging.getLogger(__name__)

SCHEMAS = {"units": UNIT_SCHEMA, "losses": LOSS_SCHEMA}


class OtherWriters:
    """Says once for each other writer that it works on the same images: one of the two is in vain.

    Drivers with other images (``--images``) or sigmas share a run on purpose: nothing is said.

    Args:
        location: the run's folder; what it holds now is not looked at.
        folder: units or losses.
        own: the writer of this driver; while it cannot write, nobody looks.
        image_ids: the images of this driver.
        sigmas: their noise levels; losses have none.
        every_s: how often to look at most, seconds, since a look lists the folder.
        clock: monotonic seconds.
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
        """Look for parts of other writers, if it is time; a store that is away is not an error.

        Args:
            now: look at once.
        """
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
        parts, _, _ = read_files(self._location, [StoredFile(name)], schema, columns)
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
