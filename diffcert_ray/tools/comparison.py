"""The engine side by side with the bare network, in alternating rounds of one process."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffcert_ray.engine.speed import Forward, seconds
from diffcert_ray.engine.votes import evaluate_item
from diffcert_ray.engine.watch import Watch, unwatched
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.votes.units import Item, Part, Result, Unit

IMAGES = 16
LEARNING_VOTES = 16
VOTES_OF_AN_IMAGE = 2**20  # more than are ever cast here


@dataclass(frozen=True)
class Comparison:
    """What alternating rounds found; rates are medians, in evaluations per second.

    Args:
        batch: rows of the engine's batches.
        engine_nfe_per_s: evaluations of votes, without rows that only filled batches.
        bare_nfe_per_s: of the network alone at ``bare_batch``.
        bare_batch: its best batch.
        ratio: median over the rounds of the engine's rate by the mean of the bare rates before and
            after it.
        ratios: of each round.
        same_batch_ratio: the same median against the network alone at the engine's own batch.
        nfe: evaluations of votes in all rounds.
        padded: rows that only filled batches in all rounds.
        votes: in all rounds.
        core_share: CPU seconds by wall seconds of the rounds: 1 on a machine that has nothing else
            to do; on a GPU without meaning.
    """

    batch: int
    engine_nfe_per_s: float
    bare_nfe_per_s: float
    bare_batch: int
    ratio: float
    ratios: tuple[float, ...]
    same_batch_ratio: float
    nfe: int
    padded: int
    votes: int
    core_share: float


class Engine:
    """Items of fresh votes, as a run has them, one after the other.

    Args:
        base: the base classifier.
        image: image_id -> float32 [C, H, W] in [0, 1].
        image_ids: the images, int64 [N]; each item takes its votes from up to IMAGES of them.
    """

    def __init__(
        self, base: DiffusionBase, image: Callable[[int], np.ndarray], image_ids: np.ndarray
    ) -> None:
        self._base, self._image = base, image
        self._ids = image_ids[:IMAGES].tolist()
        self._cast = 0
        self.nfe_per_vote = 0.0

    def learn(self, votes: int = LEARNING_VOTES) -> None:
        """See what a vote costs; warms up, too."""
        result = self.evaluate(votes)
        self.nfe_per_vote = result.nfe / votes

    def votes_of(self, nfe: float) -> int:
        """Votes that take about so many evaluations; at least one."""
        return max(1, round(nfe / self.nfe_per_vote))

    def evaluate(self, votes: int, watch: Watch = unwatched) -> Result:
        """Evaluate an item of fresh votes, spread over the images."""
        sigma, each = self._base.sigma, -(-votes // len(self._ids))
        units = [Unit(sigma, i, "estimate", 0, VOTES_OF_AN_IMAGE) for i in self._ids]
        parts, left = [], votes
        for unit in units:
            count = min(each, left)
            if count:
                parts.append(Part(unit, self._cast, self._cast + count))
            left -= count
        self._cast += each
        return evaluate_item(self._base, Item(0, sigma, tuple(parts)), self._image, watch=watch)


def compare(
    engine: Engine,
    bare: Forward,
    base: DiffusionBase,
    *,
    rounds: int,
    item_s: float,
    bare_s: float,
) -> Comparison:
    """Alternate bare rounds and items.

    Args:
        engine: has learned what a vote costs.
        bare: the network at its best batch, warmed up.
        base: the engine's base classifier.
        rounds: items, each between two bare rounds.
        item_s: seconds of an item, about.
        bare_s: seconds of a bare round, at least.
    """
    device = base.device
    began = time.perf_counter(), time.process_time()
    own = bare if bare.batch == base.batch else Forward(base.denoiser, base.batch, device)
    own.evaluate()
    bares, owns = [bare.rate(bare_s)], [own.rate(bare_s)]
    votes = engine.votes_of(bares[0] * item_s)
    rates, nfe, padded = [], 0, 0
    for _ in range(rounds):
        start = seconds(device)
        result = engine.evaluate(votes)
        rates.append(result.nfe / (seconds(device) - start))
        nfe, padded = nfe + result.nfe, padded + result.padded
        bares.append(bare.rate(bare_s))
        owns.append(own.rate(bare_s) if own is not bare else bares[-1])
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    ratios = _ratios(rates, bares)
    return Comparison(
        batch=base.batch,
        engine_nfe_per_s=statistics.median(rates),
        bare_nfe_per_s=statistics.median(bares),
        bare_batch=bare.batch,
        ratio=statistics.median(ratios),
        ratios=ratios,
        same_batch_ratio=statistics.median(_ratios(rates, owns)),
        nfe=nfe,
        padded=padded,
        votes=votes * rounds,
        core_share=cpu / wall,
    )


def _ratios(rates: Sequence[float], around: Sequence[float]) -> tuple[float, ...]:
    """Each rate by the mean of the two measured before and after it."""
    means = [(a + b) / 2 for a, b in itertools.pairwise(around)]
    return tuple(rate / mean for rate, mean in zip(rates, means, strict=True))
