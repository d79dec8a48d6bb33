"""Betting confidence bounds for the mean of a bounded variable from a fixed number of draws.

A gambler bets against "the mean is m": capital(m) = prod_i (1 + lambda_i (X_i - m)). Under the
true mean the capital is a nonnegative martingale, so it ever reaches 1/alpha with probability at
most alpha (Ville), and every m where it did is refuted. Any bets are valid that were fixed before
the draws they meet; they only decide how tight the bound is. Three choices of ours, for losses
near 0 whose spread is far below the largest possible one (M = 2048, mean 0.02, sd 0.004: the lower
bound is 2.5 times and the upper bound twice as close as with the paper's constants):

* the prior variance is that of a coin with the running mean, mean (1 - mean), and not 1/4;
* the capital is split over two caps on the bets; a bold cap alone suffers from rare large losses,
  a cautious one alone wastes half of the draws when there are none;
* the capital may peak before the last draw.

Draws may be given as sums and sums of squares over units: see `UnitSums`.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffcert_ray.certificates.fraction import check_fraction

Array = NDArray[np.float64]

CAPS = ((0.8, 0.99), (0.2, 0.5))  # (share of the starting capital, largest share put at stake)
BISECTIONS = 20
SMALLEST_MEAN = 1e-12  # candidates below it are bet on as if at it: smaller bets, still valid
ROUNDING = 1e-9  # demanded of the log capital on top of ln(1/alpha)


@dataclass(frozen=True)
class UnitSums:
    """Draws of many columns, kept as sums over units of consecutive draws.

    The bets inside a unit are those fixed before it, and its capital is replaced by the least that
    its sums allow. Units of 8, 32 and 128 of 2048 draws cost 1 to 3, 2 to 5 and 3 to 12 % of a
    radius in the losses tried. The mean of a unit alone is no substitute: upper bounds would widen
    by the unit's size.

    Attributes:
        sums: [J, ...] sums of the unit's draws.
        squares: [J, ...] sums of their squares, accumulated in float64.
        sizes: [J] draws in each unit, fixed before drawing, >= 1.
    """

    sums: Array
    squares: Array
    sizes: NDArray[np.int64]

    @classmethod
    def from_draws(cls, draws: ArrayLike, size: int = 1) -> Self:
        """Sum draws [M, ...] over units of `size` consecutive ones; the last may be shorter."""
        values = np.asarray(draws, dtype=np.float64)
        if values.ndim == 0 or values.size == 0 or size < 1:
            raise ValueError(
                f"draws have shape {values.shape} and units {size} draws: give at least one draw "
                "[M, ...] and units of at least 1"
            )
        starts = np.arange(0, len(values), size)
        sizes = np.diff(np.append(starts, len(values)))
        if size == 1:
            return cls(values, values * values, sizes)
        return cls(np.add.reduceat(values, starts), np.add.reduceat(values**2, starts), sizes)

    @property
    def draws(self) -> int:
        """M, the number of draws behind every column."""
        return int(self.sizes.sum())

    @property
    def means(self) -> Array:
        """Means [...] of the columns."""
        return np.asarray(self.sums.sum(axis=0) / self.draws)


def betting_bound(
    observations: ArrayLike | UnitSums,
    alpha: float,
    *,
    side: Literal["lower", "upper"],
    ceiling: float = 1.0,
) -> Array:
    """One-sided betting confidence bound on means, for every column at once.

    The two-sided hedged interval at level alpha consists of both sides at alpha / 2.

    Args:
        observations: [M, ...] draws in [0, ceiling], or their `UnitSums`; i.i.d. over the first
            axis and in an order that does not depend on their values (order of the draws' index,
            never of arrival); M was fixed before drawing.
        alpha: failure probability of each single bound, 0 < alpha < 1.
        side: "lower" or "upper".
        ceiling: known largest possible value of an observation, > 0.

    Returns:
        [...] bounds in [0, ceiling]: each holds with probability at least 1 - alpha over its draws.

    Raises:
        ValueError: no draws, a draw outside [0, ceiling] or not finite, sums that no such draws
            have, alpha, ceiling or side out of range.

    Source: Waudby-Smith and Ramdas 2020 (arXiv:2010.09686), predictable plug-in bets and hedged
        capital for a fixed number of draws, each side on its own; see the module's docstring.
    """
    check_fraction("alpha", alpha)
    if side not in ("lower", "upper"):
        raise ValueError(f'side is {side!r}, it must be "lower" or "upper"')
    given = observations
    units = given if isinstance(given, UnitSums) else UnitSums.from_draws(given)
    means, variances = _unit_moments(units, ceiling)
    if side == "upper":
        means = 1.0 - means
    bound = _lower_bound(means, variances, units.sizes, alpha).reshape(units.sums.shape[1:])
    if side == "upper":
        # 1 - mean rounds the mean by up to 2^-53, hence the last term.
        bound = np.minimum(1.0 - bound + 1e-15, 1.0)
    return ceiling * bound


def _unit_moments(units: UnitSums, ceiling: float) -> tuple[Array, Array]:
    """Return means and variances inside each unit [columns, J], on the scale ceiling = 1."""
    if not 0.0 < ceiling < np.inf:
        raise ValueError(f"ceiling is {ceiling}, it must be positive and finite")
    if units.sums.shape != units.squares.shape or units.sums.shape[:1] != units.sizes.shape:
        raise ValueError(
            f"sums have shape {units.sums.shape}, squares {units.squares.shape}, sizes "
            f"{units.sizes.shape}: give [J, ...], [J, ...] and [J]"
        )
    if not (units.sums.size and np.all(units.sizes >= 1)):
        raise ValueError("there is a unit without draws, or no unit: give at least one draw")
    columns = (int(np.prod(units.sums.shape[1:])), len(units.sizes))
    means, squares = np.empty(columns), np.empty(columns)  # one column's draws side by side
    np.divide(units.sums.reshape(columns[::-1]).T, units.sizes * ceiling, out=means)
    np.divide(units.squares.reshape(columns[::-1]).T, units.sizes * ceiling**2, out=squares)
    low, high = means.min(), means.max()
    # The slack lets float32 draws meet a ceiling that was computed in float64.
    if not (low >= 0.0 and high <= 1.0 + 1e-6):
        raise ValueError(
            f"observations range from {low * ceiling} to {high * ceiling}, outside [0, {ceiling}]: "
            "divide losses by the number of pixels and clip the denoiser's output to the box"
        )
    means = np.minimum(means, 1.0)
    if not np.all((squares >= means**2 * (1 - 1e-6)) & (squares <= means * (1 + 1e-5))):
        raise ValueError(
            f"a sum of squares does not fit draws in [0, {ceiling}] with that sum: keep both in "
            "float64, over the same draws"
        )
    single = units.sizes == 1
    return means, np.where(single, 0.0, np.maximum(squares - means**2, 0.0))


def _lower_bound(means: Array, variances: Array, sizes: NDArray[np.int64], alpha: float) -> Array:
    """Bisect the capital, which never increases with the candidate mean, column by column.

    Each factor 1 + min(lambda, cap / m) (x - m) is nonincreasing in m for x >= 0, so the refuted
    candidates are an interval that starts at 0, and a refuted one is a valid bound however coarse
    the search. (The least capital of a unit is a minimum of such functions.)
    """
    needed = np.log(1.0 / alpha)
    bets = _plug_in_bets(means, variances, sizes, needed)
    worst = _worst_draws(means, variances, sizes)
    refuted = np.zeros(len(means))
    standing = np.minimum(means @ sizes / sizes.sum(), 1.0)
    for _ in range(BISECTIONS):
        candidate = (refuted + standing) / 2.0
        wins = _reaches(needed + ROUNDING, worst, bets, candidate)
        refuted = np.where(wins, candidate, refuted)
        standing = np.where(wins, standing, candidate)
    return refuted


def _plug_in_bets(means: Array, variances: Array, sizes: NDArray[np.int64], needed: float) -> Array:
    """Return sqrt(2 ln(1/alpha) / (M v)) [columns, J], v the variance seen before each unit."""
    seen = np.cumsum(sizes) - sizes
    sums, squares = means * sizes, (variances + means**2) * sizes
    total = np.cumsum(sums, axis=1) - sums
    mean = (0.5 + total) / (seen + 1)
    spread = np.cumsum(squares, axis=1) - squares - total * total / np.maximum(seen, 1)
    variance = (mean * (1.0 - mean) + np.maximum(spread, 0.0)) / (seen + 1)
    return np.asarray(np.sqrt(2.0 * needed / (sizes.sum() * variance)))


def _worst_draws(
    means: Array, variances: Array, sizes: NDArray[np.int64]
) -> list[tuple[Array, Array]]:
    """Return (value, multiplicity) [columns, J] with the least log capital the sums allow.

    No draw lies below low = max(mean - sqrt((m - 1) v), 0) (Samuelson). Of two values low and high
    with the unit's mean and variance, let q be the parabola through f = log(1 + lambda (x - m)) at
    low that touches f at high. As f''' > 0, f - q = f'''(.) / 6 (x - low) (x - high)^2 >= 0 at
    every draw, and the sum of q over the unit follows from its sums: it is that of the two values.
    """
    if np.all(sizes == 1):
        return [(means, np.ones_like(means))]
    low = np.maximum(means - np.sqrt((sizes - 1) * variances), 0.0)
    below = means - low
    spread_out = below > 0.0
    high = means + np.divide(variances, below, out=np.zeros_like(means), where=spread_out)
    total = np.where(spread_out, variances + below**2, 1.0)
    share = np.where(spread_out, variances / total, 0.0)
    return [(low, share * sizes), (high, (1.0 - share) * sizes)]


def _reaches(
    goal: float, worst: list[tuple[Array, Array]], bets: Array, candidate: Array
) -> NDArray[np.bool_]:
    """Whether the capital against the candidates [columns] is exp(goal) at the end of a unit."""
    mean = candidate[:, None]
    capital = np.zeros_like(bets)
    for share, cap in CAPS:
        placed = np.minimum(bets, cap / np.maximum(mean, SMALLEST_MEAN))
        growth = np.zeros_like(bets)
        for value, times in worst:
            growth += times * np.log(1.0 + placed * (value - mean))
        # Relative to the goal, and cut off far above it, so that no power overflows.
        capital += share * np.exp(np.minimum(np.cumsum(growth, axis=1) - goal, 50.0))
    return np.asarray((capital >= 1.0).any(axis=1))
