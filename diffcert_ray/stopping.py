"""Decide at a look whether an image of a sequential run has enough votes."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import special

from diffcert_ray.certificates import certificate, check_sigma
from diffcert_ray.sequential import LOG_MARGIN, Counts, cumulative_looks, sequential_log_e

Decision = Literal["continue", "certified", "futile", "cap"]


def sequential_decision(
    k: Counts,
    n: Counts,
    *,
    cap: int,
    sigma: float,
    radii: Sequence[float],
    alpha: float,
    futility_level: float,
) -> Decision:
    """Decide whether one image goes on, from its counts at all looks so far.

    The rules, in this order, where "certified" means by the best of the looks so far:

    1. "certified": the largest asked radius is certified.
    2. "cap": the last look is at the cap.
    3. "futile": the smallest asked radius r that is not certified yet cannot be hoped for, that is
       with p_r = Phi(r / sigma), either the upper confidence bound at futility_level lies below
       p_r at the last look, or votes all for the class from here to the cap would not certify r.
    4. "continue".

    Stopping rules do not touch the certificate's validity: futility_level only trades votes for
    images that are given up although their true probability would have sufficed (each with a
    probability of at most futility_level by the first condition; the second gives up none).

    Args:
        k: votes for the class up to each look, cumulative, [looks] or one number.
        n: votes up to each look, cumulative, [looks] or one number, at most the cap.
        cap: votes at which the image stops in any case, >= 1.
        sigma: smoothing noise, pixel units, > 0.
        radii: asked radii, pixel units, >= 0, not empty.
        alpha: failure probability of the certificate, in (0, 1).
        futility_level: failure probability of the upper bound, in (0, 1).

    Returns:
        "certified", "cap", "futile" or "continue".

    Raises:
        ValueError: a value is out of range, or votes go beyond the cap.

    Source: ours. The likelihood ratio of a success is at least 1 for every p > p0, so the
        e-value never falls with one: unanimous votes to the cap are the best that can come.
    """
    k_looks, n_looks = cumulative_looks(k, n)
    _check(radii, n_looks, cap, sigma, futility_level)
    certified = certificate(k_looks, n_looks, sigma=sigma, alpha=alpha, bound="sequential")
    missing = [r for r in radii if certified.abstained or certified.radius < r]
    if not missing:
        return "certified"
    k_now, n_now = int(k_looks[-1]), int(n_looks[-1])
    if n_now == cap:
        return "cap"
    z = min(missing) / sigma
    p_r, q_r = float(special.ndtr(z)), float(special.ndtr(-z))
    if _refuted(n_now - k_now, n_now, q_r, p_r, futility_level):
        return "futile"
    if not _refuted(k_now + cap - n_now, cap, p_r, q_r, alpha):
        return "futile"
    return "continue"


def _refuted(k: int, n: int, p0: float, q0: float, level: float) -> bool:
    """Whether k successes in n votes refute "the probability is at most p0 = 1 - q0"."""
    return bool(sequential_log_e(k, n, p0, q0=q0) >= LOG_MARGIN - math.log(level))


def _check(
    radii: Sequence[float], n_looks: np.ndarray, cap: int, sigma: float, level: float
) -> None:
    check_sigma(sigma)
    if len(radii) == 0 or not all(0.0 <= r < math.inf for r in radii):
        raise ValueError(f"radii={list(radii)}: give at least one, finite and at least 0")
    if max(radii) / sigma > 8.0:
        raise ValueError(
            f"radius {max(radii)} is more than 8 sigma (sigma={sigma}) and out of reach of any "
            "number of votes; ask for smaller radii or use a larger sigma"
        )
    if n_looks[-1] > cap:
        raise ValueError(
            f"n={n_looks[-1]} votes are beyond the cap of {cap}; pass looks up to the cap only"
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"futility_level={level!r} must lie in (0, 1), for example 0.01")
