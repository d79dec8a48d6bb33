"""The one seam between networks and classification: D(u; s, y).

Shape letters: B samples, C H W image. Model space is [-1, 1] per pixel; noise levels `s` are
standard deviations in model space.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """An estimate of the clean image from a noisy one, in model space.

    Attributes:
        image_shape: (C, H, W) of one image.
        num_classes: number of classes K; 0 for a network that is only unconditional.
        has_unconditional: whether the label -1 (no class) is meaningful for this network.
        s_range: smallest and largest noise level, in model space, that the network is made for.

    Source: Karras et al. 2022 (arXiv:2206.00364), section 2: D(x; sigma).
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    has_unconditional: bool
    s_range: tuple[float, float]

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            u: noisy images in model space, float32 [B, C, H, W].
            s: standard deviation of the noise in each, model space, float32 [B].
            y: class of each, int64 [B] in 0..K-1, or -1 for no class; None: no class for all.

        Returns:
            The estimates of the clean images, model space, float32 [B, C, H, W].
        """
        ...
