"""Smoothing noise on the grid of the pixels, and what it costs a certificate.

In floating point an image plus noise is rounded in a way that depends on the image, and a base
classifier may read it off: votes are then not those of Gaussian smoothing, and a certificate can be
false. Here everything is a multiple of one step h: the image is X h, the noise K h with
K = round(sigma G / h) and G standard normal, and the base classifier is shown a function of the
integers X + K alone. A shift of the image by grid points commutes with rounding,
X + round(sigma G / h) = round((X h + sigma G) / h), so votes are those of ordinary Gaussian
smoothing of the base classifier after rounding, and Cohen's theorem holds for every shift on the
grid, with no loss. Two things are left, and both are taken off: that the sampled K is not exactly
the rounded Gaussian (``slack``, of probabilities), and that images and perturbations need not lie
on the grid (``rounding_radius``, ``off_grid``, of radii).

Source: ours, after arXiv:2207.07209 (randomized smoothing is unsound in floating point).
"""

import math

from diffcert_ray.datasets.pixel_grid import STEPS

MIDDLE = STEPS // 2
"""The grid point of the middle of the box, which is 0 in model space."""
FARTHEST = 2**23
"""Grid points of noisy images stay below it: float32 holds every one of them."""
LARGEST_NORMAL = 9.6
"""No sampled normal is larger: sqrt(2 * 65 * log 2) = 9.493 for the smallest uniform, 2^-65."""

_ULP = 2.0**-52
_ERROR_ULPS = 5.1
"""E|z' - z| of a sampled normal, in units of 2^-52; derived in ``slack``."""


def rounding_radius(dimensions: int) -> float:
    """What perturbations off the grid take off a radius: sqrt(D) h / 2, l2, pixel units.

    Args:
        dimensions: D, channels times height times width of the images that noise is added to.

    Returns:
        The largest distance of a point from the grid, rounded up. A perturbed image is rounded to
        the grid before it is classified: a perturbation of length r becomes one of at most
        r + sqrt(D) h / 2 on the grid.
    """
    return math.sqrt(dimensions) * 0.5 / STEPS * (1.0 + 1e-15)


def slack(sigma: float, dimensions: int) -> float:
    """What the sampler takes off a probability: the total variation of one vote's noise, bounded.

    Args:
        sigma: smoothing noise, pixel units, > 0.
        dimensions: D, numbers in the noise of one vote.

    Returns:
        eps such that the sampled noise can be coupled to the ideal one, rounded Gaussian, with all
        D integers equal but with probability eps. The probability of any event (that a vote is for
        the class, that a vote is for another one) differs by at most eps, so that a bound p_low on
        what was sampled gives p_low - eps for the ideal, for any number of votes.

    Source: ours. A coordinate is K = round(s z), s = sigma / h, z = R cos(theta) or R sin(theta),
        R = sqrt(-2 log U), theta = 2 pi V; U and V are the middles of cells of width 2^-64 (two
        32-bit words of Philox, taken to be uniform). Couple with U, V uniform in their cells. K
        differs only where a half-integer lies between s z' (as computed) and s z.

        1. Cells. Along U at fixed V, s z passes each half-integer within s R_max of 0 at most once,
           in one cell, and on the wrong side of its middle with probability at most 2^-65. Along V
           at fixed U it passes at most 4 s R + 2 of them. With E R = sqrt(pi / 2) and R_max < 9.6:
           at most 2^-65 (2 * 9.6 s + 4 * 1.26 s + 3) < 2^-65 (25 s + 3).
        2. The tail. The smallest U is 2^-65: R above 9.493 is cut, with probability 2^-65.
        3. float64, in units of u = 2^-53. U carries a relative error of 1 u, which moves log U by
           as much and R by u / R. The library's log is taken to be within 1 ulp (2 u, relative; 1 u
           of R), its square root correctly rounded (1 u), its cosine and sine within 2 ulps (of a
           number of at most 1: 2 u, absolute). theta in [-pi, pi) carries, averaged over theta, the
           roundings of V (1.57 u), of 2 pi (0.4 u * 1.57) and of their product (1.2 u), which move
           the cosine (or sine) by 2.2 u on average. The product R cos(theta), s and s z are rounded
           (3 u, relative). Relative errors of z count E|cos| = 0.64 of themselves. So
           E|z' - z| <= u [0.64 E(1 / R) + E R (2 * 0.64 + 2 + 2.2 + 3 * 0.64)]
           = 1.2534 * 8.04 u < 10.2 u = 5.1 * 2^-52, with E(1 / R) = E R = sqrt(pi / 2).
           Half-integers are 1 / s apart in z, where s is at least 16 and the density of z is
           smooth: one lies within |z' - z| of z, on either side, with probability at most
           2 (s + 2) E|z' - z|.

        The union bound over D coordinates covers that the two of a pair share U and V.
    """
    s = sigma * STEPS
    coordinate = 2.0 * (s + 2.0) * _ERROR_ULPS * _ULP + 2.0**-65 * (25.0 * s + 3.0) + 2.0**-65
    return dimensions * coordinate


def check_sigma_on_grid(sigma: float) -> None:
    """Refuse a smoothing noise that is too small or too large for the grid.

    Args:
        sigma: smoothing noise, pixel units.

    Raises:
        ValueError: noisy pixels could leave the integers that float32 holds, or the noise is
            hardly wider than a step.
    """
    largest = (FARTHEST - STEPS) / (LARGEST_NORMAL * STEPS)
    smallest = 16 / STEPS
    if not smallest <= sigma <= largest:
        raise ValueError(
            f"sigma={sigma!r} must lie in {smallest:.6f} to {largest:.2f} (pixels in [0, 1]): "
            f"noise and pixels are multiples of 1/{STEPS}, and float32 holds all of them up to "
            f"{FARTHEST}"
        )
