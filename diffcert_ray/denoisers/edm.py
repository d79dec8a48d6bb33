"""The EDM denoiser: a raw network within its preconditioning.

Shape letters: B samples, C H W image, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.dhariwal_unet import DhariwalUNet
from diffcert_ray.denoisers.noise_steps import step_levels
from diffcert_ray.denoisers.preconditioning import (
    PRECONDITIONING,
    PREDICTION,
    Coefficients,
    StepLabels,
)
from diffcert_ray.denoisers.song_unet import SongUNet

NetworkDtype = Literal["float32", "tf32", "bfloat16", "float16"]
NETWORK_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # `device.compute_alike` lets a GPU round the factors of products
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_NETWORKS: dict[str, type[SongUNet | DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}


class EdmDenoiser(nn.Module):
    """D(u; s, y) = c_skip u + c_out F(c_in u, c_noise, y); satisfies `Denoiser`.

    Input, output and the sum are float32; only F runs in the network's dtype.

    Source: Karras et al. 2022 (arXiv:2206.00364), section 5, equation 7 and table 1.
    """

    class_rows: Tensor

    def __init__(self, configuration: EdmConfiguration, *, dtype: NetworkDtype = "float32") -> None:
        """Build the denoiser with fresh weights.

        Args:
            configuration: the network and its preconditioning.
            dtype: what the network computes in.

        Raises:
            ValueError: unknown dtype.
        """
        super().__init__()
        check_dtype(dtype)
        self.configuration = configuration
        self.image_shape = configuration.image_shape
        self.num_classes = configuration.label_dim
        self.has_unconditional = configuration.unconditional
        self.s_range = configuration.noise_range
        self.dtype = NETWORK_DTYPES[dtype]
        self.model = _NETWORKS[configuration.model_type](configuration)
        for name, part in self.model.named_children():
            if name != "map_noise":  # frequencies of hundreds of turns need float32
                part.to(self.dtype)
        self.step_labels = None
        if configuration.schedule is not None and configuration.steps is not None:
            levels = step_levels(configuration.schedule, configuration.steps)
            self.step_labels = StepLabels(levels, nearest=configuration.nearest_step)
        width = max(1, self.num_classes)  # of width 0, torch would report a bad class otherwise
        # Row y + 1: no class first, all zero. On the CPU even where weights are not made yet.
        rows = torch.zeros(self.num_classes + 1, width, device="cpu")
        rows[1:].fill_diagonal_(1)
        self.register_buffer("class_rows", rows, persistent=False)

    def forward(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            u: noisy images in model space, float32 [B, C, H, W].
            s: standard deviation of the noise in each, model space, > 0, float32 [B].
            y: class of each, int64 [B] in 0..K-1, or -1 for no class; None: no class for all.

        Returns:
            The estimates of the clean images, model space, float32 [B, C, H, W].

        Raises:
            ValueError: a shape does not fit, or y is None for a network that needs classes.
            IndexError: a class is out of range (on a CPU; a GPU stops with a device assertion).
        """
        return self.with_bottom(u, s, y)[0]

    def with_bottom(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `BottomDenoiser.with_bottom`; errors as `forward`.

        Args:
            u: as `forward`.
            s: as `forward`.
            y: as `forward`.
        """
        check_call(self, u, s, y)
        if y is None:
            y = torch.full_like(s, NO_CLASS, dtype=torch.int64)
        classes = F.embedding(y + 1, self.class_rows)
        c_skip, c_out, c_in, c_noise = self._coefficients(s.float())
        u = u.float()
        x = (c_in[:, None, None, None] * u).to(self.dtype)
        raw, bottom = self.model.with_bottom(x, c_noise * self.configuration.c_noise_scale, classes)
        raw = raw[:, : u.shape[1]].float()  # the rest, if any, is a learned variance
        kept = c_skip[:, None, None, None] * u
        return torch.addcmul(kept, c_out[:, None, None, None], raw), bottom

    def _coefficients(self, s: Tensor) -> Coefficients:
        kind = self.configuration.preconditioning
        if self.step_labels is not None:
            return PREDICTION[kind](s, self.step_labels(s))
        return PRECONDITIONING[kind](s, self.configuration.sigma_data)


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless a network can compute in it."""
    if dtype not in NETWORK_DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(NETWORK_DTYPES)}")


def check_call(denoiser: Denoiser, u: Tensor, s: Tensor, y: Tensor | None) -> None:
    """Raise ValueError unless a denoiser can be called with these.

    Args:
        denoiser: its image shape and modes are what is checked against.
        u: noisy images, as `Denoiser.__call__` takes them.
        s: noise levels.
        y: classes or None.

    Raises:
        ValueError: a shape does not fit, or y is None for a network that needs classes.
    """
    if u.ndim != 4 or tuple(u.shape[1:]) != denoiser.image_shape:
        raise ValueError(
            f"u has shape {tuple(u.shape)}: this network takes [B, *{denoiser.image_shape}]"
        )
    if s.shape != u.shape[:1] or (y is not None and y.shape != u.shape[:1]):
        raise ValueError(
            f"s has shape {tuple(s.shape)} and y {None if y is None else tuple(y.shape)}: "
            f"each must be [{u.shape[0]}], one entry per image"
        )
    if y is None and not denoiser.has_unconditional:
        raise ValueError(
            "y is None but this network has no unconditional mode: give a class to every "
            "image, or take a second, unconditional checkpoint for the unconditional step"
        )
