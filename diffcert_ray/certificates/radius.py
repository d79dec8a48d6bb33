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
    q, p_b = class_bounds(n_a, n, n_b=n_b, alpha=alpha, bound=bound)
    radius = certified_radius(q, p_b, sigma)
    return Certificate(radius, 1.0 - q, radius <= 0.0, q)


def class_bounds(
    n_a: Counts, n: Counts, *, n_b: Counts | None, alpha: float, bound: str
) -> tuple[float, float | None]:
    """What counts say of probabilities, before it becomes a radius; arguments as `certificate`.

    Args:
        n_a: estimation votes for the class; for "sequential" cumulative, [looks].
        n: estimation votes in all; for "sequential" cumulative, [looks].
        n_b: for "two-class" only: counts of the other classes.
        alpha: failure probability, in (0, 1).
        bound: one of BOUNDS.

    Returns:
        q, an upper bound on the probability that a vote is not for the class (in (0, 1]), and
        for "two-class" an upper bound on that of the runner-up, else None; together they hold with
        probability at least 1 - alpha.

    Raises:
        ValueError: a value is out of range, or counts contradict each other.

    Source: as `certificate`. For "two-class" both are bounded at alpha/2; no split over the K - 1
        others is needed: the radius is wrong only where p_A is too high, or where the upper bound
        fails for the true runner-up, one class fixed before the votes. Since n_b <= n - n_a, the
        bound for p_B is at most 1 - p_A, the one without runner-up.
    """
    check_bound(bound)
    if (n_b is None) == (bound == "two-class"):
        raise ValueError(
            f"n_b={n_b!r} with bound {bound!r}: the counts of the other classes (n_b) are needed "
            "by 'two-class' and by no other bound; give n_b there and leave it out elsewhere"
        )
    if bound == "sequential":
        return float(np.min(sequential_q_bound(*cumulative_looks(n_a, n), alpha))), None
    target, total = whole_count(n_a, "n_a"), whole_count(n, "n")
    if n_b is None:
        return lower_confidence_bound_q(target, total, alpha), None
    q = lower_confidence_bound_q(target, total, alpha / 2)
    return q, upper_confidence_bound(_largest(n_b, n_a, n), total, alpha / 2)


def certified_radius(q: float, p_b: float | None, sigma: float) -> float:
    """The radius for a class of probability at least 1 - q, against one of at most p_b.

    Args:
        q: upper bound on the probability of all other classes together, in (0, 1].
        p_b: upper bound on that of the runner-up, in [0, 1]; None: all the others, q.
        sigma: smoothing noise, pixel units, > 0.

    Returns:
        Pixel units; 0.0 where nothing is certified.

    Raises:
        ValueError: a value is out of range.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), theorem 1 (with p_b their equation 3).
    """
    if p_b is None:
        return radius_from_q(q, sigma)
    check_sigma(sigma)
    return max(0.0, sigma / 2 * float(-special.ndtri(q) - special.ndtri(p_b)))


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
