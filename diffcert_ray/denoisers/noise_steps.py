"""The noise levels of chains of discrete steps (DDPM); needs no torch."""

from __future__ import annotations

from functools import cache

import numpy as np

_MAX_BETA = 0.999


@cache
def step_levels(schedule: str, steps: int) -> np.ndarray:
    """Noise levels of the steps of a chain, in model space.

    Args:
        schedule: "linear" (betas from 0.1/T to 20/T) or "cosine".
        steps: T, number of steps.

    Returns:
        s_t = sqrt((1 - abar_t) / abar_t) for t = 0..T-1, float64 [T], increasing.

    Raises:
        ValueError: another schedule.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 4, rescaled to T steps as by Nichol and
        Dhariwal 2021 (arXiv:2102.09672), whose equation 17 is the cosine.
    """
    if schedule == "linear":
        betas = np.linspace(0.1 / steps, 20.0 / steps, steps)
    elif schedule == "cosine":
        kept = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = 1 - kept[1:] / kept[:-1]
    else:
        raise ValueError(f"schedule is {schedule!r}: it must be 'linear' or 'cosine'")
    levels = levels_of_betas(np.minimum(betas, _MAX_BETA))
    levels.flags.writeable = False  # shared by all callers
    return levels


def levels_of_betas(betas: np.ndarray) -> np.ndarray:
    """Noise levels of a chain in model space.

    Args:
        betas: share of the variance that each step replaces by noise, [T], in (0, 1).

    Returns:
        s_t for t = 0..T-1, float64 [T], increasing.

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 4: x_t = sqrt(abar_t) x_0 + noise, which
        divided by sqrt(abar_t) is the image with noise of level s_t.
    """
    log_kept = np.cumsum(np.log1p(-np.asarray(betas, dtype=np.float64)))
    return np.sqrt(np.expm1(-log_kept))
