"""The e-process against its definition, integrated by mpmath, and against its martingale law."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcert_ray.certificates.sequential import (
    sequential_log_e,
    sequential_q_bound,
)

mpmath.mp.dps = 40
LARGE = 10**7


def exact_log_e(k, n, p0):
    """The definition with p = sin(t)^2, where Jeffreys' prior is flat in t."""

    def log_likelihood(t):
        lost = (n - k) * mpmath.log(mpmath.cos(t)) if n > k else 0
        return 2 * (lost + (k * mpmath.log(mpmath.sin(t)) if k else 0))

    t0, end = mpmath.asin(mpmath.sqrt(mpmath.mpf(p0))), mpmath.pi / 2
    peak = max(t0, mpmath.asin(mpmath.sqrt(mpmath.mpf(k) / n)))
    # The likelihood falls off within a few standard deviations of its peak, or, where the peak
    # is cut off, within a few lengths of its slope there.
    deviation = 1 / (2 * mpmath.sqrt(n))
    slope = 2 * abs(k * mpmath.cot(peak) - (n - k) * mpmath.tan(peak)) if peak == t0 else 0
    step = 1 / (1 / deviation + slope)
    points = {peak + j * step for j in range(-60, 61, 3)} | {t0}
    reach = peak + 60 * step
    grid = [*sorted(t for t in points if t0 <= t < end), min(end, reach)]
    offset = log_likelihood(peak)
    area = mpmath.quad(lambda t: mpmath.exp(log_likelihood(t) - offset), grid)
    return mpmath.log(area / (end - t0)) + offset - log_likelihood(t0)


CASES = [
    (0, 1, 0.5),
    (1, 1, 0.5),
    (10, 10, 0.6),
    (47, 47, 0.8413),
    (60, 100, 0.4),
    (60, 100, 0.9),
    (5977, 5977, 0.99865),
    (9_990, 10_000, 0.998),
    (5_010_000, LARGE, 0.5),
    (7_000_000, LARGE, 0.69),
    (7_000_000, LARGE, 0.7),
    (9_990_000, LARGE, 0.9985),
    (LARGE, LARGE, 1 - 1e-6),
    (LARGE - 3, LARGE, 1 - 2e-6),
    (5_000_000, LARGE, 0.52),  # the incomplete Beta function underflows from here on
    (5_000_000, LARGE, 0.9),
    (10, LARGE, 0.9),
    (0, LARGE, 0.0001),
    (0, LARGE, 0.01),
]


@pytest.mark.parametrize(("k", "n", "p0"), CASES)
def test_log_e_matches_the_definition(k, n, p0):
    assert sequential_log_e(k, n, p0) == pytest.approx(float(exact_log_e(k, n, p0)), abs=2e-8)


@pytest.mark.parametrize("p0", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_wealth_is_a_martingale_at_p0_and_a_supermartingale_below(p0):
    k, n = np.tril_indices(60)[1], np.tril_indices(60)[0] + 1
    won = np.exp(sequential_log_e(k + 1, n + 1, p0) - sequential_log_e(k, n, p0))
    lost = np.exp(sequential_log_e(k, n + 1, p0) - sequential_log_e(k, n, p0))
    np.testing.assert_allclose(p0 * won + (1 - p0) * lost, 1.0, rtol=1e-10)
    assert np.all(won >= 1.0)
    assert np.all(lost <= 1.0)
    first = np.exp(sequential_log_e([1, 0], 1, p0))
    assert p0 * first[0] + (1 - p0) * first[1] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 5), (40, 40), (60, 100), (9_990, 10_000)])
def test_log_e_falls_in_p0_wherever_it_is_positive(k, n):
    log_e = sequential_log_e(k, n, np.linspace(0, k / n, 20_001)[1:-1])
    assert np.all(np.diff(log_e[log_e > 0]) < 0)


@pytest.mark.parametrize("k", [10_000, 6_000_000, 9_990_000, LARGE - 1, LARGE])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_bound_is_the_edge_of_what_is_refuted(k, alpha):
    q = float(sequential_q_bound(k, LARGE, alpha))
    needed = -math.log(alpha)
    assert needed <= exact_log_e(k, LARGE, 1 - mpmath.mpf(q)) <= needed + 3e-6


def test_bounds_of_many_images_are_those_of_each():
    k, n = np.array([[0, 90, 100], [5, 500, 1000]]), np.array([[100], [1000]])
    table = sequential_q_bound(k, n, 0.01)
    assert table.shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        assert table[row, column] == sequential_q_bound(k[row, column], n[row, 0], 0.01)
    assert table[0, 0] == 1.0


@given(n=st.integers(1, LARGE), share=st.floats(0, 1), alpha=st.sampled_from([0.05, 0.001, 1e-6]))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_bounds_for_successes_and_failures_enclose_the_frequency(n, share, alpha):
    k = round(share * n)
    lower, upper = 1 - sequential_q_bound(k, n, alpha), sequential_q_bound(n - k, n, alpha)
    assert 0.0 <= lower <= k / n <= upper <= 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequential_q_bound(11, 10, 0.05), "k in 0..n"),
        (lambda: sequential_q_bound(0, 0, 0.05), "n must be at least 1"),
        (lambda: sequential_q_bound(5, 10, 1.5), "alpha=1.5"),
        (lambda: sequential_log_e(5, 10, 1.0), "must lie in"),
        (lambda: sequential_log_e(np.nan, 10, 0.5), "k in 0..n"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
