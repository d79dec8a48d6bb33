"""Certificates of the plain diffusion classifier, from bounds on how fast its losses can change.

The classifier projects its input on the box, x' = clip(x, 0, 1), and clips the denoiser's output
h; its losses are l_{t,y}(x) = E || h(x' + sigma_t eps; t, y) - x' ||^2 / D in [0, 1] (pixel units),
its class is argmin_y sum_t w_t l_{t,y}(x). The projection never lengthens a step, so radii hold
for every perturbation, also out of the box.

Letters in shapes: M draws, T noise levels, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from diffcert_ray.certificates.betting import UnitSums, betting_bound
from diffcert_ray.certificates.fraction import check_fraction

Array = NDArray[np.float64]

SMALLEST_LOSS = 1e-12  # end of the first cell of the travel table
SMALLEST_GAP = 1e-9  # start of the last cell, below loss 1
CELLS_BELOW_HALF = 10_000  # 0.27 % apart: travel distances come out at most about 0.2 % short
CELLS_ABOVE_HALF = 4_000
BISECTIONS = 45
ROUNDING = 1e-9  # taken off every local radius, relative to the whole travel distance from 0 to 1


@dataclass(frozen=True)
class PlainCertificate:
    """What is certified about one image, for the classifier with exact expectations.

    With probability at least 1 - alpha over the draws: if not `abstained`, the classifier returns
    `predicted` everywhere in the open l2 ball of `radius` (pixel units) around the image.

    Attributes:
        predicted: the class that was tried; write ABSTAIN in its place where `abstained`.
        radius: certified radius, 0 where `abstained`.
        abstained: the bounds do not separate `predicted` from every other class.
        estimated_radius: the same bound at the mean losses: an estimate, never a certificate.
        bound: "lipschitz" or "local".
        alpha: failure probability of this certificate.
        draws: M, the draws behind the bounds.
    """

    predicted: int
    radius: float
    abstained: bool
    estimated_radius: float
    bound: str
    alpha: float
    draws: int


def plain_certificate(
    observations: ArrayLike | UnitSums,
    *,
    sigma_t: ArrayLike,
    weights: ArrayLike,
    dimensions: int,
    alpha: float = 0.001,
    bound: Literal["lipschitz", "local"] = "local",
    ceiling: float = 1.0,
) -> PlainCertificate:
    """Certify the class of one image from draws of its losses.

    Args:
        observations: [M, T, K] single-draw losses in [0, ceiling], i.i.d. over the first axis, in
            draw order, or their `UnitSums` [J, T, K]; M and the units were fixed beforehand. The
            noise may be shared by classes and levels.
        sigma_t: [T] noise levels in pixel units, > 0.
        weights: [T] weights >= 0 that sum to 1; levels of weight 0 are left out.
        dimensions: D, the number of pixels times channels.
        alpha: failure probability of the certificate, 0 < alpha < 1.
        bound: "lipschitz" (constant slope) or "local" (slope by loss), from the same intervals
            for the mean loss of every (level, class).
        ceiling: largest possible loss at this image; mean over pixels of max(x', 1 - x')^2 is
            valid, and brings the upper bounds closer by that factor.

    Returns:
        The certificate; it abstains where the bounds do not separate the class from the others.

    Raises:
        ValueError: a shape, range or bound is not as above.

    Source: paper arXiv:2402.02316, theorem on the Lipschitz constant of diffusion classifiers;
        union bound over the intervals of `betting_bound`, two of each (level, class), since the
        draws that bound also choose the class; "local" is ours, see `local_slope`.
    """
    _check_choice(bound, alpha)
    losses, levels, shares = _checked_losses(observations, sigma_t, weights)
    means = losses.means
    chosen = int(np.argmin(shares @ means))
    others = np.delete(np.arange(means.shape[1]), chosen)
    each = alpha / (2 * means.size)
    upper = betting_bound(_classes(losses, chosen), each, side="upper", ceiling=ceiling)
    lower = betting_bound(_classes(losses, others), each, side="lower", ceiling=ceiling)
    radius = _radius(upper, lower, levels, shares, dimensions, bound)
    estimate = _radius(means[:, chosen], means[:, others], levels, shares, dimensions, bound)
    return PlainCertificate(
        predicted=chosen,
        radius=radius,
        abstained=radius <= 0.0,
        estimated_radius=estimate,
        bound=bound,
        alpha=alpha,
        draws=losses.draws,
    )


def lipschitz_constant(sigma_t: ArrayLike, weights: ArrayLike, dimensions: int) -> float:
    """Largest slope of the difference of two classes' scores, anywhere.

    Args:
        sigma_t: [T] noise levels in pixel units, > 0.
        weights: [T] weights >= 0 that sum to 1.
        dimensions: D >= 1.

    Returns:
        L = sum_t w_t (sqrt(2/pi) / sigma_t + 2 / sqrt(D)), per pixel unit of l2 distance.

    Raises:
        ValueError: a level, weight or D is out of range.

    Source: paper arXiv:2402.02316, theorem on the Lipschitz constant, in logit-margin form.
    """
    levels, shares = _checked_levels(sigma_t, weights, dimensions)
    return float(shares @ (np.sqrt(2.0 / np.pi) / levels + 2.0 / np.sqrt(dimensions)))


def constant_radius(margin: float, constant: float) -> float:
    """Radius inside which a score margin cannot be used up: max(margin, 0) / constant.

    Args:
        margin: score of the class minus the largest other score, in [-1, 1].
        constant: Lipschitz constant of score differences, > 0.

    Returns:
        Radius >= 0 in pixel units.

    Raises:
        ValueError: the margin is outside [-1, 1] or the constant is not positive.

    Source: paper arXiv:2402.02316, the certified radius from the Lipschitz constant.
    """
    if not abs(margin) <= 1.0 + 1e-9:
        raise ValueError(f"margin is {margin}, outside [-1, 1]: divide the weights by their sum")
    if not 0.0 < constant < np.inf:
        raise ValueError(f"the Lipschitz constant is {constant}, it must be positive and finite")
    return max(float(margin), 0.0) / constant


def local_slope(loss: ArrayLike, sigma: ArrayLike, dimensions: int) -> Array:
    """Largest slope of a loss of this size: psi(l) = phi(Phi^-1(l)) / sigma + 2 sqrt(l / D).

    Args:
        loss: losses in [0, 1], any shape that broadcasts with sigma.
        sigma: noise level in pixel units, > 0.
        dimensions: D >= 1.

    Returns:
        psi, per pixel unit of l2 distance; 0 at loss 0.

    Raises:
        ValueError: a loss, sigma or D is out of range.

    Source: ours. For x' -> x' + r u, dl/dr = E[g u.eps] / sigma - 2 E[(h - x').u] / D with
        g = ||h - x'||^2 / D in [0, 1]; among g of mean l an indicator of a half-space makes the
        first term largest, phi(Phi^-1(l)) / sigma, and Cauchy-Schwarz bounds the second.
    """
    losses, levels = np.asarray(loss, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    _check_unit_range("loss", losses)
    _check_levels(levels, dimensions)
    return _isoperimetric(losses) / levels + 2.0 * np.sqrt(losses / dimensions)


@dataclass(frozen=True)
class LocalTable:
    """Travel distances of losses under the local slope, tabulated so that they are never too long.

    Inside a cell the slope is replaced by an upper bound of it. The loss that moves with this
    larger slope is above (below) every loss that starts at the same value and rises (falls) no
    faster than the local slope allows, also from 0, where the slope itself has many solutions.

    Attributes:
        losses: [N] ends of the cells, from 0 to 1.
        distances: [T, N] shortest way from loss 0 to each of them, pixel units.
    """

    losses: Array
    distances: Array

    def travelled(self, losses: Array) -> Array:
        """Return the distance from loss 0, for losses [T, ...]."""
        pairs = zip(losses, self.distances, strict=True)
        return np.stack([np.interp(row, self.losses, distance) for row, distance in pairs])

    def reached(self, travelled: Array) -> Array:
        """Return the losses [T, ...] at these distances from loss 0, held inside [0, 1]."""
        pairs = zip(travelled, self.distances, strict=True)
        return np.stack([np.interp(row, distance, self.losses) for row, distance in pairs])


def local_table(sigma_t: ArrayLike, dimensions: int) -> LocalTable:
    """Tabulate the travel distances for noise levels [T] in pixel units and D dimensions.

    Raises:
        ValueError: a level or D is out of range.

    Source: ours; separation of variables in l' = psi(l), each cell's length over its largest psi.
    """
    levels = np.atleast_1d(np.asarray(sigma_t, dtype=np.float64))
    _check_levels(levels, dimensions)
    rising = np.geomspace(SMALLEST_LOSS, 0.5, CELLS_BELOW_HALF)
    falling = 1.0 - np.geomspace(0.5, SMALLEST_GAP, CELLS_ABOVE_HALF)[1:]
    losses = np.concatenate(([0.0], rising, falling, [1.0]))
    # phi(Phi^-1) rises up to 1/2 and falls beyond, and 1/2 is the end of a cell: its maximum over
    # a cell is at an end. The margin covers the rounding of ndtri.
    ends = _isoperimetric(losses)
    steepest = np.maximum(ends[:-1], ends[1:]) / levels[:, None]
    steepest += 2.0 * np.sqrt(losses[1:] / dimensions)
    steps = np.diff(losses) / (steepest * (1.0 + 1e-12))
    return LocalTable(losses, np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0))))


def local_radius(
    l_a: ArrayLike,
    l_b: ArrayLike,
    *,
    sigma_t: ArrayLike,
    weights: ArrayLike,
    dimensions: int,
) -> float:
    """Distance at which class A's loss could first reach another's, under the local slopes.

    Args:
        l_a: [T] losses of class A, or upper bounds of them, in [0, 1].
        l_b: [T, ...] losses of the other classes, or lower bounds of them, in [0, 1].
        sigma_t: [T] noise levels in pixel units, > 0.
        weights: [T] weights >= 0 that sum to 1.
        dimensions: D >= 1.

    Returns:
        Radius >= 0 in pixel units, at most about 0.2 % below the exact crossing, never above it;
        0 where A does not have the smallest loss.

    Raises:
        ValueError: a shape or range is not as above.

    Source: ours; comparison theorem for l_A' <= psi(l_A), l_B' >= -psi(l_B), see `local_slope`.
    """
    levels, shares = _checked_levels(sigma_t, weights, dimensions)
    ours = np.asarray(l_a, dtype=np.float64)
    theirs = np.asarray(l_b, dtype=np.float64)
    if ours.shape != levels.shape or theirs.shape[:1] != levels.shape or theirs.size == 0:
        raise ValueError(
            f"l_a has shape {ours.shape} and l_b {theirs.shape}: give one loss for each of the "
            f"{len(levels)} levels, and in l_b at least one class"
        )
    _check_unit_range("l_a", ours)
    _check_unit_range("l_b", theirs)
    theirs = theirs.reshape(len(levels), -1)
    if np.min(shares @ (theirs - ours[:, None])) <= 0.0:
        return 0.0
    table = local_table(levels, dimensions)
    start_a, start_b = table.travelled(ours), table.travelled(theirs)
    whole = float(table.distances[:, -1].max())
    safe, lost = 0.0, whole  # after the whole distance l_A is 1 at every level
    for _ in range(BISECTIONS):
        r = (safe + lost) / 2.0
        loss_a = shares @ table.reached(start_a + r)
        if loss_a < np.min(shares @ table.reached(start_b - r)):
            safe = r
        else:
            lost = r
    return max(safe - ROUNDING * whole, 0.0)


def _radius(
    l_a: Array, l_b: Array, levels: Array, shares: Array, dimensions: int, bound: str
) -> float:
    if bound == "local":
        return local_radius(l_a, l_b, sigma_t=levels, weights=shares, dimensions=dimensions)
    margin = float(np.min(shares @ (l_b - l_a[:, None])))
    return constant_radius(margin, lipschitz_constant(levels, shares, dimensions))


def _classes(losses: UnitSums, index: int | NDArray[np.intp]) -> UnitSums:
    return UnitSums(losses.sums[:, :, index], losses.squares[:, :, index], losses.sizes)


def _isoperimetric(losses: Array) -> Array:
    """Return phi(Phi^-1(l)), by symmetry from the smaller of l and 1 - l; 0 at both ends."""
    quantile = ndtri(np.minimum(losses, 1.0 - losses))
    return np.asarray(np.exp(-0.5 * quantile * quantile) / np.sqrt(2.0 * np.pi))


def _check_choice(bound: str, alpha: float) -> None:
    check_fraction("alpha", alpha)
    if bound not in ("lipschitz", "local"):
        raise ValueError(f"bound is {bound!r}, it must be 'lipschitz' or 'local'")


def _checked_losses(
    observations: ArrayLike | UnitSums, sigma_t: ArrayLike, weights: ArrayLike
) -> tuple[UnitSums, Array, Array]:
    """Return observations, levels and weights without the levels of weight 0."""
    given = observations
    losses = given if isinstance(given, UnitSums) else UnitSums.from_draws(given)
    levels, shares = _checked_levels(sigma_t, weights, 1)
    shape = losses.sums.shape
    if len(shape) != 3 or shape[1] != len(levels) or shape[2] < 2:
        raise ValueError(
            f"observations have shape {shape}: give [draws, {len(levels)} levels, at least 2 "
            "classes]"
        )
    used = shares > 0.0
    kept = UnitSums(losses.sums[:, used], losses.squares[:, used], losses.sizes)
    return kept, levels[used], shares[used]


def _checked_levels(sigma_t: ArrayLike, weights: ArrayLike, dimensions: int) -> tuple[Array, Array]:
    levels = np.atleast_1d(np.asarray(sigma_t, dtype=np.float64))
    shares = np.atleast_1d(np.asarray(weights, dtype=np.float64))
    _check_levels(levels, dimensions)
    if levels.ndim != 1 or shares.shape != levels.shape:
        raise ValueError(
            f"sigma_t has shape {levels.shape} and weights {shares.shape}: give one weight a level"
        )
    if not (np.all(shares >= 0.0) and abs(shares.sum() - 1.0) <= 1e-6):
        raise ValueError(
            f"weights sum to {shares.sum()} with smallest {shares.min()}: they must be >= 0 and "
            "sum to 1; divide them by their sum"
        )
    return levels, shares


def _check_levels(levels: Array, dimensions: int) -> None:
    if not (levels.size and np.all((levels > 0.0) & np.isfinite(levels))):
        raise ValueError(
            f"sigma_t is {levels}: every level must be positive and finite (pixel units, s / 2)"
        )
    if not 1 <= dimensions < np.inf:
        raise ValueError(f"dimensions is {dimensions}, it must be at least 1")


def _check_unit_range(name: str, losses: Array) -> None:
    if not np.all((losses >= 0.0) & (losses <= 1.0)):
        raise ValueError(
            f"{name} ranges from {np.min(losses)} to {np.max(losses)}, outside [0, 1]: divide "
            "losses by the number of pixels and clip the denoiser's output to the box"
        )
