"""An unconditional denoiser at the images' resolution, for a classifier of another resolution."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import with_bottom
from diffcert_ray.errors import CheckpointError

Resize = Literal["area", "bilinear", "bicubic"]


class ResizedDenoiser:
    """Denoises at one resolution and returns the estimate at another.

    Noise is added to the stored image, so certificates are about the stored resolution; the resize
    is a part of the classifier, and needs no argument of its own in the certificate.

    Args:
        denoiser: with an unconditional mode, at the stored resolution.
        image_shape: (C, H, W) of what is returned.
        resize: "area" (averages whole blocks), "bilinear" or "bicubic" (both antialiased).

    Raises:
        CheckpointError: channels differ, or the denoiser has no unconditional mode.

    Source: arXiv:2402.02316, section 4.2 and appendix: ImageNet is denoised at 256 x 256 by an
        unconditional network and classified at 64 x 64.
    """

    def __init__(
        self, denoiser: Denoiser, image_shape: tuple[int, int, int], resize: Resize
    ) -> None:
        if denoiser.image_shape[0] != image_shape[0] or not denoiser.has_unconditional:
            mode = "an" if denoiser.has_unconditional else "no"
            raise CheckpointError(
                f"model.unconditional takes images {denoiser.image_shape} and has {mode} "
                f"unconditional mode: to resize for a network of {image_shape} it needs one, and "
                "the same number of channels"
            )
        self.denoiser, self._resize, self._out = denoiser, resize, image_shape
        self.image_shape = denoiser.image_shape
        self.num_classes = 0
        self.has_unconditional = True
        self.s_range = denoiser.s_range

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean images, at the other resolution.

        Args:
            u: noisy images, model space, float32 [B, C, H, W], stored resolution.
            s: noise level of each, model space, float32 [B].
            y: not used; no class.

        Returns:
            float32 [B, C, H', W'], model space.
        """
        return self._resized(self.denoiser(u, s, None))

    def with_bottom(
        self, u: Tensor, s: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `BottomDenoiser.with_bottom`; the activations are those before the resize."""
        clean, bottom = with_bottom(self.denoiser)(u, s, None)
        return self._resized(clean), bottom

    def _resized(self, clean: Tensor) -> Tensor:
        size = self._out[1:]
        if self._resize == "area":
            return F.interpolate(clean, size, mode="area")
        return F.interpolate(clean, size, mode=self._resize, antialias=True)
