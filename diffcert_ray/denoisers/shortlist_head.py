"""A head that proposes classes from the denoising step that a vote pays for anyway.

Shape letters: B samples, C H W image, C' H' W' activations at the bottom of the network, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.lag_prior import NOTHING_FORETOLD

WithBottom = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(u, s, y) -> the estimates of the clean images, and the activations, if there are any."""


@runtime_checkable
class BottomDenoiser(Protocol):
    """A denoiser that also gives its inner activations; networks of a caller's own may be one."""

    def with_bottom(
        self, u: Tensor, s: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What `Denoiser.__call__` returns, bit by bit, and the activations [B, C', H', W'].

        The activations are those at the coarsest resolution; None where the network has none.

        Args:
            u: as `Denoiser.__call__`.
            s: as `Denoiser.__call__`.
            y: as `Denoiser.__call__`.
        """
        ...


def with_bottom(denoiser: Denoiser) -> WithBottom:
    """How a denoiser is called for its activations too; one that has none to give gives None."""
    if isinstance(denoiser, BottomDenoiser):
        return denoiser.with_bottom
    return lambda u, s, y: (denoiser(u, s, y), None)


class ShortlistHead(nn.Module):
    """Class probabilities from what one unconditional denoising step leaves behind.

    Args:
        num_classes: K.
        image_shape: (C, H, W) of the estimates.
        bottom: (C', H', W') of the activations, or None where only the estimate is looked at.
        grid: activations are averaged to so many rows and columns, at most H' and W'.
        hidden: units of one hidden layer; 0 for a linear head.

    Attributes:
        lag_prior: what its log odds foretell of a race; nothing until it has been measured.

    Raises:
        ValueError: a size is out of range.

    Source: ours. A probe on the activations of a trained network, as Alain and Bengio 2016
    (arXiv:1610.01644); what it proposes decides nothing (see `method.shortlist`).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        bottom: tuple[int, int, int] | None,
        grid: int,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 1 or hidden < 0 or grid < 1:
            raise ValueError(
                f"{num_classes} classes, grid {grid}, {hidden} hidden units: classes and grid must "
                "be at least 1, hidden units at least 0"
            )
        self.num_classes, self.image_shape, self.bottom = num_classes, image_shape, bottom
        self.grid, self.hidden = grid, hidden
        self.lag_prior = NOTHING_FORETOLD
        pooled = 0
        if bottom is not None:
            self.grid = min(grid, bottom[1], bottom[2])
            pooled = bottom[0] * self.grid**2
        channels, height, width = image_shape
        self.features = pooled + channels * height * width
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("scale", torch.ones(self.features))
        layers: list[nn.Module] = []
        if hidden:
            layers += [nn.Linear(self.features, hidden), nn.SiLU()]
        layers.append(nn.Linear(hidden or self.features, num_classes))
        self.layers = nn.Sequential(*layers)

    def pooled(self, estimate: Tensor, bottom: Tensor | None) -> Tensor:
        """The numbers that the head looks at, float32 [B, features].

        Args:
            estimate: of the clean images [B, C, H, W], model space.
            bottom: activations [B, C', H', W'], or None.

        Raises:
            ValueError: other activations than the head was made for.
        """
        seen = None if bottom is None else tuple(bottom.shape[1:])
        if self.bottom is not None and seen != self.bottom:
            raise ValueError(
                f"the network's activations are {seen or 'not given'}, the head was made for "
                f"{self.bottom}: it was trained on another network; train one on this network"
            )
        parts = [estimate.float().flatten(1)]
        if self.bottom is not None and bottom is not None:
            activations = bottom.float()
            if self.bottom[1:] != (self.grid, self.grid):
                activations = _averaged(activations, self.grid)
            parts.insert(0, activations.flatten(1))
        return torch.cat(parts, dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, K] of `pooled` numbers [B, features]."""
        logits: Tensor = self.layers((features - self.mean) * self.scale)
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Log probabilities of the classes, float32 [B, K], of `pooled` numbers [B, features]."""
        return F.log_softmax(self.logits(features), dim=1)


def _averaged(activations: Tensor, grid: int) -> Tensor:
    """Means over ``grid`` by ``grid`` cells of about equal size [B, C', grid, grid].

    Written out, since a built-in adaptive pooling has no deterministic way on a GPU.
    """
    rows = [c.mean(dim=2, keepdim=True) for c in torch.tensor_split(activations, grid, dim=2)]
    cells = torch.tensor_split(torch.cat(rows, dim=2), grid, dim=3)
    return torch.cat([c.mean(dim=3, keepdim=True) for c in cells], dim=3)
