"""Turn the vote counts of one image into a certified radius: counts -> p_low -> radius.

Everything rests on one promise: the votes of one image are independent draws, and the class, the
bound, alpha, n and the looks were fixed before the first of them. Near 1 the variable is
q = 1 - p_low: at ten million votes p_low itself has lost half of its digits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

import numpy as np
from scipy import special

from diffcert_ray.certificates.clopper_pearson import (
    lower_confidence_bound_q,
    upper_confidence_bound,
    whole_count,
)
from diffcert_ray.certificates.sequential import (
    Counts,
    cumulative_looks,
    sequential_q_bound,
)
from diffcert_ray.conventions import NOT_TARGET

BOUNDS = ("clopper-pearson", "two-class", "sequential")
"""The bounds that `certificate` knows."""
LARGEST_N = 2**53
"""Largest n that `required_n` looks at: beyond it a float no longer counts every vote."""


@dataclass(frozen=True)
class Certificate:
    """What the counts of one image certify, at one sigma and alpha.

    Attributes:
        radius: certified l2 radius, pixel units; 0.0 exactly when abstained.
        p_low: lower confidence bound on the probability of the class, in [0, 1].
        abstained: nothing is certified.
        q: 1 - p_low at full precision, in (0, 1].
    """

    radius: float
    p_low: float
    abstained: bool
    q: float


def certificate(
    n_a: Counts,
    n: Counts,
    *,
    sigma: float,
    n_b: Counts | None = None,
    alpha: float = 0.001,
    bound: str = "clopper-pearson",
) -> Certificate:
    """Certify the radius that the counts of one image support, or abstain.

    With probability at least 1 - alpha over the votes, the smoothed classifier returns the class
    everywhere in the open ball of that radius (or the certificate abstains).

    Args:
        n_a: estimation votes for the class that the selection votes chose; for "sequential" the
            cumulative count at each look, [looks].
        n: estimation votes in all, lost or unresolved ones included; for "sequential" their
            cumulative number at each look, [looks], increasing.
        sigma: smoothing noise, pixel units, > 0.
        n_b: for "two-class" only: counts of all other classes, [K - 1], or the largest of them.
            Unresolved votes belong to every one of them (see `two_class_counts`).
        alpha: failure probability for this image and sigma, in (0, 1).
        bound: one of BOUNDS. The first two hold only where n was fixed beforehand and reached;
            "sequential" holds at any stopping time.

    Returns:
        The certificate. "sequential" takes the best of its looks.

    Raises:
        ValueError: a value is out of range, or counts contradict each other.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), theorem 1 and section 3.2; the
        two-class form is their equation 3. "sequential" is ours (see `sequential.py`).
    """
    check_bound(bound)
    if (n_b is None) == (bound == "two-class"):
        raise ValueError(
            f"n_b={n_b!r} with bound {bound!r}: the counts of the other classes (n_b) are needed "
            "by 'two-class' and by no other bound; give n_b there and leave it out elsewhere"
        )
    check_sigma(sigma)
    if bound == "sequential":
        looks = cumulative_looks(n_a, n)
        q = float(np.min(sequential_q_bound(*looks, alpha)))
        return _from_q(q, radius_from_q(q, sigma))
    if n_b is None:
        q = lower_confidence_bound_q(whole_count(n_a, "n_a"), whole_count(n, "n"), alpha)
        return _from_q(q, radius_from_q(q, sigma))
    return _two_class(
        whole_count(n_a, "n_a"), _largest(n_b, n_a, n), whole_count(n, "n"), sigma, alpha
    )


def _from_q(q: float, radius: float) -> Certificate:
    if radius <= 0.0:
        return Certificate(radius=0.0, p_low=1.0 - q, abstained=True, q=q)
    return Certificate(radius=radius, p_low=1.0 - q, abstained=False, q=q)


def _two_class(n_a: int, n_b: int, n: int, sigma: float, alpha: float) -> Certificate:
    """Bound both classes at alpha/2; the largest other count has the largest upper bound.

    No split over the K - 1 others: the radius is wrong only where p_A is too high, or where the
    upper bound fails for the true runner-up, which is one class fixed before the votes.
    Since n_b <= n - n_a, the bound for p_B is at most 1 - p_A, the one without runner-up.
    """
    q = lower_confidence_bound_q(n_a, n, alpha / 2)
    p_b = upper_confidence_bound(n_b, n, alpha / 2)
    return _from_q(q, sigma / 2 * float(-special.ndtri(q) - special.ndtri(p_b)))


def radius_from_q(q: float, sigma: float) -> float:
    """Certified radius for a class of probability at least 1 - q.

    Args:
        q: upper bound on the probability of all other classes together, in (0, 1].
        sigma: smoothing noise, pixel units, > 0.

    Returns:
        sigma * Phi^-1(1 - q) in pixel units, 0.0 where q >= 1/2 (nothing is certified).

    Raises:
        ValueError: q or sigma is out of range.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.2; Phi^-1(1 - q) is
        computed as -Phi^-1(q), which keeps its digits down to q = 1e-300.
    """
    check_sigma(sigma)
    if not 0.0 < q <= 1.0:
        raise ValueError(
            f"q={q!r} is outside (0, 1]; no finite number of votes gives q = 0, "
            "pass what lower_confidence_bound_q returned"
        )
    return 0.0 if q >= 0.5 else float(-sigma * special.ndtri(q))


def two_class_counts(counts: Mapping[int, int], target: int) -> tuple[int, int]:
    """Count the votes for the target and for its strongest rival, as "two-class" needs them.

    An unresolved vote (class NOT_TARGET) might have been for any class: it is added to every
    class but the target, since booking it elsewhere over-certifies. Only complete votes may be
    passed: in target-only units NOT_TARGET means something else.

    Args:
        counts: votes per class; absent classes have none; NOT_TARGET: unresolved votes.
        target: the class that the selection votes chose, >= 0.

    Returns:
        n_a and n_b for `certificate`; n is the sum of all counts.

    Raises:
        ValueError: the target is not a class, or a count is negative.

    Source: ours.
    """
    if target < 0:
        raise ValueError(f"target={target} is no class; give the class that was selected (>= 0)")
    checked = {label: whole_count(count, f"counts[{label}]") for label, count in counts.items()}
    rivals = [count for label, count in checked.items() if label not in (target, NOT_TARGET)]
    return checked.get(target, 0), max(rivals, default=0) + checked.get(NOT_TARGET, 0)


def largest_radius(n: int, sigma: float, alpha: float, bound: str) -> float:
    """The ceiling: the radius that n unanimous votes certify.

    Args:
        n: estimation votes, n >= 1; for "sequential" the last look is at n.
        sigma: smoothing noise, pixel units, > 0.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS.

    Returns:
        Radius in pixel units, 0.0 where even unanimous votes abstain.

    Raises:
        ValueError: a value is out of range.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.2, figure 4.
    """
    n_b = 0 if bound == "two-class" else None
    return certificate(n, n, sigma=sigma, n_b=n_b, alpha=alpha, bound=bound).radius


def required_n(radius: float, sigma: float, alpha: float, bound: str) -> int:
    """Smallest n at which unanimous votes certify the radius.

    Args:
        radius: asked l2 radius, pixel units, >= 0 (0: any radius at all).
        sigma: smoothing noise, pixel units, > 0.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS; for "sequential" with a look at every vote (with fewer looks, round
            up to the next look).

    Returns:
        Votes, >= 1.

    Raises:
        ValueError: a value is out of range, or no n up to 2**53 is enough.

    Source: ours: the ceiling of `largest_radius` rises with n, so a search by halving finds it.
    """
    if not 0.0 <= radius < math.inf:
        raise ValueError(f"radius={radius!r} must be a finite number of pixel units, at least 0")

    def enough(n: int) -> bool:
        ceiling = largest_radius(n, sigma, alpha, bound)
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


def round_radius_down(radius: float, decimals: int) -> str:
    """Write a radius with so many decimals, never above its true value.

    Args:
        radius: pixel units, finite, >= 0.
        decimals: digits after the point, >= 0.

    Returns:
        The number as text, with exactly that many decimals.

    Raises:
        ValueError: a value is out of range.

    Source: ours: the float's exact decimal expansion, cut off.
    """
    if not 0.0 <= radius < math.inf:
        raise ValueError(f"radius={radius!r} must be finite and at least 0; 0.0 where abstained")
    if decimals < 0:
        raise ValueError(f"decimals={decimals} must be at least 0")
    return f"{Decimal(radius).quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR):f}"


def check_bound(bound: str) -> None:
    """Refuse the name of a bound that is not in BOUNDS.

    Args:
        bound: the name.

    Raises:
        ValueError: it is not known.

    Source: ours.
    """
    if bound not in BOUNDS:
        raise ValueError(f"bound={bound!r} is not known; use one of {', '.join(BOUNDS)}")


def _largest(n_b: Counts, n_a: Counts, n: Counts) -> int:
    """The largest other count; a full list must account for every vote."""
    target, total = whole_count(n_a, "n_a"), whole_count(n, "n")
    others = [whole_count(count, "n_b") for count in np.atleast_1d(np.asarray(n_b)).tolist()]
    largest = max(others, default=0)
    if target + largest > total:
        raise ValueError(f"n_a={target} and n_b={largest} are more than n={total} votes")
    left_out = total - target - sum(others)
    if np.ndim(n_b) > 0 and left_out > 0:
        raise ValueError(
            f"n_a={target} and the other classes' {sum(others)} leave out {left_out} of n={total} "
            "votes; add unresolved votes to every class but the target (two_class_counts does)"
        )
    return largest


def check_sigma(sigma: float) -> None:
    """Refuse a smoothing noise that is not positive and finite.

    Args:
        sigma: pixel units.

    Raises:
        ValueError: it is not > 0 and finite.

    Source: ours.
    """
    if not 0.0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma!r} must be positive and finite, in pixel units")
