"""What comes next: selection, then estimation; sift, then refine; when an image has enough votes.

A pure state machine: it hands out items and takes in results, in any order, and knows nothing of
workers, files or time. What it has in memory is the images under way, not the dataset.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from diffcert_ray.votes.image import ImageVotes, Plan, UnitCounts
from diffcert_ray.votes.units import (
    Item,
    OpenVotes,
    Part,
    Result,
    Unit,
    join_open_votes,
    split_open_votes,
)

Stored = Callable[[float, int], Iterable[UnitCounts]]

AHEAD = 0.25  # of a sequential image's votes: how many more it is given before its next looks


@dataclass
class _Cost:
    """Mean evaluations per vote, from what has been seen (a guess counts as one vote)."""

    nfe: float
    votes: float = 1.0

    def add(self, nfe: int, votes: int) -> None:
        self.nfe += nfe
        self.votes += votes

    @property
    def mean(self) -> float:
        return max(self.nfe / self.votes, 1.0)


@dataclass
class SettledUnit:
    """A unit whose votes are all in, as it is to be stored, and who cast them."""

    counted: UnitCounts
    workers: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    numerics: set[str] = field(default_factory=set)


@dataclass
class _Stretch:
    """Units of one image and stream that no item has yet; units are made when they are given out.

    ``ranges`` are (start, stop) of the units, the next one last; votes before ``begun`` are out.
    """

    sigma: float
    image_id: int
    stream: str
    target: int
    ranges: list[tuple[int, int]]
    begun: int = 0

    @property
    def votes(self) -> int:
        """Votes that are left."""
        whole = sum(stop - start for start, stop in self.ranges)
        return whole - max(0, self.begun - self.ranges[-1][0]) if self.ranges else 0

    def take(self, votes: int) -> Part:
        """The next votes: ``votes`` of them, or what is left of a unit."""
        start, stop = self.ranges[-1]
        low = max(start, self.begun)
        self.begun = min(low + votes, stop)
        if self.begun == stop:
            self.ranges.pop()
        unit = Unit(self.sigma, self.image_id, self.stream, start, stop)
        return Part(unit, low, self.begun, self.target)


class Stages:
    """Hands out items until every image of a plan has its votes.

    Args:
        stored: (sigma, image_id) -> complete units that exist already.
        nfe_guess: evaluations per vote before any have been seen.
        hand_back_levels: noise levels after which an open vote leaves its sift item
            (stages = "split"), or None (stages = "fused").
        certified: (sigma, image_id) of images that need no vote and no look any more.
    """

    def __init__(
        self,
        plan: Plan,
        stored: Stored,
        *,
        nfe_guess: float = 50.0,
        hand_back_levels: int | None = None,
        certified: Collection[tuple[float, int]] = (),
    ) -> None:
        self.plan = plan
        keys = [(s, i) for s in plan.sigmas for i in plan.image_ids.tolist()]
        self._todo = [key for key in reversed(keys) if key not in certified]  # from the end
        self.images_done = self.images_total - len(self._todo)
        self.votes_done = self.images_done * (plan.n0 + plan.n)
        self.votes_unused = 0
        self.finished_images: list[ImageVotes] = []
        self._stored = stored
        self._hand_back = hand_back_levels
        self._active: dict[tuple[float, int], ImageVotes] = {}
        self._issued: dict[tuple[float, int], int] = {}
        self._estimate: dict[tuple[float, int], _Stretch] = {}
        self._ready: dict[float, deque[_Stretch]] = {s: deque() for s in plan.sigmas}
        self._ready_votes: Counter[float] = Counter()
        self._open: dict[float, list[OpenVotes]] = {s: [] for s in plan.sigmas}
        self._open_votes: Counter[float] = Counter()
        self._settling: dict[Unit, SettledUnit] = {}
        self._fresh_cost = _Cost(nfe_guess)
        self._open_cost = _Cost(nfe_guess)
        self._in_flight: dict[int, Item] = {}
        self._next_item = 0
        self._ahead_votes = plan.unit

    @property
    def images_total(self) -> int:
        """Images times sigmas."""
        return len(self.plan.sigmas) * len(self.plan.image_ids)

    @property
    def votes_total(self) -> int:
        """Votes asked for at most: images x sigmas x (n0 + n)."""
        return self.images_total * (self.plan.n0 + self.plan.n)

    @property
    def nfe_per_vote(self) -> float:
        """Mean evaluations per vote so far, or the guess."""
        return self._fresh_cost.mean

    @property
    def finished(self) -> bool:
        """Whether every image has its certificate and nothing is under way."""
        return not (self._todo or self._active or self._in_flight)

    def all_stored(self) -> bool:
        """Whether no vote is needed any more: looks at images until one needs votes."""
        self._activate(1)
        return self.finished

    def take(self, nfe: float, workers: int = 1) -> Item | None:
        """The next item, of about ``nfe`` evaluations, or None if all there is to do is under way.

        Args:
            nfe: size of the item in evaluations of the denoiser.
            workers: how many share the rest of the work: towards the end items get smaller.
        """
        fresh = max(1, int(nfe / self._fresh_cost.mean))
        held = max(1, int(nfe / self._open_cost.mean))
        self._ahead_votes = max(fresh, self.plan.unit)
        for sigma, count in self._open_votes.items():
            if count >= held:
                return self._refine_item(sigma, held)
        self._activate(2 * fresh * workers)
        if not any(self._ready.values()) and self._in_flight:
            self._issue_for_idle_workers()
        ready = next((s for s in self.plan.sigmas if self._ready[s]), None)
        if ready is not None:
            return self._sift_item(ready, self._share(fresh, workers))
        for sigma, count in self._open_votes.items():
            if count:
                share = -(-count // workers)
                return self._refine_item(sigma, min(held, share))
        return None

    def deliver(self, result: Result) -> list[SettledUnit]:
        """Returns the units that a result completes; a second delivery changes nothing."""
        item = self._in_flight.pop(result.item_id, None)
        if item is None:
            return []
        settled_votes = sum(t.votes for t in result.tallies)
        cost = self._open_cost if item.open_votes is not None else self._fresh_cost
        cost.add(result.nfe, item.votes)
        self.votes_done += settled_votes
        if result.open_votes is not None:
            self._open[item.sigma].append(result.open_votes)
            self._open_votes[item.sigma] += len(result.open_votes)
        complete = []
        for tally in result.tallies:
            seconds = result.seconds * tally.nfe / max(result.nfe, 1)
            entry = self._settling.get(tally.unit)
            if entry is None:  # not made when issued: what is ready may wait for hours
                entry = SettledUnit(UnitCounts(tally.unit, tally.target, {}, 0, 0.0))
                self._settling[tally.unit] = entry
            total = Counter(entry.counted.counts)
            total.update(tally.counts)
            entry.counted = UnitCounts(
                tally.unit,
                tally.target,
                dict(total),
                entry.counted.nfe + tally.nfe,
                entry.counted.seconds + seconds,
            )
            entry.workers.add(result.worker)
            entry.devices.add(result.device)
            entry.numerics.add(result.numerics)
            if sum(total.values()) == tally.unit.votes:
                complete.append(self._settling.pop(tally.unit))
        for entry in complete:
            self._add(entry.counted)
        return complete

    def abandon(self, item: Item) -> list[tuple[float, int]]:
        """Give up an item for good (quarantine); returns the (sigma, image_id) lost by it."""
        self._in_flight.pop(item.item_id, None)
        units = [p.unit for p in item.parts]
        units += list(item.open_votes.units) if item.open_votes is not None else []
        lost = sorted({(u.sigma, u.image_id) for u in units})
        for key in lost:
            if self._active.pop(key, None) is not None:
                self._estimate.pop(key, None)
                self._withdraw(key)
        return lost

    # ---- images ---------------------------------------------------------------------------------

    def _activate(self, votes: int) -> None:
        """Bring in images until enough fresh votes are ready."""
        while sum(self._ready_votes.values()) < votes and self._todo:
            key = self._todo.pop()
            image = ImageVotes(self.plan, *key)
            for counted in self._stored(*key):
                image.add(counted)
                self.votes_done += counted.unit.votes
            self._active[key] = image
            self._issued[key] = 0
            self._issue_select(image)
            self._settle_or_issue(image)

    def _add(self, counted: UnitCounts) -> None:
        image = self._active.get((counted.unit.sigma, counted.unit.image_id))
        if image is None:  # it has stopped, or was given up, since the votes were issued
            self.votes_unused += counted.unit.votes
            return
        image.add(counted)
        self._settle_or_issue(image)

    def _settle_or_issue(self, image: ImageVotes) -> None:
        key = (image.sigma, image.image_id)
        if image.finished:
            del self._active[key]
            self._estimate.pop(key, None)
            if self._issued[key] > image.prefix:
                self._withdraw(key)
            self.images_done += 1
            self.votes_unused += image.votes_beyond
            self.finished_images.append(image)
        elif image.chosen is not None:
            self._issue_estimate(image)

    def _withdraw(self, key: tuple[float, int]) -> None:
        """Take back what an image that has stopped, or was given up, still had ready."""
        sigma, image_id = key
        kept = [s for s in self._ready[sigma] if s.image_id != image_id]
        self._ready[sigma] = deque(kept)
        self._ready_votes[sigma] = sum(s.votes for s in kept)

    def _issue_select(self, image: ImageVotes) -> None:
        self._issue(image, "select", image.missing("select"))

    def _issue_for_idle_workers(self) -> None:
        """Towards the end of a sequential run: votes that may not be needed, but nobody waits."""
        for image in list(self._active.values()):
            if image.chosen is not None:
                self._issue_estimate(image, self._ahead_votes)

    def _issue_estimate(self, image: ImageVotes, ahead: int | None = None) -> None:
        """Issue estimation units: all of a fixed n, or some beyond the last look (sequential).

        Their number grows with the votes that the image has had, so that few are in vain; it is at
        most one item's worth.
        """
        key = (image.sigma, image.image_id)
        horizon = self.plan.n
        if self.plan.bound == "sequential":
            share = max(int(AHEAD * image.prefix), self.plan.n0, self.plan.unit)
            horizon = min(horizon, image.prefix + (ahead or min(share, self._ahead_votes)))
        if self._issued[key] >= horizon:
            return
        ranges = [r for r in image.missing("estimate", horizon) if r[0] >= self._issued[key]]
        # To the front: images under way finish before new ones begin.
        self._issue(image, "estimate", ranges)
        self._issued[key] = ranges[-1][1] if ranges else horizon

    def _issue(self, image: ImageVotes, stream: str, ranges: list[tuple[int, int]]) -> None:
        if not ranges:
            return
        key = (image.sigma, image.image_id)
        self._ready_votes[image.sigma] += sum(stop - start for start, stop in ranges)
        waiting = self._estimate.get(key)
        if stream == "estimate" and waiting is not None and waiting.ranges:
            waiting.ranges[:0] = ranges[::-1]  # behind its earlier votes: looks need them in order
            return
        stretch = _Stretch(*key, stream, image.target(stream), ranges[::-1])
        if stream == "select":
            self._ready[image.sigma].append(stretch)
        else:
            self._estimate[key] = stretch
            self._ready[image.sigma].appendleft(stretch)

    def _share(self, fresh: int, workers: int) -> int:
        """Votes of the next item: towards the end smaller, so that all workers end together."""
        if self._todo:
            return fresh
        rest = sum(self._ready_votes.values())
        return min(fresh, max(-(-rest // (2 * workers)), self.plan.unit))

    # ---- items ----------------------------------------------------------------------------------

    def _sift_item(self, sigma: float, votes: int) -> Item:
        ready, parts = self._ready[sigma], []
        while ready and votes > 0:
            parts.append(ready[0].take(votes))
            if not ready[0].ranges:
                ready.popleft()
            taken = parts[-1].stop - parts[-1].start
            self._ready_votes[sigma] -= taken
            votes -= taken
        return self._send(Item(self._next_item, sigma, tuple(parts), None, self._hand_back))

    def _refine_item(self, sigma: float, votes: int) -> Item:
        held = join_open_votes(self._open[sigma])
        taken, rest = split_open_votes(held, votes)
        self._open[sigma] = [rest] if len(rest) else []
        self._open_votes[sigma] = len(rest)
        return self._send(Item(self._next_item, sigma, (), taken, None))

    def _send(self, item: Item) -> Item:
        self._next_item += 1
        self._in_flight[item.item_id] = item
        return item


def all_units(plan: Plan) -> int:
    """Units that a plan asks for at most."""
    streams = len(plan.ranges("select")) + len(plan.ranges("estimate"))
    return int(np.int64(len(plan.image_ids)) * len(plan.sigmas) * streams)
