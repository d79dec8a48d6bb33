"""What a head's log odds foretell of a race, measured on votes whose classes go to the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from diffcert_ray.denoisers.lag_prior import LagPrior
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.method.sift import Sift, sum_over_entries
from diffcert_ray.votes.units import Item, Part, Unit

LEAST_PAIRS = 20  # below, a prior would be a guess


@dataclass(frozen=True)
class _ToTheEnd(Sift):
    """A race that drops nobody, and keeps (lag, nats, noise variance) of pairs of classes."""

    pairs: list[np.ndarray] = field(default_factory=list)

    def step(
        self,
        round_index: int,
        losses: np.ndarray,
        alive: np.ndarray,
        log_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Sift.step`; no class is dropped before the last round."""
        if round_index + 1 < len(self.rounds):
            votes = len(alive)
            return alive, np.full(votes, round_index + 1), np.full(votes, -1)
        assert log_p is not None
        # Where a class never raced there is no loss, but whatever its memory held.
        terms = np.where(alive, losses, 0.0) * self.coefficient[:, None, None]
        leader = np.where(alive, log_p, -np.inf).argmax(axis=1)
        difference = terms - np.take_along_axis(terms, leader[None, :, None], axis=2)
        nats = np.take_along_axis(log_p, leader[:, None], axis=1) - log_p
        entries = len(self.order)
        by_level = difference[np.argsort(self.order)]
        squares = sum_over_entries((by_level[1:] - by_level[:-1]) ** 2) / 2
        noise = squares / max(entries - 1, 1) * entries**2
        others = alive & (np.arange(alive.shape[1]) != leader[:, None])
        found = np.stack([sum_over_entries(difference), nats, noise], axis=-1)
        self.pairs.append(found[others])
        return super().step(round_index, losses, alive, log_p)


def measured_lag_prior(
    base: DiffusionBase, image: Callable[[int], np.ndarray], ids: Sequence[int], votes: int
) -> tuple[LagPrior, int]:
    """Cast votes, all classes that the head proposes to the end, and compare with its log odds.

    Args:
        base: with the rule ``shortlist``; its seed should be one that no certificate uses.
        image: pixels of an image by its id.
        ids: images that are not certified.
        votes: of each.

    Returns:
        (prior, pairs): one that says nothing where fewer than `LEAST_PAIRS` pairs of classes were
        seen.
    """
    sift = _ToTheEnd(**{f.name: getattr(base.sift, f.name) for f in fields(Sift)})
    parts = tuple(Part(Unit(base.sigma, int(i), "estimate", 0, votes), 0, votes) for i in ids)
    evaluate_votes(replace(base, sift=sift), Item(0, base.sigma, parts), image)
    pairs = np.concatenate([np.empty((0, 3)), *sift.pairs])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < LEAST_PAIRS:
        return LagPrior(), len(pairs)
    lag, nats, noise = pairs.T
    per_nat = max(0.0, float((nats * lag).sum() / (nats**2).sum()))
    spread = float(np.sqrt(((lag - per_nat * nats) ** 2).mean()))
    return LagPrior(per_nat, spread, float(np.sqrt(noise.mean()))), len(pairs)
