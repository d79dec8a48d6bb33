"""Bound a class's probability from a number of votes that was fixed beforehand."""

import math
import operator

from scipy import special

from diffcert_ray.certificates.fraction import check_fraction


def lower_confidence_bound(n_a: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound on the probability of the selected class.

    Args:
        n_a: times the class was returned, 0 <= n_a <= n.
        n: estimation votes, n >= 1, drawn independently of those that selected the class.
        alpha: failure probability, in (0, 1).

    Returns:
        p_low in [0, 1): below the true probability with probability at least 1 - alpha.

    Raises:
        ValueError: a count or alpha is out of range.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2, LowerConfBound.
    """
    n_a, n = whole_count(n_a, "n_a"), whole_count(n, "n")
    _check_counts(n_a, n, alpha)
    return 0.0 if n_a == 0 else float(special.betaincinv(n_a, n - n_a + 1, alpha))


def lower_confidence_bound_q(n_a: int, n: int, alpha: float) -> float:
    """1 - `lower_confidence_bound`, with full relative precision where that bound is near 1.

    Args:
        n_a: times the class was returned, 0 <= n_a <= n.
        n: estimation votes, n >= 1.
        alpha: failure probability, in (0, 1).

    Returns:
        q in (0, 1].

    Raises:
        ValueError: a count or alpha is out of range.

    Source: ours: P(Bin(n, p) >= n_a) = alpha solved for q = 1 - p, the Beta law reflected.
    """
    n_a, n = whole_count(n_a, "n_a"), whole_count(n, "n")
    _check_counts(n_a, n, alpha)
    if n_a == 0:
        return 1.0
    if n_a == n:
        return -math.expm1(math.log(alpha) / n)
    return float(special.betainccinv(n - n_a + 1, n_a, alpha))


def upper_confidence_bound(n_b: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper bound on the probability of a class.

    Args:
        n_b: times the class was returned, 0 <= n_b <= n.
        n: estimation votes, n >= 1.
        alpha: failure probability, in (0, 1).

    Returns:
        A bound in (0, 1], above the true probability with probability at least 1 - alpha.

    Raises:
        ValueError: a count or alpha is out of range.

    Source: Clopper and Pearson 1934; the lower bound for the votes that are not for the class.
    """
    n_b, n = whole_count(n_b, "n_b"), whole_count(n, "n")
    _check_counts(n_b, n, alpha)
    return lower_confidence_bound_q(n - n_b, n, alpha)


def whole_count(count: object, name: str) -> int:
    """Check one number of votes.

    Args:
        count: any integer type, >= 0.
        name: what the message calls it.

    Returns:
        The count as int.

    Raises:
        ValueError: it is negative or not a whole number.

    Source: ours.
    """
    try:
        whole = operator.index(count)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}={count!r} must be one whole number of votes") from None
    if whole < 0:
        raise ValueError(f"{name}={whole} must be at least 0: it is a number of votes")
    return whole


def _check_counts(n_a: int, n: int, alpha: float) -> None:
    if n < 1 or n_a > n:
        raise ValueError(f"{n_a} votes of n={n}: n must be at least 1 and the votes in 0..n")
    check_fraction("alpha", alpha)
