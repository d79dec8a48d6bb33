"""What any base classifier is at one sigma, whatever it is made of; chosen once, when loaded."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser


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


class BaseClassifier(Protocol):
    """Everything that decides one vote at one sigma: `DiffusionBase` or `TrainedBase`."""

    @property
    def denoiser(self) -> Denoiser | None:
        """The denoiser, or None where there is none."""
        ...

    @property
    def sigma(self) -> float:
        """Smoothing noise, pixel units."""
        ...

    @property
    def seed(self) -> int:
        """Of all noise."""
        ...

    @property
    def batch(self) -> int:
        """Rows of every batch."""
        ...

    @property
    def device(self) -> str:
        """Where the networks live."""
        ...

    @property
    def most_nfe(self) -> int:
        """Evaluations of a vote that ends nowhere early."""
        ...

    def with_seed(self, seed: int) -> "BaseClassifier":
        """The same with other noise."""
        ...

    def with_batch(self, batch: int) -> "BaseClassifier":
        """The same in batches of so many rows."""
        ...

    def draw(self, copies: int, levels: int, like: Tensor, generator: torch.Generator) -> Draws:
        """Noise of some copies, that is no vote's.

        Args:
            copies: M, noisy copies.
            levels: L, noise levels that each copy is scored at (drawn by their weight).
            like: an image [C, H, W] of the votes' resolution.
            generator: of the noise, on the CPU.
        """
        ...

    def scores(self, u: Tensor, draws: Draws, classes: Tensor | None = None) -> tuple[Tensor, int]:
        """Scores of noisy copies, differentiable with respect to them, and the evaluations spent.

        Of a diffusion classifier an unbiased estimate of its logits from a few noise levels, all
        classes under the same noise; of a trained classifier its logits.

        Args:
            u: noisy copies [M, C, H, W], model space.
            draws: their noise.
            classes: int64 [K'], the classes to score; by default all.

        Returns:
            [M, K'], larger is better, and a count.
        """
        ...

    def clean_scores(self, u: Tensor, draws: int, seed: int) -> Tensor:
        """Scores [B, K] of clean inputs, differentiable; noise is shared by inputs and classes.

        Args:
            u: inputs [B, C, H, W], model space.
            draws: noise draws for each level; none is needed by a trained classifier.
            seed: of the noise.
        """
        ...
