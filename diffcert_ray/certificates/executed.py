"""Certificates of the program as it is executed: sampled noise, floats, pixels off the grid.

`certificate` is the pure function of counts, for ideal Gaussian noise and real numbers. What is
stored has less: ``slack`` off every probability, ``taken_off`` off the radius, and everything is
rounded down.
"""

import math

import numpy as np

from diffcert_ray.certificates.radius import (
    Certificate,
    certified_radius,
    check_sigma,
    class_bounds,
)
from diffcert_ray.certificates.sequential import Counts

ROUNDING = 1e-11
"""Relative error of q and of p_b that the library's quantiles stay below."""


def executed_certificate(
    n_a: Counts,
    n: Counts,
    *,
    sigma: float,
    slack: float,
    taken_off: float,
    n_b: Counts | None = None,
    alpha: float = 0.001,
    bound: str = "clopper-pearson",
) -> Certificate:
    """The certificate that is stored: `certificate`, less what separates execution from theory.

    With probability at least 1 - alpha over the votes, the class is returned everywhere in the open
    ball of that radius, by the program as it is executed and for every real perturbation.

    Args:
        n_a: as `certificate`; for "sequential" cumulative counts, [looks].
        n: as `certificate`.
        sigma: smoothing noise, pixel units, > 0.
        slack: in [0, 1), subtracted from the probability of the class and added to the others';
            ``method.grid.slack``.
        taken_off: pixel units, >= 0, subtracted from the radius: what perturbations off the grid
            cost, and the image's own distance from it.
        n_b: for "two-class" only, as `certificate`.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS.

    Returns:
        Radius and p_low never above their exact values. ``abstained`` says whether the class is
        certified at all: where it is and nothing is left of the radius, that is 0.0.

    Raises:
        ValueError: a value is out of range, or counts contradict each other.

    Source: ours; `method.grid` says why. The votes are i.i.d. from the sampled law, so that the
        bound on it holds for any n, fixed or sequential.
    """
    check_sigma(sigma)
    if not (0.0 <= slack < 1.0 and 0.0 <= taken_off < math.inf):
        raise ValueError(
            f"slack={slack!r} must lie in [0, 1), taken_off={taken_off!r} be finite and at least 0"
        )
    q, p_b = class_bounds(n_a, n, n_b=n_b, alpha=alpha, bound=bound)
    q = _up(q, slack)
    radius = certified_radius(q, None if p_b is None else _up(p_b, slack), sigma)
    p_low = max(0.0, float(np.nextafter(1.0 - q, 0.0)))
    if radius <= 0.0:
        return Certificate(0.0, p_low, True, q)
    left = float(np.nextafter(radius * (1.0 - 1e-14) - taken_off, -np.inf))
    return Certificate(max(0.0, left), p_low, False, q)


def _up(probability: float, slack: float) -> float:
    return min(1.0, (probability + slack) * (1.0 + ROUNDING))
