"""How far n votes can reach at most, and how many a radius needs."""

import math

from diffcert_ray.certificates.executed import executed_certificate

LARGEST_N = 2**53
"""Largest n that `required_n` looks at: beyond it a float no longer counts every vote."""


def largest_radius(
    n: int, sigma: float, alpha: float, bound: str, *, slack: float, taken_off: float
) -> float:
    """The ceiling: the radius that n unanimous votes certify.

    Args:
        n: estimation votes, n >= 1; for "sequential" the last look is at n.
        sigma: smoothing noise, pixel units, > 0.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS.
        slack: as `executed_certificate`.
        taken_off: as `executed_certificate`.

    Returns:
        Radius in pixel units, 0.0 where even unanimous votes abstain.

    Raises:
        ValueError: a value is out of range.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.2, figure 4.
    """
    n_b = 0 if bound == "two-class" else None
    return executed_certificate(
        n,
        n,
        sigma=sigma,
        slack=slack,
        taken_off=taken_off,
        n_b=n_b,
        alpha=alpha,
        bound=bound,
    ).radius


def required_n(
    radius: float, sigma: float, alpha: float, bound: str, *, slack: float, taken_off: float
) -> int:
    """Smallest n at which unanimous votes certify the radius.

    Args:
        radius: asked l2 radius, pixel units, >= 0 (0: any radius at all).
        sigma: smoothing noise, pixel units, > 0.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS; for "sequential" with a look at every vote (with fewer looks, round
            up to the next look).
        slack: as `executed_certificate`.
        taken_off: as `executed_certificate`.

    Returns:
        Votes, >= 1.

    Raises:
        ValueError: a value is out of range, or no n up to 2**53 is enough.

    Source: ours: the ceiling of `largest_radius` rises with n, so a search by halving finds it.
    """
    if not 0.0 <= radius < math.inf:
        raise ValueError(f"radius={radius!r} must be a finite number of pixel units, at least 0")

    def enough(n: int) -> bool:
        ceiling = largest_radius(n, sigma, alpha, bound, slack=slack, taken_off=taken_off)
        return ceiling > 0.0 and ceiling >= radius

    above = 1
    while not enough(above):
        above *= 2
        if above > LARGEST_N:
            raise ValueError(
                f"radius={radius} at sigma={sigma} needs more than {LARGEST_N} votes "
                f"at alpha={alpha}; ask for a smaller radius or use a larger sigma"
            )
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        above, below = (middle, below) if enough(middle) else (above, middle)
    return above
