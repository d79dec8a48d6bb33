"""Intervals of agreements: images are the independent units, and all bounds hold at once."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from diffcert_ray.tuning.intervals import (
    difference,
    effective_votes,
    images_needed,
    intervals,
    lower_bounds,
)

IMAGES, VOTES, SETTINGS, CONFIDENCE = 430, 4, 5, 0.95


def worlds(rng: np.random.Generator, images: int) -> np.ndarray:
    """Shares at which images agree: most nearly always, some seldom, [images, SETTINGS]."""
    hard = rng.random(images) < 0.12
    wrong = np.where(hard, rng.beta(0.5, 2.5, images), 0.001)
    times = rng.gamma(4, 1 / 4, (images, SETTINGS)) * np.linspace(0.1, 0.4, SETTINGS)
    return 1.0 - np.clip(wrong[:, None] * times, 0, 1)


def test_one_vote_an_image_gives_the_exact_binomial_bound():
    agreeing = np.array([1.0] * 97 + [0.0] * 3)[:, None]
    exact = beta.ppf(0.05, 97, 4)
    assert lower_bounds(agreeing, 1, 0.95, 1)[0] == pytest.approx(exact, abs=6e-4)
    assert lower_bounds(agreeing, 1, 0.95, 10)[0] == pytest.approx(beta.ppf(0.005, 97, 4), abs=6e-4)


def test_votes_that_differ_on_few_images_count_as_fewer_votes():
    spread, together = np.ones((100, 1)), np.ones((100, 1))
    spread[:8] = 0.75
    together[:2] = 0.0
    assert spread.mean() == together.mean()
    assert effective_votes(spread, 4)[0] == pytest.approx(400, rel=0.05)
    assert effective_votes(together, 4)[0] == pytest.approx(100, rel=0.05)
    assert lower_bounds(together, 4, 0.95, 1)[0] < lower_bounds(spread, 4, 0.95, 1)[0]


def test_where_all_agree_an_image_counts_as_one_vote():
    assert lower_bounds(np.ones((50, 1)), 4, 0.95, 1)[0] == pytest.approx(0.05 ** (1 / 50))
    low, high = intervals(np.ones((50, 1)), 4, 0.95, 1)
    assert high[0] == 1.0
    assert low[0] == pytest.approx(0.025 ** (1 / 50))
    assert intervals(np.zeros((50, 1)), 4, 0.95, 1)[0][0] == 0.0


def test_all_bounds_hold_at_once_about_as_often_as_they_say():
    true = worlds(np.random.default_rng(0), 400_000).mean(axis=0)
    missed = normal_missed = 0
    for trial in range(400):
        rng = np.random.default_rng(1 + trial)
        shares = worlds(rng, IMAGES)
        agreeing = rng.binomial(VOTES, shares) / VOTES
        missed += bool((lower_bounds(agreeing, VOTES, CONFIDENCE, SETTINGS) > true).any())
        deviation = agreeing.std(axis=0, ddof=1) / np.sqrt(IMAGES)
        normal = agreeing.mean(axis=0) - norm.ppf(1 - (1 - CONFIDENCE) / SETTINGS) * deviation
        normal_missed += bool((normal > true).any())
    assert missed / 400 < 0.075  # 0.05 and three standard errors of 400 trials, rounded down
    assert 0.30 < normal_missed / 400 < 0.40  # what the bound is for


def test_so_many_images_show_the_target_and_fewer_do_not():
    rng = np.random.default_rng(5)
    agreeing = rng.binomial(4, np.where(rng.random(200) < 0.05, 0.9, 1.0)) / 4
    assert agreeing.mean() > 0.99
    needed = images_needed(agreeing, 4, alpha=0.01, target=0.99)
    worth = effective_votes(agreeing[:, None], 4)[0] / 200
    share = agreeing.mean()
    lows = [
        beta.ppf(0.01, share * n * worth, (1 - share) * n * worth + 1) for n in (needed - 1, needed)
    ]
    assert lows[0] <= 0.99 < lows[1]


def test_no_number_of_images_shows_what_is_not_so():
    assert images_needed(np.array([1.0, 0.5, 1.0, 1.0]), 4, alpha=0.01, target=0.99) is None


def test_the_interval_of_a_difference_is_that_of_newcombe():
    # Newcombe 1998 (Statistics in Medicine 17, 873-890), table II, method 10: 56/70 less 48/80.
    first, second = (56 / 70, 0.6923, 0.8764), (48 / 80, 0.4904, 0.7003)
    low, high = difference(first, second)
    assert low == pytest.approx(0.0524, abs=2e-3)
    assert high == pytest.approx(0.3339, abs=2e-3)
