"""Bound a class's probability at any stopping time, by a betting e-process.

For k successes in n votes, E_n(p0) is the wealth of a bettor who bets that p > p0, with Jeffreys'
prior truncated above p0. For every true p <= p0 the wealth is a supermartingale that starts at 1,
so it ever reaches 1/alpha with probability at most alpha (Ville's inequality): p0 is then refuted,
and whoever looks after each vote and stops when it suits them is still right.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from diffcert_ray.certificates.fraction import check_fraction

LOG_MARGIN = 1e-6
"""Taken off log E before it counts: scipy's error in log E is below 2e-8 up to n = 1e7."""
SMALLEST_TAIL = 1e-290
"""Below it the incomplete Beta function nears underflow; its continued fraction takes over."""
HALVINGS = 40
"""Halvings of log q: the last step is below 2e-11, far less than LOG_MARGIN is worth."""
FRACTION_TERMS = 256
"""Terms of the continued fraction; 1e-9 needs under 150 wherever the tail is below 1e-290."""

Counts = int | Sequence[int] | npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]


def sequential_log_e(
    k: npt.ArrayLike, n: npt.ArrayLike, p0: npt.ArrayLike, *, q0: npt.ArrayLike | None = None
) -> Floats:
    """Log of the e-value against "the probability is at most p0" (arrays broadcast).

        E_n(p0) = [B_{>p0}(k+1/2, n-k+1/2) / B_{>p0}(1/2, 1/2)] / (p0^k (1-p0)^(n-k))

    Args:
        k: successes so far, 0 <= k <= n.
        n: votes so far, up to 1e7 with an error below 2e-8.
        p0: refuted probability, in (0, 1).
        q0: 1 - p0 where the caller knows it to more digits.

    Returns:
        log E, of the broadcast shape.

    Raises:
        ValueError: a value is out of range.

    Source: ours; B_{>p0}(a, b) is the integral of q^(a-1) (1-q)^(b-1) over (p0, 1). Mixtures of
        likelihood ratios as test martingales: Ville 1939; Howard et al. 2021 (arXiv:1810.08240).
    """
    k, n = _checked(k, n)
    p0 = np.asarray(p0, dtype=np.float64)
    q0 = 1.0 - p0 if q0 is None else np.asarray(q0, dtype=np.float64)
    if not np.all((p0 > 0.0) & (p0 < 1.0) & (q0 > 0.0)):
        raise ValueError(f"p0={p0!r} must lie in (0, 1)")
    return _log_e(k, n, p0, q0)


def _log_e(k: Floats, n: Floats, p0: Floats, q0: Floats) -> Floats:
    a, b = k + 0.5, n - k + 0.5
    tail = special.betainc(b, a, q0)  # = the upper tail of Beta(a, b) at p0, without cancellation
    prior = np.log(2.0 * np.arcsin(np.sqrt(q0)))
    log_tail = np.log(np.maximum(tail, SMALLEST_TAIL))
    log_e = special.betaln(a, b) + log_tail - special.xlog1py(k, -q0) - special.xlogy(n - k, q0)
    lost = tail < SMALLEST_TAIL
    if np.any(lost):
        # There p0^k q0^(n-k) cancels exactly against the integral, which leaves the fraction.
        a, b, p0, q0 = (values[lost] for values in np.broadcast_arrays(a, b, p0, q0))
        log_e = np.asarray(log_e)
        log_e[lost] = np.log(p0 * q0) / 2 - np.log(b) - np.log(_continued_fraction(b, a, q0))
    return np.asarray(log_e - prior)


def _continued_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """x^a (1-x)^b / (a B(a, b) I_x(a, b)), from DLMF 8.17.22, evaluated from the far end."""
    value = np.ones_like(x)
    for m in range(FRACTION_TERMS // 2, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1.0 + even / value
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        value = 1.0 + odd / value
    return value


def sequential_q_bound(k: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Floats:
    """Time-uniform lower bound on a probability p, as q = 1 - p_low, precise also near p = 1.

    p_low is the smallest p0 that is not refuted. The upper bound on p that futility goes by is the
    same for the failures: `sequential_q_bound(n - k, n, alpha)`.

    Args:
        k: successes so far, 0 <= k <= n, any shape.
        n: votes so far, n >= 1, broadcast against k.
        alpha: failure probability over all looks together, in (0, 1).

    Returns:
        q in (0, 1], of the broadcast shape. With probability at least 1 - alpha the true 1 - p is
        above none of them at any look, so their running minimum holds too.

    Raises:
        ValueError: a value is out of range.

    Source: ours: E falls in p0 wherever E > 1, so halving finds the edge of what is refuted; the
        refuted end is returned, so that rounding never helps.
    """
    k, n = np.broadcast_arrays(*_checked(k, n))
    check_fraction("alpha", alpha)
    needed = -math.log(alpha) + LOG_MARGIN
    # E is at most the likelihood ratio of the best p: nothing above k/n is ever refuted, and
    # for unanimous votes nothing above alpha^(1/n).
    open_end = np.where(k == n, -np.expm1(math.log(alpha) / n), (n - k) / n)
    refuted_end = np.ones_like(open_end)
    for _ in range(HALVINGS):
        middle = np.sqrt(open_end * refuted_end)
        inside = np.clip(middle, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)
        refuted = _log_e(k, n, 1.0 - inside, inside) >= needed
        refuted_end = np.where(refuted, middle, refuted_end)
        open_end = np.where(refuted, open_end, middle)
    return np.asarray(refuted_end)


def cumulative_looks(k: Counts, n: Counts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Check the cumulative counts of one image at its looks.

    Args:
        k: votes for the class up to each look, [looks] or one number.
        n: votes up to each look, [looks] or one number, n >= 1, increasing.

    Returns:
        Both as int64 [looks].

    Raises:
        ValueError: lengths differ, counts are not cumulative, or there is no look.

    Source: ours.
    """
    k_looks, n_looks = (np.atleast_1d(np.asarray(counts)) for counts in (k, n))
    if k_looks.shape != n_looks.shape or k_looks.ndim != 1 or k_looks.size == 0:
        raise ValueError(
            f"n_a has shape {k_looks.shape} and n {n_looks.shape}: give both the cumulative "
            "counts at each look, of equal length, at least one look"
        )
    if not all(np.issubdtype(counts.dtype, np.integer) for counts in (k_looks, n_looks)):
        raise ValueError(f"counts must be whole numbers, not {k_looks.dtype} and {n_looks.dtype}")
    k_steps = np.diff(k_looks.astype(np.int64), prepend=0)
    n_steps = np.diff(n_looks.astype(np.int64), prepend=0)
    wrong = (n_steps < 1) | (k_steps < 0) | (k_steps > n_steps)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"look {at}: n_a={k_looks[at]}, n={n_looks[at]} do not continue the look before it; "
            "counts are cumulative, n grows at each look, n_a by at most as much"
        )
    return k_looks.astype(np.int64), n_looks.astype(np.int64)


def _checked(k: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Floats, Floats]:
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if not np.all((n >= 1) & (k >= 0) & (k <= n)):
        raise ValueError(f"k={k!r} of n={n!r}: n must be at least 1 and k in 0..n")
    return k, n
