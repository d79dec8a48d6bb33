"""Noise levels: the grid of levels s and the weight of each.

Two spaces are in use. Pixel space: images in [0, 1], smoothing noise `sigma`. Model space:
u = 2x - 1 in [-1, 1], noise levels `s`; the same noise is twice as large there, so s = 2 * sigma
(`conventions.to_model_space`).
A class score is -sum_t weights[t] * loss_t, with the same levels and weights for every class.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

FloatArray = NDArray[np.float64]

LOWEST_LEVEL = 1e-4
"""Where a grid begins that nobody gave a minimum, model space: of "dc", which takes its input for
clean (the released code's number), and so of certificates without votes."""

GRIDS = ("linear", "quantile")
WEIGHTS = ("edm", "elbo", "uniform", "linear-s", "reference")
REFERENCE_METHODS = ("dc", "epndc", "apndc", "apndc-posterior", "sift-refine")

SIGMA_DATA = 0.5
P_MEAN = -1.2
P_STD = 1.2
REFERENCE_REFINING_POINTS = 126
"""The released sift-and-refine always refines on this many points, whatever grid it is given."""


@dataclass(frozen=True)
class NoiseLevels:
    """Levels at which a score is evaluated, with their weights.

    Attributes:
        s: levels [T] in model space, ascending, positive, float64.
        weights: weight [T] of the loss at each level, non-negative, float64.
    """

    s: FloatArray
    weights: FloatArray


def weight_density(weights: str, s: FloatArray) -> FloatArray:
    """Weight density over the noise levels: a level's weight in an integral over s.

    Args:
        weights: "edm", lambda(s) p(s), with which the EDM networks were trained (lambda(s) =
            (s^2 + s_d^2) / (s s_d)^2, p log-normal); "elbo", 1 / s^3, which makes the squared error
            summed over the dimensions the evidence lower bound; "uniform", 1; or "linear-s", s,
            which favours the levels where losses change most slowly (for plain certificates).
        s: levels, any shape, model space, > 0.

    Returns:
        The density at each level, same shape.

    Raises:
        ValueError: an unknown name ("reference" is no density: its factors sit at several levels).

    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1: P_mean -1.2, P_std 1.2, sigma_data 0.5;
    1 / s^3 is the limit, for short intervals and per length, of the exact weight of the interval
    (sqrt(b), sqrt(c)] in EPNDC's bound, (c-a)(c-b) / (2 (b-a) c^2) with a = s_tau^2 (ours).
    """
    require_known("weights", weights, tuple(_DENSITIES))
    return _DENSITIES[weights](np.asarray(s, dtype=np.float64))


def noise_levels(
    grid: str,
    weights: str,
    levels: int,
    *,
    s_lo: float,
    s_max: float,
    method: str,
    s_tau: float = 0.0,
) -> NoiseLevels:
    """Levels on (s_lo, s_max] and their weights.

    `linear`: s_lo + i (s_max - s_lo) / T, i = 1..T, with weight density x spacing; error of first
    order in 1/T. `quantile`: mid-quantiles of the density on (s_lo, s_max], every weight Z/T with Z
    the density's integral; second order. `reference` needs `linear`: see `reference_levels`.

    Args:
        grid: "linear" or "quantile".
        weights: "edm", "elbo", "uniform", "linear-s" or "reference".
        levels: number T of levels, >= 1; for "reference" the number of grid points, ends included
            (126 and 1001 in the released code), of which slightly fewer are evaluated.
        s_lo: lower end, model space; > 0 for "quantile" and "reference".
        s_max: upper end, model space, > s_lo; 3 in the paper.
        method: classifier method, or "sift-refine" for the levels on which the released
            sift-and-refine refines (it sifts on `reference_sifting`).
        s_tau: smoothing noise already in the input, model space, >= 0; for "dc", which takes its
            input for clean, it does not matter where the grid begins.

    Returns:
        The levels with their weights.

    Raises:
        ValueError: an unknown name, levels < 1, or ends out of order.

    Source: linear grid and `reference`: Chen et al. 2024 (arXiv:2402.02316) and its released code.
    Quantile grid: ours. With F the integral of the density from s_lo, the score is the integral of
    the loss over F in (0, Z), and the midpoint rule in F has levels F^-1((i - 1/2) Z / T).
    """
    require_known("grid", grid, GRIDS)
    require_known("weights", weights, WEIGHTS)
    require_known("method", method, REFERENCE_METHODS)
    if levels < 1:
        raise ValueError(f"levels is {levels}, at least 1 is needed")
    _require_ordered_ends(s_lo, s_max, s_tau, method)
    if weights == "reference":
        if grid != "linear":
            raise ValueError(
                f'weights "reference" with grid "{grid}": the released code has only linear '
                'levels; set grid = "linear", or weights = "edm"'
            )
        return reference_levels(method, levels, s_lo=s_lo, s_max=s_max, s_tau=s_tau)
    if method == "sift-refine":
        raise ValueError(
            f'method "sift-refine" with weights "{weights}": only "reference" has levels of its '
            "own for it; otherwise name the method that is sifted"
        )
    if grid == "quantile":
        return _quantile_levels(weights, levels, s_lo, s_max, s_tau, method)
    spacing = (s_max - s_lo) / levels
    s = s_lo + spacing * np.arange(1, levels + 1, dtype=np.float64)
    s[-1] = s_max
    return NoiseLevels(s=s, weights=weight_density(weights, s) * spacing)


def reference_levels(
    method: str, points: int, *, s_lo: float, s_max: float, s_tau: float | None = None
) -> NoiseLevels:
    """Levels and weights of the paper's released code, offsets and slips included.

    On the grid s_0 = s_lo .. s_{N-1} = s_max of N points with spacing ds, and p the log-normal
    density with its exponent multiplied where it should be divided by P_std^2:

    | method | grid index | level | weight |
    |---|---|---|---|
    | dc, apndc | j = 1 .. N-2 | s_j | lambda(s_j) p(s_{j-1}) ds |
    | apndc-posterior | j = 2 .. N-2 | s_j | lambda(s_j) p(s_{j-2}) ds |
    | epndc | i = 5 .. N-3 | s_{i+1} | lambda(s_i) p(s_i) ds (c-a)(s_i+s_{i+1})^2 / (4c(b-a)) |
    | sift-refine | i = 0 .. 125 | s_i of 126 points | lambda(s_i) p(s_i) ds, ds of the N points |

    with a = s_tau^2, b = s_i^2, c = s_{i+1}^2.

    Args:
        method: one of the table's.
        points: N, >= 8; 126 and 1001 in the released code.
        s_lo: first grid point, model space, > 0: s_tau, or 1e-4 for dc.
        s_max: last grid point, model space.
        s_tau: smoothing noise already in the input, model space; only "epndc" weighs by it. By
            default s_lo, as in the released code.

    Returns:
        The levels with their weights; N-2, N-3, N-7 and 126 of them in the table's order.

    Raises:
        ValueError: too few points, or s_lo is 0.

    Source: behaviour of the code released with Chen et al. 2024 (arXiv:2402.02316), restated.
    """
    if points < 8:
        raise ValueError(
            f'levels is {points}, weights "reference" need at least 8 grid points (released: 126)'
        )
    if s_lo <= 0.0:
        raise ValueError(f's_lo is {s_lo}, weights "reference" need s_lo > 0 (released dc: 1e-4)')
    spacing = (s_max - s_lo) / (points - 1)
    if method == "sift-refine":
        s = np.linspace(s_lo, s_max, REFERENCE_REFINING_POINTS)
        return NoiseLevels(s=s, weights=_edm_lambda(s) * _reference_p(s) * spacing)
    s = np.linspace(s_lo, s_max, points)
    if method == "epndc":
        lower, upper = s[5:-2], s[6:-1]
        a, b, c = (s_lo if s_tau is None else s_tau) ** 2, lower**2, upper**2
        interval_factor = (c - a) * (lower + upper) ** 2 / (4.0 * c * (b - a))
        weights = _edm_lambda(lower) * _reference_p(lower) * spacing * interval_factor
        return NoiseLevels(s=upper, weights=weights)
    late = 2 if method == "apndc-posterior" else 1  # p is taken so many steps below the level
    weights = _edm_lambda(s[late:-1]) * _reference_p(s[: -1 - late]) * spacing
    return NoiseLevels(s=s[late:-1], weights=weights)


def reference_sifting(points: int, *, s_lo: float, s_max: float) -> NoiseLevels:
    """Levels on which the released sift-and-refine sifts, visited in ascending order, all of them.

    Args:
        points: how many, >= 1; 50 in the released code.
        s_lo: the first of them, model space, > 0: s_tau in the released code.
        s_max: the last of them, model space.

    Returns:
        Evenly spaced levels, both ends included, with their weight density lambda(s) p(s): the
        weight without the spacing, for a threshold that no grid changes.

    Source: as `reference_levels`.
    """
    s = np.linspace(s_lo, s_max, points)
    return NoiseLevels(s=s, weights=_edm_lambda(s) * _reference_p(s))


def require_known(what: str, name: str, known: Sequence[str]) -> None:
    """Refuse an unknown name and say which known one is nearest.

    Args:
        what: what is named, for the message.
        name: the name given.
        known: the names there are.

    Raises:
        ValueError: the name is not among them.

    Source: ours.
    """
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f'{what} is "{name}", did you mean "{nearest}"? Known: {", ".join(known)}')


def _quantile_levels(
    weights: str, levels: int, s_lo: float, s_max: float, s_tau: float, method: str
) -> NoiseLevels:
    if s_lo <= 0.0:
        raise ValueError(f's_lo is {s_lo}, grid "quantile" needs s_lo > 0, for instance 1e-3')
    if method == "epndc" and s_lo <= s_tau:
        raise ValueError(
            f's_lo is {s_lo} and s_tau is {s_tau}: method "epndc" on grid "quantile" needs s_lo '
            f"above s_tau, for instance {1.05 * s_tau:.6g}"
        )
    integral = _INTEGRALS[weights]
    total = float(integral(s_lo, np.array([s_max]))[0])
    wanted = total * (np.arange(levels) + 0.5) / levels
    below, above = np.full(levels, s_lo), np.full(levels, s_max)
    for _ in range(200):  # bisection: s_max / s_lo is at most 2^100 or so, and 2^-53 ends it
        middle = 0.5 * (below + above)
        too_low = integral(s_lo, middle) < wanted
        below, above = np.where(too_low, middle, below), np.where(too_low, above, middle)
    return NoiseLevels(s=0.5 * (below + above), weights=np.full(levels, total / levels))


def _edm_integral(s_lo: float, s: FloatArray) -> FloatArray:
    # lambda p = p / s_d^2 + p / s^2, and the log-normal density over s^2 is again a log-normal
    # density, shifted by -2 P_std^2, times its moment E[s^-2] = exp(2 P_std^2 - 2 P_mean).
    z_lo = (math.log(s_lo) - P_MEAN) / P_STD
    z = (np.log(s) - P_MEAN) / P_STD
    moment = math.exp(2.0 * P_STD**2 - 2.0 * P_MEAN)
    plain = _normal_mass(z_lo, z) / SIGMA_DATA**2
    return plain + moment * _normal_mass(z_lo + 2.0 * P_STD, z + 2.0 * P_STD)


def _normal_mass(z_lo: float, z: FloatArray) -> FloatArray:
    # In the upper tail the difference of the small tails keeps the digits.
    if z_lo > 0.0:
        return np.asarray(ndtr(-z_lo) - ndtr(-z), dtype=np.float64)
    return np.asarray(ndtr(z) - ndtr(z_lo), dtype=np.float64)


def _edm_density(s: FloatArray) -> FloatArray:
    exponent = -((np.log(s) - P_MEAN) ** 2) / (2.0 * P_STD**2)
    return _edm_lambda(s) * np.exp(exponent) / (s * P_STD * math.sqrt(2.0 * math.pi))


def _edm_lambda(s: FloatArray) -> FloatArray:
    return (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2


def _reference_p(s: FloatArray) -> FloatArray:
    exponent = -((np.log(s) - P_MEAN) ** 2) * P_STD**2 / 2.0  # the slip: "* P_std^2"
    return np.exp(exponent) / (s * P_STD * math.sqrt(2.0 * math.pi))


_DENSITIES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "edm": _edm_density,
    "elbo": lambda s: s**-3.0,
    "uniform": np.ones_like,
    "linear-s": lambda s: 1.0 * s,
}
_INTEGRALS: dict[str, Callable[[float, FloatArray], FloatArray]] = {
    "edm": _edm_integral,
    "elbo": lambda s_lo, s: (s - s_lo) * (s + s_lo) / (2.0 * (s_lo * s) ** 2),
    "uniform": lambda s_lo, s: s - s_lo,
    "linear-s": lambda s_lo, s: (s - s_lo) * (s + s_lo) / 2.0,
}


def _require_ordered_ends(s_lo: float, s_max: float, s_tau: float, method: str) -> None:
    if not (math.isfinite(s_lo) and math.isfinite(s_max) and s_lo >= 0.0 and s_tau >= 0.0):
        raise ValueError(
            f"s_lo is {s_lo}, s_max is {s_max}, s_tau is {s_tau}: finite numbers >= 0 are needed"
        )
    if s_tau >= s_max:
        raise ValueError(
            f"s_tau is {s_tau} (sigma {s_tau / 2:g} x 2) but the grid ends at s_max {s_max}: use a "
            f"sigma below {s_max / 2:g}, or raise s_max"
        )
    if s_lo >= s_max:
        raise ValueError(f"s_lo is {s_lo} but s_max is {s_max}: s_lo must be below s_max")
    if method != "dc" and s_lo < s_tau:
        raise ValueError(
            f's_lo is {s_lo} but s_tau is {s_tau} (sigma {s_tau / 2:g} x 2): method "{method}" '
            f"adds noise to an input that has s_tau already; set s_lo to {s_tau:g} or above"
        )
