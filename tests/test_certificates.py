"""Counts to radii, judged by mpmath at 40 digits."""

import math
from decimal import Decimal

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcert_ray.certificates.clopper_pearson import (
    lower_confidence_bound,
    lower_confidence_bound_q,
    upper_confidence_bound,
)
from diffcert_ray.certificates.radius import (
    BOUNDS,
    certificate,
    radius_from_q,
    round_radius_down,
    two_class_counts,
)
from diffcert_ray.certificates.reach import largest_radius, required_n
from diffcert_ray.conventions import NOT_TARGET

IDEAL = {"slack": 0.0, "taken_off": 0.0}  # real arithmetic, as `certificate`

mpmath.mp.dps = 40
steady = settings(derandomize=True, deadline=None, max_examples=80)
alphas = st.sampled_from([0.05, 0.01, 0.001, 1e-6])
sizes = st.integers(1, 10**7)


@st.composite
def counts_of(draw, margin=0):
    """n_a and n with n - n_a >= margin; half of the cases have few votes against the class."""
    n = draw(st.integers(1 + margin, 10**7))
    missing = draw(st.one_of(st.integers(margin, n), st.integers(margin, min(n, margin + 50))))
    return n - missing, n


def exact_upper_tail(n_a, n, p):
    """P(Binomial(n, p) >= n_a), by summing the terms next to n_a or, past the mean, all others."""
    p = mpmath.mpf(p)
    log_term = (
        mpmath.loggamma(n + 1)
        - mpmath.loggamma(n_a + 1)
        - mpmath.loggamma(n - n_a + 1)
        + n_a * mpmath.log(p)
        + (n - n_a) * mpmath.log1p(-p)
    )
    term, total = mpmath.exp(log_term), mpmath.mpf(0)
    odds = p / (1 - p)
    for k in range(n_a, n + 1):
        total += term
        term *= odds * (n - k) / (k + 1)
        if term < total * mpmath.mpf("1e-25"):
            break
    return total


def certify(n_a, n, bound, alpha, sigma=0.25):
    n_b = n - n_a if bound == "two-class" else None
    return certificate(n_a, n, sigma=sigma, n_b=n_b, alpha=alpha, bound=bound)


@pytest.mark.parametrize(
    ("n_a", "n"),
    [
        (1, 10),
        (60, 100),
        (99, 100),
        (990, 1000),
        (99_000, 100_000),
        (99_999, 100_000),
        (5_010_000, 10_000_000),
        (9_000_000, 10_000_000),
        (9_999_990, 10_000_000),
        (9_999_999, 10_000_000),
    ],
)
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
def test_clopper_pearson_bound_has_the_exact_tail_probability(n_a, n, alpha):
    q = lower_confidence_bound_q(n_a, n, alpha)
    assert float(exact_upper_tail(n_a, n, 1 - mpmath.mpf(q)) / alpha) == pytest.approx(1, rel=1e-8)
    assert lower_confidence_bound(n_a, n, alpha) == pytest.approx(1 - q, rel=1e-10)
    assert upper_confidence_bound(n - n_a, n, alpha) == q


@pytest.mark.parametrize("n", [1, 7, 100, 10**4, 10**7])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-9])
def test_unanimous_votes_give_the_closed_form_to_full_precision(n, alpha):
    exact = 1 - mpmath.mpf(alpha) ** (mpmath.mpf(1) / n)
    assert lower_confidence_bound_q(n, n, alpha) == pytest.approx(float(exact), rel=1e-15)
    assert lower_confidence_bound_q(0, n, alpha) == 1.0
    assert lower_confidence_bound(0, n, alpha) == 0.0


@pytest.mark.parametrize("q", [0.499999, 0.3, 1e-2, 1e-4, 1e-7, 1e-9, 1e-11, 1e-12, 1e-100])
def test_radius_keeps_its_digits_as_q_vanishes(q):
    z = mpmath.findroot(lambda x: mpmath.log(mpmath.ncdf(-x) / q), radius_from_q(q, 1.0))
    assert radius_from_q(q, 1.0) == pytest.approx(float(z), rel=1e-14)
    assert radius_from_q(q, 0.25) == pytest.approx(0.25 * float(z), rel=1e-14)


def test_radius_of_a_large_n_uses_q_and_not_p_low():
    n = 10**7
    z = mpmath.findroot(
        lambda x: mpmath.log(mpmath.ncdf(-x) / (1 - mpmath.mpf("0.001") ** (mpmath.mpf(1) / n))),
        4.8,
    )
    assert certificate(n, n, sigma=1.0).radius == pytest.approx(float(z), rel=1e-13)


@pytest.mark.parametrize(("sigma", "ceiling"), [(0.12, 0.457), (0.25, 0.953), (0.5, 1.906)])
def test_ceilings_are_those_of_the_published_tables(sigma, ceiling):
    assert round(largest_radius(100_000, sigma, 0.001, "clopper-pearson", **IDEAL), 3) == ceiling
    assert round(largest_radius(100_000, 1.0, 0.001, "clopper-pearson", **IDEAL), 3) == 3.811


@pytest.mark.parametrize(("n", "ceiling"), [(100, 1.50), (1000, 2.46), (10_000, 3.20)])
def test_ceiling_in_sigmas(n, ceiling):
    assert round(largest_radius(n, 1.0, 0.001, "clopper-pearson", **IDEAL), 2) == ceiling


@pytest.mark.parametrize(
    ("bound", "votes"),
    [("clopper-pearson", (40, 301, 5114)), ("sequential", (47, 351, 5977))],
)
def test_votes_needed_for_one_two_and_three_sigmas(bound, votes):
    assert tuple(required_n(z * 0.25, 0.25, 0.001, bound, **IDEAL) for z in (1, 2, 3)) == votes


@pytest.mark.parametrize("bound", BOUNDS)
@given(radius=st.floats(0.0, 1.1), alpha=alphas)
@settings(derandomize=True, deadline=None, max_examples=15)
def test_required_n_is_the_smallest_that_certifies(bound, radius, alpha):
    n = required_n(radius, 0.25, alpha, bound, **IDEAL)
    reached = certify(n, n, bound, alpha)
    assert not reached.abstained
    assert reached.radius >= radius
    if n > 1:
        before = certify(n - 1, n - 1, bound, alpha)
        assert before.abstained or before.radius < radius


@pytest.mark.parametrize("bound", BOUNDS)
@given(counts=counts_of(margin=1), alpha=alphas)
@steady
def test_radius_grows_with_the_votes_for_the_class(bound, counts, alpha):
    n_a, n = counts
    fewer, more = certify(n_a, n, bound, alpha), certify(n_a + 1, n, bound, alpha)
    assert fewer.radius <= more.radius
    assert fewer.q > more.q
    assert more.radius <= largest_radius(n, 0.25, alpha, bound, **IDEAL) + 1e-9  # rounded down


@pytest.mark.parametrize("bound", BOUNDS)
@given(counts=counts_of(), alpha=alphas)
@steady
def test_radius_shrinks_as_alpha_falls(bound, counts, alpha):
    n_a, n = counts
    loose, strict = certify(n_a, n, bound, alpha), certify(n_a, n, bound, alpha / 2)
    assert strict.radius <= loose.radius
    assert strict.p_low <= loose.p_low


@pytest.mark.parametrize("bound", BOUNDS)
@given(counts=counts_of(), alpha=alphas, sigma=st.sampled_from([0.12, 0.25, 1.0]))
@steady
def test_radius_is_zero_exactly_when_abstaining(bound, counts, alpha, sigma):
    n_a, n = counts
    result = certify(n_a, n, bound, alpha, sigma)
    assert result.abstained == (result.radius == 0.0)
    assert result.radius >= 0.0
    assert math.isfinite(result.radius)
    assert 0.0 < result.q <= 1.0
    assert result.p_low == pytest.approx(1.0 - result.q, abs=1e-15)
    if bound != "two-class":
        assert result.abstained == (result.q >= 0.5)
        assert result.p_low <= n_a / n


@given(counts=counts_of(), alpha=alphas)
@steady
def test_sequential_is_never_above_fixed_n(counts, alpha):
    n_a, n = counts
    assert certify(n_a, n, "sequential", alpha).q >= certify(n_a, n, "clopper-pearson", alpha).q


def test_sequential_certificate_is_the_best_of_its_looks():
    looks = {"sigma": 0.25, "bound": "sequential"}
    early = certificate([100], [100], **looks)
    assert certificate([100, 130, 400], [100, 200, 500], **looks) == early
    assert certificate([100, 200, 500], [100, 200, 500], **looks).radius > early.radius
    assert certificate(100, 100, **looks) == early
    arrays = certificate(np.array([100, 130]), np.array([100, 200]), **looks)
    assert arrays == early


@pytest.mark.parametrize(("n_a", "n_b", "n"), [(60, 20, 100), (450, 100, 1000), (999, 1, 1000)])
def test_two_class_is_the_half_difference_of_both_bounds_at_half_alpha(n_a, n_b, n):
    result = certificate(n_a, n, n_b=n_b, sigma=0.5, alpha=0.01, bound="two-class")
    p_a = 1 - mpmath.mpf(lower_confidence_bound_q(n_a, n, 0.005))
    p_b = min(mpmath.mpf(upper_confidence_bound(n_b, n, 0.005)), 1 - p_a)

    def quantile(p):
        return mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)

    assert result.radius == pytest.approx(float((quantile(p_a) - quantile(p_b)) / 4), rel=1e-10)
    assert not result.abstained


def test_two_class_certifies_without_a_majority():
    shared = {"sigma": 0.25, "alpha": 0.001}
    assert certificate(450, 1000, **shared).abstained
    spread = certificate(450, 1000, n_b=[50] * 11, bound="two-class", **shared)
    assert spread == certificate(450, 1000, n_b=50, bound="two-class", **shared)
    assert spread.radius > 0.1
    assert spread.p_low < 0.5
    assert certificate(450, 1000, n_b=440, bound="two-class", **shared).abstained


def test_unresolved_votes_count_for_every_rival():
    counts = {3: 70, 5: 12, 8: 10, NOT_TARGET: 8}
    assert two_class_counts(counts, target=3) == (70, 20)
    assert two_class_counts(counts, target=7) == (0, 78)
    assert two_class_counts({3: 92, NOT_TARGET: 8}, target=3) == (92, 8)
    with pytest.raises(ValueError, match="add unresolved votes to every class"):
        certificate(70, 100, n_b=[12, 10], sigma=0.25, bound="two-class")


@given(radius=st.floats(0.0, 1e6), decimals=st.integers(0, 6))
@steady
def test_printed_radius_is_the_next_one_at_or_below(radius, decimals):
    text = round_radius_down(radius, decimals)
    step = Decimal(10) ** -decimals
    assert Decimal(text) <= Decimal(radius) < Decimal(text) + step
    assert -Decimal(text).as_tuple().exponent == decimals


def test_printed_radius_is_cut_and_not_rounded():
    assert round_radius_down(0.9528641, 3) == "0.952"
    assert round_radius_down(0.29999999999999999, 1) == "0.2"  # the float lies below 0.3
    assert round_radius_down(0.5, 2) == "0.50"
    assert round_radius_down(1e-9, 3) == "0.000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_a": 11, "n": 10}, "11 votes of n=10"),
        ({"n_a": -1, "n": 10}, "n_a=-1 must be at least 0"),
        ({"n_a": 0, "n": 0}, "n must be at least 1"),
        ({"n_a": 9.5, "n": 10}, "whole number"),
        ({"n_a": [5, 9], "n": 10}, "whole number"),
        ({"n_a": 9, "n": 10, "alpha": 0.0}, r"alpha=0.0 must lie in \(0, 1\)"),
        ({"n_a": 9, "n": 10, "alpha": 1.0}, "alpha=1.0"),
        ({"n_a": 9, "n": 10, "alpha": math.nan}, "alpha=nan"),
        ({"n_a": 9, "n": 10, "alpha": 2, "bound": "sequential"}, "alpha=2"),
        ({"n_a": 9, "n": 10, "sigma": 0.0}, "sigma=0.0 must be positive"),
        ({"n_a": 9, "n": 10, "sigma": math.inf}, "sigma=inf"),
        ({"n_a": 9, "n": 10, "bound": "hoeffding"}, "use one of clopper-pearson, two-class"),
        ({"n_a": 9, "n": 10, "bound": "two-class"}, "give n_b there"),
        ({"n_a": 9, "n": 10, "n_b": 1}, "leave it out elsewhere"),
        ({"n_a": 9, "n": 10, "n_b": 2, "bound": "two-class"}, "more than n=10"),
        ({"n_a": [5, 4], "n": [10, 20], "bound": "sequential"}, "look 1: n_a=4, n=20"),
        ({"n_a": [5, 17], "n": [10, 20], "bound": "sequential"}, "look 1: n_a=17, n=20"),
        ({"n_a": [5, 6], "n": [10, 10], "bound": "sequential"}, "look 1"),
        ({"n_a": [5, 6], "n": [10], "bound": "sequential"}, "equal length"),
        ({"n_a": [], "n": [], "bound": "sequential"}, "at least one look"),
        ({"n_a": [5.0], "n": [10.0], "bound": "sequential"}, "whole numbers"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        certificate(**{"sigma": 0.25, **arguments})


def test_bad_input_of_the_smaller_functions_is_refused():
    with pytest.raises(ValueError, match=r"q=0.0 is outside \(0, 1\]"):
        radius_from_q(0.0, 1.0)
    with pytest.raises(ValueError, match="more than 9007199254740992 votes"):
        required_n(10.0, 1.0, 0.001, "clopper-pearson", **IDEAL)
    with pytest.raises(ValueError, match="radius=-1"):
        required_n(-1.0, 1.0, 0.001, "clopper-pearson", **IDEAL)
    with pytest.raises(ValueError, match="is no class"):
        two_class_counts({1: 2}, target=NOT_TARGET)
    with pytest.raises(ValueError, match="radius=nan"):
        round_radius_down(math.nan, 3)
    with pytest.raises(ValueError, match="decimals=-1"):
        round_radius_down(1.0, -1)
