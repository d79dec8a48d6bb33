"""The smoothed classifier at any point: soft scores with gradients, and votes under fresh noise."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import to_model_space
from diffcert_ray.engine.classifier_votes import DirectClassifier, evaluate_classifier_votes
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_classifier import (
    denoised_image,
    network_input,
    row_losses,
    target,
    to_model_image,
)
from diffcert_ray.votes.units import Item, Part, Unit

ROWS = 512  # rows given to a network at once where a gradient is wanted


@dataclass(frozen=True)
class Draws:
    """The noise of M noisy copies of a point.

    Attributes:
        smoothing: standard normal [M, C, H, W].
        levels: noise level of each of L evaluations of a copy, int64 [M, L]; L is 0 where a trained
            classifier votes.
        internal: standard normal [M, L, C, H, W] of the network's images.
    """

    smoothing: Tensor
    levels: Tensor
    internal: Tensor


class Smoothed:
    """The smoothed classifier of one sigma, with noise that is not the run's.

    Args:
        base: the base classifier.
        seed: of its votes.

    Raises:
        ValueError: the seed is the one that the base classifier's own votes are cast with.
    """

    def __init__(self, base: BaseClassifier | DirectClassifier, seed: int) -> None:
        if seed == base.seed:
            raise ValueError(f"seed {seed} is the run's own: its votes are no fresh ones")
        self.base = replace(base, seed=seed)
        self.nfe = 0
        self.votes_cast = 0

    def draw(self, copies: int, levels: int, like: Tensor, generator: torch.Generator) -> Draws:
        """Noise of M copies of an image like this one [C, H, W], at L levels drawn by their weight.

        The generator is on the CPU.
        """
        smoothing = torch.randn((copies, *like.shape), generator=generator).to(like.device)
        base = self.base
        if isinstance(base, DirectClassifier):
            empty = torch.empty((copies, 0), device=like.device)
            return Draws(smoothing, empty.long(), empty)
        weights = torch.from_numpy(base.plan.weights).expand(copies, -1)
        drawn = torch.multinomial(weights, levels, replacement=True, generator=generator)
        shape = (copies, levels, *base.denoiser.image_shape)
        internal = torch.randn(shape, generator=generator)
        return Draws(smoothing, drawn.to(like.device), internal.to(like.device))

    def scores(self, x: Tensor, draws: Draws, classes: Tensor | None = None) -> Tensor:
        """Scores of noisy copies of a point, differentiable with respect to it.

        Of a diffusion classifier an unbiased estimate of its logits from a few noise levels, all
        classes under the same noise; of a trained classifier its logits.

        Args:
            x: the point [C, H, W], pixel units.
            draws: noise of M copies.
            classes: int64 [K'], the classes to score; by default all.

        Returns:
            [M, K'], larger is better.
        """
        base = self.base
        s_tau = to_model_space(base.sigma)
        u = to_model_image(x)[None] + s_tau * draws.smoothing
        if isinstance(base, DirectClassifier):
            self.nfe += len(u) * base.nfe_per_vote
            logits = base.logits(u)
            return logits if classes is None else logits[:, classes]
        if classes is None:
            classes = torch.arange(base.denoiser.num_classes, device=x.device)
        plan = base.plan
        u_hat = denoised_image(plan, base.unconditional, u) if plan.needs_denoised else None
        shape = (*draws.levels.shape, len(classes))
        copy, _, column = torch.unravel_index(
            torch.arange(int(np.prod(shape)), device=x.device), shape
        )
        level = draws.levels[..., None].expand(shape).flatten()
        eps = draws.internal[:, :, None].expand(*shape, *draws.internal.shape[2:]).flatten(0, 2)
        noised = None if u_hat is None else u_hat[copy]
        z = network_input(plan, level, u[copy], noised, eps)
        s = torch.as_tensor(plan.s, dtype=z.dtype, device=z.device)[level]
        losses = row_losses(
            base.denoiser(z, s, classes[column]), target(plan, level, u[copy], noised, eps)
        )
        self.nfe += len(losses) + (0 if u_hat is None else len(u))
        return -float(plan.weights.sum()) * losses.reshape(shape).mean(dim=1)

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
        item, base = Item(0, self.base.sigma, tuple(parts)), self.base
        if isinstance(base, DirectClassifier):
            winners, nfe = evaluate_classifier_votes(base, item, images.__getitem__)
        else:
            winners, nfe = evaluate_votes(base, item, images.__getitem__)
        self.nfe += nfe
        self.votes_cast += len(winners)
        return [Counter(row.tolist()) for row in winners.reshape(len(images), stop - start)]
