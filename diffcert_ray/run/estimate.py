"""What a run will take, before it runs: votes, evaluations, hours, bytes, reachable radii."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.plain.units import LossItem, LossUnit
from diffcert_ray.run.loss_rows import loss_row
from diffcert_ray.run.reachable import ceiling
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import encode
from diffcert_ray.storage.schemas import LossRow, loss_table
from diffcert_ray.votes.image import ImageVotes, Plan, UnitCounts
from diffcert_ray.votes.units import Item, Part, Unit

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import Worker

STORED_BYTES_PER_UNIT = 230  # the digits run: 1,100 units in 36 small parts; large ones pack better
TRIAL_S = 3.0


@dataclass(frozen=True)
class SigmaEstimate:
    """What one sigma costs."""

    sigma: float  # pixel units
    largest_radius: float  # what unanimous votes certify, pixel units
    votes: int  # asked for at most; where selection stops early, its votes as expected
    selection: float  # selection votes an image: n0, or where they stop early measured on a few
    selects_early: bool
    nfe_per_vote: float  # measured on a few votes of the first images
    nfe_per_vote_limit: int  # of a vote that drops no class early
    nfe_per_s: float  # measured in the same trial, on this machine's worker

    @property
    def worker_hours(self) -> float:
        """Hours of one worker like this one."""
        return self.votes * self.nfe_per_vote / self.nfe_per_s / 3600


@dataclass(frozen=True)
class Estimate:
    """What a run costs."""

    images: int
    units: int  # stored rows at most
    stored_bytes: int  # about
    sigmas: tuple[SigmaEstimate, ...]
    trial_votes: int  # that the measured figures rest on
    n0: int  # selection votes of an image at most

    @property
    def worker_hours(self) -> float:
        """Hours of one worker like this one, for all sigmas."""
        return sum(s.worker_hours for s in self.sigmas)

    def said(self, name: str) -> str:
        """One line beside the table of sigmas."""
        early = [f"{s.selection:.1f} at sigma {s.sigma:g}" for s in self.sigmas if s.selects_early]
        text = f"measured on {self.trial_votes} votes"
        if early:
            text += f"; selection votes an image: {', '.join(early)}, at most {self.n0}"
        return text


@dataclass(frozen=True)
class PlainEstimate:
    """What a run without votes costs."""

    images: int
    draws: int  # of all images, exactly
    nfe: int  # exactly
    nfe_per_s: float  # measured on a few draws, on this machine's worker
    units: int
    stored_bytes: int  # about
    trial_draws: int  # that the measured figures rest on

    @property
    def worker_hours(self) -> float:
        """Hours of one worker like this one."""
        return self.nfe / self.nfe_per_s / 3600

    @property
    def sigmas(self) -> tuple[SigmaEstimate, ...]:
        """None: there is no smoothing noise."""
        return ()

    def said(self, name: str) -> str:
        """One line that says all."""
        return (
            f"{name}: {self.images:,} images, {self.draws:,} draws, exactly {self.nfe:,} NFE; "
            f"certified without votes; {self.nfe_per_s:,.0f} NFE/s (measured on "
            f"{self.trial_draws} draws)"
        )


@dataclass(frozen=True)
class Bill:
    """What a run costs on machines of one price."""

    name: str  # of the machines
    price: float  # of one worker for one hour
    workers: int  # at work at the same time
    wall_hours: float  # until all is done, without the start of machines and workers
    cost: float  # of all workers together


def bills(worker_hours: float, prices: Mapping[str, float], workers: int) -> list[Bill]:
    """What a run costs at some prices; workers are taken to be as fast as the one measured.

    ``prices`` are of one worker for one hour, by the machines' name.

    Raises:
        ValueError: a price or the number of workers is out of range.
    """
    bad = {name: price for name, price in prices.items() if not 0.0 <= price < float("inf")}
    if bad or workers < 1:
        raise ValueError(
            f"prices {dict(prices)} for {workers} workers: give prices of at least 0 and at least "
            "one worker"
        )
    wall = worker_hours / workers
    return [
        Bill(name, price, workers, wall, price * worker_hours) for name, price in prices.items()
    ]


def estimate(
    plan: Plan,
    worker: "Worker",
    *,
    trial_s: float = TRIAL_S,
) -> Estimate:
    """Cast votes for about ``trial_s`` seconds at each sigma, one at least, and scale them up.

    Where selection stops early, some images' classes are chosen for as long again.
    """
    sigmas, trial_votes, images = [], 0, len(plan.image_ids)
    for sigma in plan.sigmas:
        votes = nfe = 0
        seconds, step = 0.0, 1
        while votes == 0 or (seconds < trial_s and votes < plan.n0 * images):
            item = _trial(plan, sigma, step)
            started = time.perf_counter()
            result = worker.cast_votes(item)
            seconds = time.perf_counter() - started
            votes, nfe, step = item.votes, result.nfe, step * 4
        selection, selecting = _selection(plan, sigma, worker, votes / seconds * trial_s)
        trial_votes += votes + selecting
        sigmas.append(
            SigmaEstimate(
                sigma,
                ceiling(plan, sigma),
                images * plan.n + round(images * selection),
                selection,
                plan.select is not None,
                nfe / votes,
                worker.base(sigma).most_nfe,
                nfe / seconds,
            )
        )
    selected = [ceil(s.selection / _selection_unit(plan)) for s in sigmas]
    units = images * sum(units + len(plan.ranges("estimate")) for units in selected)
    stored = units * STORED_BYTES_PER_UNIT
    return Estimate(images, units, stored, tuple(sigmas), trial_votes, plan.n0)


def _trial(plan: Plan, sigma: float, votes: int) -> Item:
    """An item of a few votes of each of some images, ever more: the first trial is one vote."""
    ids = plan.image_ids[: max(1, min(len(plan.image_ids), votes))]
    each = min(max(1, votes // len(ids)), plan.n0)
    units = [Unit(sigma, int(i), "select", 0, plan.n0) for i in ids]
    return Item(0, sigma, tuple(Part(unit, 0, each) for unit in units))


def _selection(plan: Plan, sigma: float, worker: "Worker", budget: float) -> tuple[float, int]:
    """Selection votes that an image needs on average, and how many were cast to see that.

    Args:
        plan: what is asked.
        sigma: at which.
        worker: casts them.
        budget: how many votes may be cast, about.
    """
    if plan.select is None:
        return float(plan.n0), 0
    images = min(len(plan.image_ids), int(budget // (2 * plan.select)))
    open_ones = [ImageVotes(plan, sigma, int(i)) for i in plan.image_ids[:images]]
    cast, decided = 0, 0
    while open_ones and cast < budget:
        parts = []
        for image in open_ones:
            stop = image.selection.used + image.selection.needed
            units = (
                Unit(sigma, image.image_id, "select", *r) for r in image.missing("select", stop)
            )
            parts += [Part(unit, unit.start, unit.stop) for unit in units]
        by_image = {image.image_id: image for image in open_ones}
        for tally in worker.cast_votes(Item(0, sigma, tuple(parts))).tallies:
            counted = UnitCounts(tally.unit, tally.target, tally.counts, tally.nfe, 0.0)
            by_image[tally.unit.image_id].add(counted)
            cast += tally.votes
        decided += sum(image.chosen is not None for image in open_ones)
        open_ones = [image for image in open_ones if image.chosen is None]
    # Votes for each decision, also where some are still open: as one rates failures by exposure.
    return min(float(plan.n0), cast / decided) if decided else float(plan.n0), cast


def _selection_unit(plan: Plan) -> int:
    """Votes in a unit of the selection stream."""
    start, stop = plan.ranges("select")[0]
    return stop - start


def estimate_plain(plan: PlainPlan, worker: "Worker", *, trial_s: float = TRIAL_S) -> PlainEstimate:
    """Make draws for about ``trial_s`` seconds, one at least, and scale them up."""
    draws, seconds = 0, 0.0
    while draws == 0 or (seconds < trial_s and draws < plan.unit):
        draws = min(4 * draws or 1, plan.unit)
        item = LossItem(0, (LossUnit(int(plan.image_ids[0]), 0, draws),))
        started = time.perf_counter()
        result = worker.draw_losses(item)
        seconds = time.perf_counter() - started
    row = loss_row(result.tallies[0], result, 16 * "0")
    images, units = len(plan.image_ids), len(plan.image_ids) * len(plan.ranges)
    per_draw = len(plan.s) * plan.classes
    return PlainEstimate(
        images=images,
        draws=images * plan.draws,
        nfe=images * plan.draws * per_draw,
        nfe_per_s=draws * per_draw / seconds,
        units=units,
        stored_bytes=int(units * _stored_bytes(row)),
        trial_draws=draws,
    )


def _stored_bytes(row: LossRow) -> float:
    """What one more unit adds to a file; units like this one, with other sums."""
    rows = [replace(row, sums=row.sums * (1 + k / 97)) for k in range(9)]
    sizes = [len(encode(loss_table(rows[:count]), Origin())) for count in (1, 9)]
    return (sizes[1] - sizes[0]) / 8
