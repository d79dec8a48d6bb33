"""Grids and weights against quadrature, closed forms and the formulas written out one by one."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

from diffcert_ray.conventions import to_model_space
from diffcert_ray.method.noise_levels import (
    noise_levels,
    reference_levels,
    reference_sifting,
    weight_density,
)

DENSITIES = ("edm", "elbo", "uniform", "linear-s")


def lognormal(s: float, exponent_factor: float) -> float:
    distance = math.log(s) + 1.2
    return math.exp(-(distance**2) * exponent_factor) / (s * 1.2 * math.sqrt(2 * math.pi))


def edm_lambda(s: float) -> float:
    return (s * s + 0.25) / (0.25 * s * s)


def edm(s: float) -> float:
    return edm_lambda(s) * lognormal(s, 1 / (2 * 1.44))


def slipped(s: float) -> float:
    return lognormal(s, 1.44 / 2)


INDEPENDENT = {
    "edm": edm,
    "elbo": lambda s: 1 / s**3,
    "uniform": lambda s: 1.0,
    "linear-s": lambda s: s,
}


def test_smoothing_noise_doubles_in_model_space() -> None:
    assert to_model_space(0.25) == 0.5
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma is"):
            to_model_space(wrong)


@pytest.mark.parametrize("weights", DENSITIES)
def test_weight_density_is_the_formula(weights: str) -> None:
    s = np.array([1e-3, 0.1, 0.5, 1.0, 3.0, 80.0])
    expected = [INDEPENDENT[weights](v) for v in s]
    np.testing.assert_allclose(weight_density(weights, s), expected, rtol=1e-13)


@pytest.mark.parametrize("weights", DENSITIES)
def test_linear_levels_end_at_the_top_and_weigh_density_times_spacing(weights: str) -> None:
    found = noise_levels("linear", weights, 7, s_lo=0.5, s_max=3.0, method="apndc", s_tau=0.5)
    expected = np.array([0.5 + i * 2.5 / 7 for i in range(1, 8)])
    np.testing.assert_allclose(found.s, expected, rtol=1e-15)
    assert found.s[-1] == 3.0
    density = [INDEPENDENT[weights](v) * 2.5 / 7 for v in expected]
    np.testing.assert_allclose(found.weights, density, rtol=1e-13)


@pytest.mark.parametrize("weights", DENSITIES)
@pytest.mark.parametrize(("s_lo", "s_max"), [(1e-3, 3.0), (0.525, 3.0), (2.0, 80.0)])
def test_quantile_levels_halve_equal_shares_of_the_density(
    weights: str, s_lo: float, s_max: float
) -> None:
    levels = 40
    found = noise_levels("quantile", weights, levels, s_lo=s_lo, s_max=s_max, method="dc")
    # In ln s the densities are smooth on a short range: quad is good to 1e-12 there.
    cuts = np.log([s_lo, *found.s, s_max])
    shares = [
        quad(
            lambda t: INDEPENDENT[weights](math.exp(t)) * math.exp(t), a, b, epsabs=0, epsrel=1e-12
        )
        for a, b in pairwise(cuts)
    ]
    shares = np.array([share for share, _ in shares])
    total = shares.sum()
    expected = np.full(levels + 1, total / levels)
    expected[[0, -1]] /= 2
    np.testing.assert_allclose(shares, expected, rtol=1e-9)
    np.testing.assert_allclose(found.weights, total / levels, rtol=1e-11)
    assert found.weights.sum() == pytest.approx(total, rel=1e-11)


def test_linear_grid_to_3_wastes_levels_that_the_quantile_grid_does_not() -> None:
    linear = noise_levels("linear", "edm", 124, s_lo=0.5, s_max=3.0, method="apndc", s_tau=0.5)
    effective = linear.weights.sum() ** 2 / (linear.weights**2).sum()
    assert 40 < effective < 50
    quantile = noise_levels("quantile", "edm", 124, s_lo=0.5, s_max=3.0, method="apndc", s_tau=0.5)
    assert np.unique(quantile.weights).size == 1


@pytest.mark.parametrize(
    ("method", "of_126", "of_1001"),
    [
        ("dc", 124, 999),
        ("apndc", 124, 999),
        ("epndc", 119, 994),
        ("apndc-posterior", 123, 998),
        ("sift-refine", 126, 126),
    ],
)
def test_reference_level_counts(method: str, of_126: int, of_1001: int) -> None:
    for points, count in ((126, of_126), (1001, of_1001)):
        found = noise_levels(
            "linear", "reference", points, s_lo=0.5, s_max=3.0, method=method, s_tau=0.5
        )
        assert len(found.s) == len(found.weights) == count


@pytest.mark.parametrize("method", ["dc", "apndc"])
def test_reference_dc_and_apndc_skip_both_ends_and_take_p_one_step_below(method: str) -> None:
    s_lo = 1e-4 if method == "dc" else 0.5
    grid, spacing = np.linspace(s_lo, 3.0, 126, retstep=True)
    found = noise_levels("linear", "reference", 126, s_lo=s_lo, s_max=3.0, method=method)
    for j in range(1, 125):
        assert found.s[j - 1] == pytest.approx(grid[j], rel=1e-14)
        weight = edm_lambda(grid[j]) * slipped(grid[j - 1]) * spacing
        assert found.weights[j - 1] == pytest.approx(weight, rel=1e-12)


def test_reference_epndc_skips_five_intervals_and_keeps_the_interval_factor() -> None:
    grid, spacing = np.linspace(0.5, 3.0, 126, retstep=True)
    found = noise_levels("linear", "reference", 126, s_lo=0.5, s_max=3.0, method="epndc", s_tau=0.5)
    assert found.s[0] == pytest.approx(grid[6])
    assert found.s[-1] == pytest.approx(grid[124])
    for row, i in enumerate(range(5, 124)):
        a, b, c = 0.25, grid[i] ** 2, grid[i + 1] ** 2
        factor = (c - a) * (grid[i] + grid[i + 1]) ** 2 / (4 * c * (b - a))
        weight = edm_lambda(grid[i]) * slipped(grid[i]) * spacing * factor
        assert found.weights[row] == pytest.approx(weight, rel=1e-12)


def test_reference_epndc_weighs_by_the_smoothing_noise_wherever_its_grid_begins() -> None:
    grid, spacing = np.linspace(0.6, 3.0, 126, retstep=True)
    found = noise_levels("linear", "reference", 126, s_lo=0.6, s_max=3.0, method="epndc", s_tau=0.5)
    a, b, c = 0.25, grid[5] ** 2, grid[6] ** 2
    factor = (c - a) * (grid[5] + grid[6]) ** 2 / (4 * c * (b - a))
    weight = edm_lambda(grid[5]) * slipped(grid[5]) * spacing * factor
    assert found.weights[0] == pytest.approx(weight, rel=1e-12)


def test_reference_posterior_and_sift_and_refine_weights() -> None:
    grid, spacing = np.linspace(0.5, 3.0, 126, retstep=True)
    found = reference_levels("apndc-posterior", 126, s_lo=0.5, s_max=3.0)
    assert found.s[0] == pytest.approx(grid[2])
    assert found.s[-1] == pytest.approx(grid[124])
    for row, j in enumerate(range(2, 125)):
        weight = edm_lambda(grid[j]) * slipped(grid[j - 2]) * spacing
        assert found.weights[row] == pytest.approx(weight, rel=1e-12)
    found = reference_levels("sift-refine", 1001, s_lo=0.5, s_max=3.0)
    np.testing.assert_allclose(found.s, grid, rtol=1e-15)
    # The spacing is that of the 1001 points: 0.0025 at sigma 0.25.
    expected = [edm_lambda(s) * slipped(s) * 0.0025 for s in grid]
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    sifting = reference_sifting(50, s_lo=0.5, s_max=3.0)
    np.testing.assert_allclose(sifting.s, [0.5 + i * 2.5 / 49 for i in range(50)], rtol=1e-15)
    expected = [edm_lambda(s) * slipped(s) for s in sifting.s]
    np.testing.assert_allclose(sifting.weights, expected, rtol=1e-12)


def test_reference_slip_shrinks_the_density_as_published() -> None:
    ratios = [slipped(s) / lognormal(s, 1 / (2 * 1.44)) for s in (0.5, 1.0, 3.0)]
    np.testing.assert_allclose(ratios, [0.91, 0.58, 0.14], atol=0.005)
    grid = np.linspace(1e-4, 3.0, 4001)
    found = reference_levels("dc", 4001, s_lo=1e-4, s_max=3.0)
    density = found.weights / (grid[1] - grid[0]) / weight_density("edm", found.s)
    for s, ratio in zip((0.5, 1.0), ratios[:2], strict=True):
        assert np.interp(s, found.s, density) == pytest.approx(ratio, rel=0.01)


def test_elbo_density_times_spacing_is_the_limit_of_the_weights_of_short_intervals() -> None:
    grid = np.linspace(0.5, 3.0, 126)[
        1:
    ]  # the weight of the interval that begins at s_tau is infinite
    a, b, c = 0.5**2, grid[:-1] ** 2, grid[1:] ** 2
    exact = (c - a) * (c - b) / (2 * (b - a) * c**2)  # KL of two Gaussian posteriors
    ratio = exact / (weight_density("elbo", grid[1:]) * (grid[1] - grid[0]))
    # Intervals 1, 5 and 100, counted from 0 at s_tau.
    np.testing.assert_allclose(ratio[[0, 4, 99]], [2.0, 1.2, 1.01], rtol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "quantil"}, 'grid is "quantil", did you mean "quantile"'),
        ({"weights": "elob"}, 'weights is "elob", did you mean "elbo"'),
        ({"method": "apdnc"}, 'method is "apdnc", did you mean "apndc"'),
        ({"levels": 0}, "levels is 0, at least 1"),
        ({"s_tau": 3.0}, r"s_tau is 3.0 \(sigma 1.5 x 2\) but the grid ends at s_max 3.0"),
        ({"s_tau": 0.6}, "s_lo is 0.5 but s_tau is 0.6"),
        ({"s_lo": 3.0}, "s_lo must be below s_max"),
        ({"s_lo": math.nan}, "s_lo is nan"),
        ({"s_lo": 0.0, "s_tau": 0.0}, 'grid "quantile" needs s_lo > 0'),
        ({"method": "epndc"}, "s_lo above s_tau"),
        ({"weights": "reference"}, 'set grid = "linear"'),
        ({"method": "sift-refine"}, 'only "reference" has levels of its own'),
        ({"weights": "reference", "grid": "linear", "levels": 7}, "at least 8 grid points"),
        (
            {"weights": "reference", "grid": "linear", "s_lo": 0.0, "s_tau": 0.0},
            "need s_lo > 0",
        ),
    ],
)
def test_bad_settings_are_refused_with_the_remedy(change: dict, message: str) -> None:
    settings = {"grid": "quantile", "weights": "edm", "levels": 8, "s_lo": 0.5, "s_max": 3.0}
    settings |= {"method": "apndc", "s_tau": 0.5} | change
    grid, weights, levels = (settings.pop(key) for key in ("grid", "weights", "levels"))
    with pytest.raises(ValueError, match=message):
        noise_levels(grid, weights, levels, **settings)


def test_dc_takes_its_input_for_clean_and_may_begin_below_s_tau() -> None:
    found = noise_levels("linear", "edm", 3, s_lo=1e-4, s_max=3.0, method="dc", s_tau=0.5)
    assert found.s[0] == pytest.approx(1.0, rel=1e-4)
