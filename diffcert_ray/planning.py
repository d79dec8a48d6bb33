"""What a run will take, before it runs: votes, evaluations, hours, bytes, reachable radii."""

import time
from dataclasses import dataclass

from diffcert_ray.certificates import largest_radius
from diffcert_ray.image_votes import Plan
from diffcert_ray.stages import all_units
from diffcert_ray.work import Item, Part, Unit
from diffcert_ray.worker import ClassifierWorker, Worker

STORED_BYTES_PER_UNIT = 230  # the digits run: 1,100 units in 36 small parts; large ones pack better
TRIAL_S = 3.0


@dataclass(frozen=True)
class SigmaEstimate:
    """What one sigma costs.

    Args:
        sigma: smoothing noise, pixel units.
        largest_radius: what unanimous votes certify, pixel units.
        unreachable: radii asked for that n cannot certify at this sigma.
        votes: votes asked for at most.
        nfe_per_vote: measured on a few votes of the first images.
        nfe_per_vote_limit: of a vote that drops no class early.
        nfe_per_s: measured in the same trial, on this machine's worker.
    """

    sigma: float
    largest_radius: float
    unreachable: tuple[float, ...]
    votes: int
    nfe_per_vote: float
    nfe_per_vote_limit: int
    nfe_per_s: float

    @property
    def worker_hours(self) -> float:
        """Hours of one worker like this one."""
        return self.votes * self.nfe_per_vote / self.nfe_per_s / 3600


@dataclass(frozen=True)
class Estimate:
    """What a run costs.

    Args:
        images: number of images.
        units: stored rows at most.
        stored_bytes: size of the store, about.
        sigmas: one entry for each sigma.
        trial_votes: votes that the measured figures rest on.
    """

    images: int
    units: int
    stored_bytes: int
    sigmas: tuple[SigmaEstimate, ...]
    trial_votes: int

    @property
    def worker_hours(self) -> float:
        """Hours of one worker like this one, for all sigmas."""
        return sum(s.worker_hours for s in self.sigmas)


def estimate(
    plan: Plan,
    worker: Worker | ClassifierWorker,
    *,
    trial_s: float = TRIAL_S,
) -> Estimate:
    """Cast a few votes and scale them up.

    Args:
        plan: what is asked of every image.
        worker: loaded with the run's networks and images.
        trial_s: seconds of trial votes for each sigma; at least one vote is cast.
    """
    found, trial_votes = [], 0
    for sigma in plan.sigmas:
        votes = nfe = 0
        seconds, step = 0.0, 1
        while votes == 0 or (seconds < trial_s and votes < plan.n0 * len(plan.image_ids)):
            item = _trial(plan, sigma, votes, step)
            started = time.perf_counter()
            result = worker.cast_votes(item)
            seconds = time.perf_counter() - started
            votes, nfe, step = item.votes, result.nfe, step * 4
        trial_votes += votes
        ceiling = largest_radius(plan.n, sigma, plan.alpha, plan.bound)
        found.append(
            SigmaEstimate(
                sigma,
                ceiling,
                tuple(r for r in plan.radii if r > 0 and r >= ceiling),
                len(plan.image_ids) * (plan.n0 + plan.n),
                nfe / votes,
                worker.most_nfe(sigma),
                nfe / seconds,
            )
        )
    units = all_units(plan)
    images = len(plan.image_ids)
    return Estimate(images, units, units * STORED_BYTES_PER_UNIT, tuple(found), trial_votes)


def _trial(plan: Plan, sigma: float, done: int, votes: int) -> Item:
    """An item of a few votes of each of some images, ever more: the first trial is one vote."""
    ids = plan.image_ids[: max(1, min(len(plan.image_ids), votes))]
    each = min(max(1, votes // len(ids)), plan.n0)
    units = [Unit(sigma, int(i), "select", 0, plan.n0) for i in ids]
    return Item(0, sigma, tuple(Part(unit, 0, each) for unit in units))
