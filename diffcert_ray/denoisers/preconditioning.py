"""Coefficients that turn a raw network F into a denoiser D.

D(u; s, y) = c_skip * u + c_out * F(c_in * u, c_noise, y). Every function maps noise levels s
(model space, s > 0, float32 [B]) to these four, each [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_BETA_D, _BETA_MIN = 19.9, 0.1  # the VP schedule of Song et al. 2021
_VP_STEPS = 1000


class Coefficients(NamedTuple):
    """The four numbers per sample, each float32 [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_coefficients(s: Tensor, sigma_data: float) -> Coefficients:
    """Source: Karras et al. 2022 (arXiv:2206.00364), table 1, column "Ours"."""
    total = s**2 + sigma_data**2
    root = total.sqrt()
    return Coefficients(sigma_data**2 / total, s * sigma_data / root, 1 / root, s.log() / 4)


def vp_coefficients(s: Tensor, sigma_data: float) -> Coefficients:
    """Source: Karras et al. 2022 (arXiv:2206.00364), table 1, column "VP"."""
    t = ((_BETA_MIN**2 + 2 * _BETA_D * torch.log1p(s**2)).sqrt() - _BETA_MIN) / _BETA_D
    return Coefficients(torch.ones_like(s), -s, 1 / (s**2 + 1).sqrt(), (_VP_STEPS - 1) * t)


def ve_coefficients(s: Tensor, sigma_data: float) -> Coefficients:
    """Source: Karras et al. 2022 (arXiv:2206.00364), table 1, column "VE"."""
    one = torch.ones_like(s)
    return Coefficients(one, s, one, (s / 2).log())


def epsilon_coefficients(s: Tensor, step: Tensor) -> Coefficients:
    """For F that predicts the noise at a step of a chain: D = u - s F.

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 15, in model space.
    """
    return Coefficients(torch.ones_like(s), -s, (1 + s**2).rsqrt(), step)


def v_coefficients(s: Tensor, step: Tensor) -> Coefficients:
    """For F that predicts v: D = u / (1 + s^2) - s / sqrt(1 + s^2) F.

    Source: Salimans and Ho 2022 (arXiv:2202.00512), appendix D: x = alpha z - sigma v, where
        z = alpha u, alpha = 1 / sqrt(1 + s^2) and sigma = s alpha.
    """
    kept = (1 + s**2).rsqrt()
    return Coefficients(kept**2, -s * kept, kept, step)


def sample_coefficients(s: Tensor, step: Tensor) -> Coefficients:
    """For F that predicts the clean image itself: D = F.

    Source: Salimans and Ho 2022 (arXiv:2202.00512), section 4.
    """
    return Coefficients(torch.zeros_like(s), torch.ones_like(s), (1 + s**2).rsqrt(), step)


PREDICTION: dict[str, Callable[[Tensor, Tensor], Coefficients]] = {
    "epsilon": epsilon_coefficients,
    "v": v_coefficients,
    "sample": sample_coefficients,
}
PRECONDITIONING: dict[str, Callable[[Tensor, float], Coefficients]] = {
    "edm": edm_coefficients,
    "vp": vp_coefficients,
    "ve": ve_coefficients,
}


class StepLabels(nn.Module):
    """Which step of a chain has a noise level: t, interpolated in log s, or the nearest one."""

    levels: Tensor

    def __init__(self, levels: np.ndarray, *, nearest: bool = False) -> None:
        """Keep the chain's noise levels.

        Args:
            levels: s_t for t = 0..T-1 in model space, increasing, [T] with T >= 2.
            nearest: round to the nearest step (by s), as some networks were trained.

        Raises:
            ValueError: fewer than two levels, or not increasing.
        """
        super().__init__()
        if len(levels) < 2 or not (np.diff(levels) > 0).all():
            raise ValueError(f"a chain's {len(levels)} noise levels must be 2 or more and increase")
        self.nearest = nearest
        kept = torch.as_tensor(np.array(levels), dtype=torch.float64, device="cpu")
        self.register_buffer("levels", kept if nearest else kept.log(), persistent=False)

    def forward(self, s: Tensor) -> Tensor:
        """Map noise levels [B] to steps [B], float32; those outside the chain to its ends."""
        sought = s.double() if self.nearest else s.double().log()
        above = torch.searchsorted(self.levels, sought).clamp(1, len(self.levels) - 1)
        low, high = self.levels[above - 1], self.levels[above]
        between = ((sought - low) / (high - low)).clamp(0, 1)
        if self.nearest:
            between = (between > 0.5).double()
        return (above - 1 + between).float()
