"""Coefficients that turn a raw network F into a denoiser D, for EDM, VP and VE checkpoints.

D(u; s, y) = c_skip * u + c_out * F(c_in * u, c_noise, y). Every function maps noise levels s
(model space, s > 0, float32 [B]) to these four, each [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

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


PRECONDITIONING: dict[str, Callable[[Tensor, float], Coefficients]] = {
    "edm": edm_coefficients,
    "vp": vp_coefficients,
    "ve": ve_coefficients,
}


def vp_noise_level(t: float) -> float:
    """Noise level s at time t in [0, 1] of the VP schedule (inverse of the t in c_noise).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, column "VP", sigma(t).
    """
    return math.sqrt(math.expm1(_BETA_D * t**2 / 2 + _BETA_MIN * t))
