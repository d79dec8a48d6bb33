import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from diffcert_ray.certificates.betting import CAPS, UnitSums, betting_bound

SIDES = ("lower", "upper")


def misses(bounds, mean, side):
    return bounds > mean if side == "lower" else bounds < mean


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_bernoulli_error_is_at_most_alpha_for_every_mean_counted_exactly(side, alpha):
    """All 4096 outcomes of 12 coin tosses, weighted by their probability: no chance involved."""
    outcomes = np.array(list(itertools.product((0.0, 1.0), repeat=12))).T
    bounds = betting_bound(outcomes, alpha, side=side)
    ones = outcomes.sum(axis=0)
    for mean in np.linspace(0.001, 0.999, 499):
        probability = mean**ones * (1 - mean) ** (12 - ones)
        assert probability[misses(bounds, mean, side)].sum() <= alpha


WORLDS = {
    "coin 0.3": (lambda rng, size: (rng.random(size) < 0.3).astype(float), 0.3),
    "coin 0.01": (lambda rng, size: (rng.random(size) < 0.01).astype(float), 0.01),
    "beta near 0": (lambda rng, size: rng.beta(2.0, 198.0, size), 0.01),
    "narrow beta near 0": (lambda rng, size: rng.beta(40.0, 7960.0, size), 0.005),
    "beta near 1": (lambda rng, size: rng.beta(30.0, 2.0, size), 30 / 32),
    "two scales": (lambda rng, size: np.where(rng.random(size) < 0.02, 0.5, 0.005), 0.0149),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("world", WORLDS)
def test_coverage_is_kept_on_simulated_losses(world, side):
    """Each of the 12 cases fails with probability below 1e-4 if its error is exactly alpha."""
    draw, mean = WORLDS[world]
    rng = np.random.default_rng(7)
    alpha, trials = 0.05, 2000
    bounds = betting_bound(draw(rng, (250, trials)), alpha, side=side)
    assert misses(bounds, mean, side).sum() <= binom.isf(1e-4, trials, alpha)


def reference_log_capital(draws, m, alpha, size=1):
    """Peak log capital against "the mean is m", by definition; bets change with each unit."""
    needed = math.log(1 / alpha)
    capital = [share for share, _ in CAPS]
    best = 0.0
    seen: list[float] = []
    for start in range(0, len(draws), size):
        mean = (0.5 + sum(seen)) / (len(seen) + 1)
        spread = sum((v - sum(seen) / len(seen)) ** 2 for v in seen)
        variance = (mean * (1 - mean) + spread) / (len(seen) + 1)
        bet = math.sqrt(2 * needed / (len(draws) * variance))
        for x in draws[start : start + size]:
            capital = [
                c * (1 + min(bet, cap / m) * (x - m))
                for c, (_, cap) in zip(capital, CAPS, strict=True)
            ]
            seen.append(x)
        best = max(best, math.log(sum(capital)))
    return best


@pytest.mark.parametrize(("count", "seed"), [(5, 0), (40, 1), (150, 2)])
def test_bounds_are_where_the_capital_reaches_one_over_alpha(count, seed):
    draws = np.random.default_rng(seed).beta(1.0, 6.0, count)
    alpha = 0.02
    lower = float(betting_bound(draws, alpha, side="lower"))
    upper = float(betting_bound(draws, alpha, side="upper"))
    goal = math.log(1 / alpha)
    if lower > 0:
        assert reference_log_capital(draws, lower, alpha) >= goal - 1e-6
    assert reference_log_capital(draws, lower + 1e-6, alpha) < goal
    if upper < 1:
        assert reference_log_capital(1 - draws, 1 - upper, alpha) >= goal - 1e-6
    assert reference_log_capital(1 - draws, 1 - upper + 1e-6, alpha) < goal


@pytest.mark.parametrize("size", [2, 7, 30])
@pytest.mark.parametrize("shape", [(1.0, 6.0), (0.2, 2.0), (30.0, 900.0)])
def test_unit_sums_never_claim_more_than_the_draws_behind_them(size, shape):
    draws = np.random.default_rng(8).beta(*shape, 150)
    alpha, goal = 0.02, math.log(50)
    units = UnitSums.from_draws(draws, size)
    for side, values in (("lower", draws), ("upper", 1 - draws)):
        bound = float(betting_bound(units, alpha, side=side))
        refuted = bound if side == "lower" else 1 - bound
        if refuted > 1e-9:
            assert reference_log_capital(values, refuted, alpha, size) >= goal - 1e-6
        if size == 2:  # two draws follow from their sums: nothing is lost
            assert reference_log_capital(values, refuted + 1e-5, alpha, size) < goal


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [7, 50])
def test_coverage_is_kept_from_unit_sums(side, size):
    """Each of the 4 cases fails with probability below 1e-4 if its error is exactly alpha."""
    alpha, trials = 0.05, 2000
    draws = (np.random.default_rng(10).random((250, trials)) < 0.1).astype(float)
    bounds = betting_bound(UnitSums.from_draws(draws, size), alpha, side=side)
    assert misses(bounds, 0.1, side).sum() <= binom.isf(1e-4, trials, alpha)


@pytest.mark.parametrize(
    ("units", "named"),
    [
        (UnitSums(np.ones(3), np.ones(2), np.full(3, 4)), "squares \\(2,\\)"),
        (UnitSums(np.ones(3), np.ones(3), np.array([4, 0, 4])), "without draws"),
        (UnitSums(np.ones(3), np.full(3, 0.1), np.full(3, 4)), "does not fit"),
        (UnitSums(np.ones(3), np.full(3, 1.1), np.full(3, 4)), "does not fit"),
        (UnitSums(np.full(3, 5.0), np.full(3, 5.0), np.full(3, 4)), "outside"),
    ],
)
def test_sums_that_no_draws_have_are_named(units, named):
    with pytest.raises(ValueError, match=named):
        betting_bound(units, 0.05, side="lower")


def test_units_cover_every_draw_once():
    draws = np.random.default_rng(0).random((23, 4))
    units = UnitSums.from_draws(draws, 5)
    assert units.sizes.tolist() == [5, 5, 5, 5, 3]
    assert units.draws == 23
    assert units.means == pytest.approx(draws.mean(axis=0))
    with pytest.raises(ValueError, match="units 0 draws"):
        UnitSums.from_draws(draws, 0)


def test_capital_never_increases_with_the_candidate_mean():
    draws = np.random.default_rng(3).beta(0.5, 3.0, 80)
    capital = [reference_log_capital(draws, m, 0.01) for m in np.linspace(0.001, 0.9, 100)]
    assert np.all(np.diff(capital) <= 1e-12)


def test_bounds_depend_on_draws_only_through_the_capital_before_its_peak():
    """A wild tail costs capital; the bound reached before it stays, whatever the tail's order."""
    quiet = np.full(320, 0.5)
    tails = [np.tile([0.0, 1.0], 160), np.repeat([0.0, 1.0], 160)]
    draws = np.stack([np.concatenate([quiet, tail]) for tail in tails], axis=1)
    first, second = betting_bound(draws, 0.01, side="lower")
    assert first > 0.47
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(("mean", "share"), [(0.005, 0.2), (0.02, 0.5), (0.05, 0.5)])
def test_small_losses_have_tight_bounds(mean, share):
    """Lower bounds adapt to the spread, upper ones come near the unavoidable ln(1/alpha) / M."""
    alpha, count = 0.001 / 200, 2048
    size = (1 - mean) / (mean * share**2) - 1
    draws = np.random.default_rng(5).beta(mean * size, (1 - mean) * size, (count, 30))
    gaussian = share * mean * math.sqrt(2 * math.log(1 / alpha) / count)
    unseen = math.log(1 / alpha) / count
    lower = betting_bound(draws, alpha, side="lower").mean()
    upper = betting_bound(draws, alpha, side="upper").mean()
    assert mean - 1.2 * gaussian - 0.05 * mean * share < lower
    assert upper < mean + 1.1 * unseen
    empirical_bernstein = gaussian + 7 * math.log(2 / alpha) / (3 * (count - 1))
    assert upper - mean < empirical_bernstein / 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60),
    st.floats(1e-6, 0.4),
    st.floats(0.1, 10.0),
)
def test_bounds_are_ordered_scale_and_widen_with_confidence(values, alpha, ceiling):
    draws = np.array(values)
    lower = float(betting_bound(draws, alpha, side="lower"))
    upper = float(betting_bound(draws, alpha, side="upper"))
    assert 0.0 <= lower <= draws.mean() + 1e-9
    assert draws.mean() - 1e-9 <= upper <= 1.0
    scaled = betting_bound(draws * ceiling, alpha, side="lower", ceiling=ceiling)
    assert float(scaled) == pytest.approx(ceiling * lower, abs=1e-5 * ceiling)
    mirrored = 1.0 - float(betting_bound(1.0 - draws, alpha, side="upper"))
    assert mirrored == pytest.approx(lower, abs=1e-6)


def test_columns_are_bounded_independently_of_each_other():
    draws = np.random.default_rng(1).beta(1, 9, (100, 3, 4))
    together = betting_bound(draws, 0.01, side="upper")
    assert together.shape == (3, 4)
    alone = betting_bound(draws[:, 1, 2], 0.01, side="upper")
    assert float(together[1, 2]) == float(alone)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25])
def test_constant_draws_give_finite_bounds_around_them(value):
    draws = np.full(1000, value)
    lower = float(betting_bound(draws, 0.001, side="lower"))
    upper = float(betting_bound(draws, 0.001, side="upper"))
    assert max(value - 0.01, 0.0) <= lower <= value
    assert value <= upper <= min(value + 0.01, 1.0)


@pytest.mark.parametrize(
    ("draws", "options", "named"),
    [
        ([0.1, 1.5], {}, "1.5"),
        ([-0.1], {}, "-0.1"),
        ([0.1, math.nan], {}, "nan"),
        ([], {}, "at least one draw"),
        ([0.1], {"alpha": 0.0}, "alpha=0.0"),
        ([0.1], {"alpha": 1.0}, "alpha=1.0"),
        ([0.1], {"side": "both"}, "'both'"),
        ([0.1], {"ceiling": 0.0}, "ceiling is 0.0"),
        ([0.6], {"ceiling": 0.5}, "0.6"),
    ],
)
def test_bad_input_is_named(draws, options, named):
    arguments = {"alpha": 0.05, "side": "lower"} | options
    with pytest.raises(ValueError, match=named):
        betting_bound(np.array(draws), **arguments)
