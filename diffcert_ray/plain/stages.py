"""Which losses come next, and when an image has all of them.

A pure state machine like `diffcert_ray.votes.stages`, without decisions: the number of draws is
fixed beforehand, and an image is finished when its last unit is in, in whatever order they came.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable

import numpy as np

from diffcert_ray.certificates.betting import UnitSums
from diffcert_ray.conventions import NO_SMOOTHING
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.plain.units import LossItem, LossResult, LossUnit, UnitLosses

Stored = Callable[[int], Iterable[UnitLosses]]


class ImageLosses:
    """The complete units of one image, added in any order."""

    def __init__(self, plan: PlainPlan, image_id: int) -> None:
        self.plan, self.image_id = plan, image_id
        self.sigma = NO_SMOOTHING
        self._units: dict[tuple[int, int], UnitLosses] = {}

    def add(self, losses: UnitLosses) -> None:
        """Take in a unit; one that is there already changes nothing."""
        self._units.setdefault((losses.unit.start, losses.unit.stop), losses)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Draws (start, stop) of the units that are not in."""
        return [r for r in self.plan.ranges if r not in self._units]

    @property
    def finished(self) -> bool:
        """Whether every unit is in."""
        return not self.missing

    @property
    def nfe(self) -> int:
        """Evaluations of the units that are in."""
        return sum(losses.nfe for losses in self._units.values())

    @property
    def seconds(self) -> float:
        """Worker time of the units that are in."""
        return sum(losses.seconds for losses in self._units.values())

    def unit_sums(self) -> UnitSums:
        """The losses [J, T, K] in the order of their draws.

        Raises:
            ValueError: a unit is missing: M draws were fixed beforehand, and missing is not random.
        """
        if self.missing:
            raise ValueError(
                f"image {self.image_id} lacks draws {self.missing[0]} and {len(self.missing) - 1} "
                "more units of those fixed beforehand: continue the run until it is complete"
            )
        units = [self._units[r] for r in self.plan.ranges]
        return UnitSums(
            np.stack([u.sums for u in units]),
            np.stack([u.squares for u in units]),
            np.array([u.unit.draws for u in units]),
        )


class LossStages:
    """Hands out items until every image of a plan has its losses.

    Args:
        stored: image_id -> complete units that exist already.
        certified: (NO_SMOOTHING, image_id) of images that need no draw any more.
    """

    def __init__(
        self,
        plan: PlainPlan,
        stored: Stored,
        *,
        certified: Collection[tuple[float, int]] = (),
    ) -> None:
        self.plan = plan
        todo = [i for i in plan.image_ids.tolist() if (NO_SMOOTHING, i) not in certified]
        self.images_done = len(plan.image_ids) - len(todo)
        self.votes_done = self.images_done * plan.draws
        self.votes_unused = 0  # every draw is needed
        self.finished_images: list[ImageLosses] = []
        self.nfe_per_vote = float(len(plan.s) * plan.classes)
        self._stored = stored
        self._todo = deque(todo)
        self._active: dict[int, ImageLosses] = {}
        self._ready: deque[LossUnit] = deque()
        self._in_flight: dict[int, LossItem] = {}
        self._next_item = 0

    @property
    def images_total(self) -> int:
        """Number of images."""
        return len(self.plan.image_ids)

    @property
    def votes_total(self) -> int:
        """Draws asked for."""
        return self.images_total * self.plan.draws

    @property
    def finished(self) -> bool:
        """Whether every image has its losses and nothing is under way."""
        return not (self._todo or self._active or self._in_flight)

    def all_stored(self) -> bool:
        """Whether no draw is needed any more: looks at images until one needs draws."""
        self._activate(1)
        return self.finished

    def take(self, nfe: float, workers: int = 1) -> LossItem | None:
        """The next item, of about ``nfe`` evaluations and at least one unit, or None if all is out.

        Args:
            nfe: size of the item in evaluations of the denoiser.
            workers: how many share the rest of the work: towards the end items get smaller.
        """
        units = max(1, int(nfe / (self.nfe_per_vote * self.plan.unit)))
        self._activate(2 * units * workers)
        units = min(units, max(1, len(self._ready) // (2 * workers)))
        if not self._ready:
            return None
        taken = tuple(self._ready.popleft() for _ in range(min(units, len(self._ready))))
        item = LossItem(self._next_item, taken)
        self._next_item += 1
        self._in_flight[item.item_id] = item
        return item

    def deliver(self, result: LossResult) -> list[UnitLosses]:
        """Returns the units that a result completes; a second delivery changes nothing."""
        if self._in_flight.pop(result.item_id, None) is None:
            return []
        for losses in result.tallies:
            self.votes_done += losses.votes
            image = self._active.get(losses.unit.image_id)
            if image is not None:
                image.add(losses)
                self._settle(image)
        return list(result.tallies)

    def abandon(self, item: LossItem) -> list[tuple[float, int]]:
        """Give up an item for good (quarantine); returns the (sigma, image_id) lost by it."""
        self._in_flight.pop(item.item_id, None)
        lost = sorted({unit.image_id for unit in item.units})
        for image_id in lost:
            self._active.pop(image_id, None)
        self._ready = deque(unit for unit in self._ready if unit.image_id not in lost)
        return [(NO_SMOOTHING, image_id) for image_id in lost]

    def _activate(self, units: int) -> None:
        """Bring in images until enough units are ready."""
        while self._todo and len(self._ready) < units:
            image = ImageLosses(self.plan, self._todo.popleft())
            wanted = set(self.plan.ranges)
            for losses in self._stored(image.image_id):
                if (losses.unit.start, losses.unit.stop) in wanted:
                    image.add(losses)
                    self.votes_done += losses.votes
            self._active[image.image_id] = image
            self._ready.extend(LossUnit(image.image_id, *r) for r in image.missing)
            self._settle(image)

    def _settle(self, image: ImageLosses) -> None:
        if image.finished:
            del self._active[image.image_id]
            self.images_done += 1
            self.finished_images.append(image)
