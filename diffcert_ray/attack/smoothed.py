"""The smoothed classifier at any point: soft scores with gradients, and votes under fresh noise."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import to_model_space
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.base_classifier import BaseClassifier, Draws
from diffcert_ray.method.diffusion_classifier import to_model_image
from diffcert_ray.votes.units import Item, Part, Unit

ROWS = 512  # rows given to a network at once where a gradient is wanted


class Smoothed:
    """The smoothed classifier of one sigma, with noise that is not the run's.

    Args:
        base: the base classifier.
        seed: of its votes.

    Raises:
        ValueError: the seed is the one that the base classifier's own votes are cast with.
    """

    def __init__(self, base: BaseClassifier, seed: int) -> None:
        if seed == base.seed:
            raise ValueError(f"seed {seed} is the run's own: its votes are no fresh ones")
        self.base = base.with_seed(seed)
        self.nfe = 0
        self.votes_cast = 0

    def draw(self, copies: int, levels: int, like: Tensor, generator: torch.Generator) -> Draws:
        """Noise of some copies of a point, as `BaseClassifier.draw`."""
        return self.base.draw(copies, levels, like, generator)

    def scores(self, x: Tensor, draws: Draws, classes: Tensor | None = None) -> Tensor:
        """`BaseClassifier.scores` of noisy copies of a point [C, H, W], pixel units: [M, K']."""
        u = to_model_image(x)[None] + to_model_space(self.base.sigma) * draws.smoothing
        scores, nfe = self.base.scores(u, draws, classes)
        self.nfe += nfe
        return scores

    def ascent(self, x: Tensor, draws: Draws, a: int, b: int, scale: float) -> tuple[float, Tensor]:
        """How far b is ahead of a in soft votes, and where that grows.

        Args:
            x: the point [C, H, W], pixel units.
            draws: noise of M copies.
            a: the class to leave.
            b: the class to reach.
            scale: of the scores' differences, > 0: what a soft vote takes for a clear one.

        Returns:
            The mean over the copies of sigmoid((score of b - score of a) / scale), and its gradient
            [C, H, W].
        """
        classes = torch.tensor([a, b], device=x.device)
        point = x.detach().clone().requires_grad_(True)
        together = max(1, ROWS // (2 * max(1, draws.levels.shape[1])))
        copies, value, gradient = len(draws.smoothing), 0.0, torch.zeros_like(x)
        for first in range(0, copies, together):
            part = slice(first, first + together)
            some = Draws(draws.smoothing[part], draws.levels[part], draws.internal[part])
            scores = self.scores(point, some, classes)
            soft = torch.sigmoid((scores[:, 1] - scores[:, 0]) / scale).sum() / copies
            (slope,) = torch.autograd.grad(soft, point)
            value, gradient = value + float(soft.detach()), gradient + slope
        return value, gradient

    def votes(
        self, images: Mapping[int, np.ndarray], stream: str, start: int, stop: int
    ) -> list[Counter[int]]:
        """Votes start:stop at some points, with the noise of this object's seed.

        Args:
            images: number that addresses the noise, >= 0 -> point, float32 [C, H, W], pixel units.
            stream: "select" or "estimate".
            start: first vote.
            stop: one past the last.

        Returns:
            Counts of votes for each point, in their order; -2 holds unresolved votes.
        """
        parts = [Part(Unit(self.base.sigma, i, stream, start, stop), start, stop) for i in images]
        item = Item(0, self.base.sigma, tuple(parts))
        winners, nfe = evaluate_votes(self.base, item, images.__getitem__)
        self.nfe += nfe
        self.votes_cast += len(winners)
        return [Counter(row.tolist()) for row in winners.reshape(len(images), stop - start)]
