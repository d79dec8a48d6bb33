"""What comes next: selection, then estimation; sift, then refine; when an image has enough votes.

A pure state machine: it hands out items and takes in results, in any order, and knows nothing of
workers, files or time. What it has in memory is the images under way, not the dataset.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from diffcert_ray.certificates.reach import largest_radius, required_n
from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.votes.image import ImageVotes, Plan, UnitCounts
from diffcert_ray.votes.ready import Key, ReadyVotes
from diffcert_ray.votes.units import (
    Item,
    OpenVotes,
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
class _UnderWay:
    """An image that is being worked on."""

    image: ImageVotes
    selecting: int = 0  # selection votes that were stored or have been issued
    select_to: int = 0  # end of the selection units that have been issued
    estimate_to: int = 0  # end of the estimation units that have been issued

    @property
    def key(self) -> Key:
        return self.image.sigma, self.image.image_id


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
        self._active: dict[Key, _UnderWay] = {}
        self._ready = ReadyVotes(plan.sigmas)
        self._first_looks = {s: _votes_to_certify(plan, s) for s in plan.sigmas}
        self._open: dict[float, list[OpenVotes]] = {s: [] for s in plan.sigmas}
        self._open_votes: Counter[float] = Counter()
        self._settling: dict[Unit, SettledUnit] = {}
        self._fresh_cost = _Cost(nfe_guess)
        self._open_cost = _Cost(nfe_guess)
        self._in_flight: dict[int, Item] = {}
        self._next_item = 0
        self._ahead_votes = plan.unit
        self._spared = 0

    @property
    def images_total(self) -> int:
        """Images times sigmas."""
        return len(self.plan.sigmas) * len(self.plan.image_ids)

    @property
    def votes_total(self) -> int:
        """Votes asked for at most: images x sigmas x (n0 + n), less what selection spared."""
        return self.images_total * (self.plan.n0 + self.plan.n) - self._spared

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
        if not self._ready.votes and 0 < len(self._in_flight) < workers:
            self._issue_for_idle_workers()
        ready = self._ready.sigma()
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
                self._ready.withdraw(key)
        return lost

    # ---- images ---------------------------------------------------------------------------------

    def _activate(self, votes: int) -> None:
        """Bring in images until enough fresh votes are ready."""
        while self._ready.votes < votes and self._todo:
            key = self._todo.pop()
            under = self._active[key] = _UnderWay(ImageVotes(self.plan, *key))
            for counted in self._stored(*key):
                under.image.add(counted)
                if counted.unit.stream == "select":
                    under.selecting += counted.unit.votes
            self.votes_done += under.selecting + under.image.prefix + under.image.votes_beyond
            if under.image.chosen is not None:
                self._selected(under)
            self._settle_or_issue(under)

    def _add(self, counted: UnitCounts) -> None:
        under = self._active.get((counted.unit.sigma, counted.unit.image_id))
        if under is None:  # it has stopped, or was given up, since the votes were issued
            self.votes_unused += counted.unit.votes
            return
        undecided = under.image.chosen is None
        if not undecided and counted.unit.stream == "select":
            self.votes_unused += counted.unit.votes
        under.image.add(counted)
        if undecided and under.image.chosen is not None:
            self._selected(under)
        self._settle_or_issue(under)

    def _selected(self, under: _UnderWay) -> None:
        """A class is chosen: votes that might have been needed for that are not cast any more."""
        under.selecting -= self._ready.withdraw(under.key)
        self._spared += self.plan.n0 - under.selecting

    def _settle_or_issue(self, under: _UnderWay) -> None:
        image = under.image
        if image.finished:
            del self._active[under.key]
            self._ready.withdraw(under.key)
            self.images_done += 1
            self.votes_unused += image.votes_beyond
            self.finished_images.append(image)
        elif image.chosen is not None:
            self._issue_estimate(under)
        else:
            self._issue_select(under)

    def _issue_for_idle_workers(self) -> None:
        """Towards the end of a run: votes that may not be needed, but nobody waits."""
        for under in list(self._active.values()):
            if under.image.chosen is None:
                self._issue_select(under, self.plan.select or 0)
            else:
                self._issue_estimate(under, self._ahead_votes)

    def _issue_select(self, under: _UnderWay, ahead: int = 0) -> None:
        """Issue the selection units without which no class can be chosen, and ``ahead`` votes."""
        selection = under.image.selection
        horizon = selection.used + selection.needed + ahead
        missing = under.image.missing("select", horizon)
        ranges = [r for r in missing if r[0] >= under.select_to]
        if not ranges:
            return
        begins = under.selecting == 0
        under.selecting += sum(stop - start for start, stop in ranges)
        under.select_to = ranges[-1][1]
        self._ready.add(under.key, "select", ALL_CLASSES, ranges, begins=begins)

    def _issue_estimate(self, under: _UnderWay, ahead: int | None = None) -> None:
        """Issue estimation units: all of a fixed n, or some beyond the last look (sequential).

        These are at first what the image needs at least, then a share of the votes that it has had,
        so that few are in vain; at most one item's worth.
        """
        image, horizon = under.image, self.plan.n
        if self.plan.bound == "sequential":
            first = self._first_looks[image.sigma] - image.prefix
            share = max(int(AHEAD * image.prefix), first, self.plan.unit)
            horizon = min(horizon, image.prefix + (ahead or min(share, self._ahead_votes)))
        if under.estimate_to >= horizon:
            return
        ranges = [r for r in image.missing("estimate", horizon) if r[0] >= under.estimate_to]
        # To the front: images under way finish before new ones begin.
        self._ready.add(under.key, "estimate", image.target("estimate"), ranges, begins=False)
        under.estimate_to = ranges[-1][1] if ranges else horizon

    def _share(self, fresh: int, workers: int) -> int:
        """Votes of the next item: towards the end smaller, so that all workers end together."""
        if self._todo:
            return fresh
        return min(fresh, max(-(-self._ready.votes // (2 * workers)), self.plan.unit))

    # ---- items ----------------------------------------------------------------------------------

    def _sift_item(self, sigma: float, votes: int) -> Item:
        parts = self._ready.take(sigma, votes)
        return self._send(Item(self._next_item, sigma, parts, None, self._hand_back))

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


def _votes_to_certify(plan: Plan, sigma: float) -> int:
    """Estimation votes that a sequential image needs before it can stop certified; n0 at most.

    These are the unanimous votes that certify the largest radius within reach.
    """
    if plan.bound != "sequential":
        return 0
    off = {"slack": plan.slack(sigma), "taken_off": plan.taken_off()}
    radius = max(plan.radii)
    if largest_radius(plan.n0, sigma, plan.alpha, plan.bound, **off) < radius:
        return plan.n0  # more at once would be in vain for images that are soon given up
    return required_n(radius, sigma, plan.alpha, plan.bound, **off)


def all_units(plan: Plan) -> int:
    """Units that a plan asks for at most."""
    streams = len(plan.ranges("select")) + len(plan.ranges("estimate"))
    return int(np.int64(len(plan.image_ids)) * len(plan.sigmas) * streams)
