"""How sure an agreement is: simultaneous lower bounds, with images as the independent units.

Votes of one image are not independent, and votes that differ lie on few images. The normal bound
of the images' mean says too much there: in a simulation of 430 images it misses one of five
settings in a third of the trials (tests/test_tuning_intervals.py). So the
variance between images only says how many independent votes these are worth, and the exact binomial
bound is taken at that number: the interval of Korn and Graubard for proportions near 0 or 1 from
clusters. For a mean, the variance between images is what the jackknife gives that leaves out one
image at a time.

Shape letters: I images, S settings.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]


def lower_bounds(agreeing: Floats, votes: int, confidence: float, number: int) -> Floats:
    """Lower bounds on the agreement of settings over the population of images.

    With probability about ``confidence``, over the images and the noise, all of them hold at once.

    Args:
        agreeing: share of each image's votes that agree, float64 [I, S], I >= 2.
        votes: votes of an image, >= 1.
        confidence: of all bounds together, in (0, 1).
        number: bounds that are looked at, >= S: each is taken at (1 - confidence) / number.

    Returns:
        float64 [S] in [0, 1].

    Source: Korn and Graubard 1998, "Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data", Survey Methodology 24; Bonferroni's correction.
    """
    return _bounds(agreeing, votes, (1.0 - confidence) / number)[0]


def intervals(
    agreeing: Floats, votes: int, confidence: float, number: int
) -> tuple[Floats, Floats]:
    """Lower and upper ends of intervals for all settings at once; arguments as `lower_bounds`."""
    return _bounds(agreeing, votes, (1.0 - confidence) / number / 2)


def effective_votes(agreeing: Floats, votes: int) -> Floats:
    """Independent votes that the votes of some images are worth, for each setting, float64 [S].

    Args:
        agreeing: as `lower_bounds`.
        votes: votes of an image.
    """
    images = len(agreeing)
    share = agreeing.mean(axis=0)
    binomial = share * (1.0 - share) / (images * votes)
    between = agreeing.var(axis=0, ddof=1) / images
    known = binomial > 0
    design = np.full(len(share), np.nan)
    design[known] = np.maximum(between[known] / binomial[known], 1.0)
    # Where all agree nothing tells: as others of these settings do, or an image counts as one vote.
    design[~known] = design[known].mean() if known.any() else votes
    return np.asarray(images * votes / design, np.float64)


def images_needed(agreeing: Floats, votes: int, *, alpha: float, target: float) -> int | None:
    """How many images like these would put the lower bound of one setting above a target.

    Args:
        agreeing: share of each image's votes that agree, float64 [I], I >= 2.
        votes: votes of an image.
        alpha: of this one bound.
        target: in (0, 1).

    Returns:
        Images, about; None where the agreement itself is not above the target.
    """
    share = float(agreeing.mean())
    if share <= target:
        return None
    worth = float(effective_votes(agreeing[:, None], votes)[0]) / len(agreeing)
    low, high = 1, 1
    while _lower(share, high * worth, alpha) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _lower(share, middle * worth, alpha) > target:
            high = middle
        else:
            low = middle
    return high


def difference(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval for the difference of two independent shares, from an interval for each.

    Args:
        first: (share, low, high).
        second: the same, of what is subtracted.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17, method 10.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    below, above = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return float(a - b - below), float(a - b + above)


def _lower(share: float, worth: float, alpha: float) -> float:
    return float(beta.ppf(alpha, share * worth, (1.0 - share) * worth + 1.0))


def _bounds(agreeing: Floats, votes: int, alpha: float) -> tuple[Floats, Floats]:
    worth = effective_votes(agreeing, votes)
    hits = agreeing.mean(axis=0) * worth
    misses = np.maximum(worth - hits, 0.0)
    with np.errstate(invalid="ignore"):  # at no hits or no misses one end is 0 or 1
        low = np.where(hits > 0, beta.ppf(alpha, hits, misses + 1.0), 0.0)
        high = np.where(misses > 0, beta.ppf(1.0 - alpha, hits + 1.0, misses), 1.0)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)
