"""Stored radii and p_low are never above what their counts give exactly, and hardly below."""

import math

import mpmath
import numpy as np
import pytest
from scipy import special

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.radius import certificate
from diffcert_ray.certificates.sequential import sequential_log_e

SIGMAS = (0.12, 0.25, 0.5, 1.0)
CORNERS = [
    *((0, 1), (1, 1), (1, 2), (2, 2), (9, 10), (10, 10), (11, 11), (99, 100), (100, 100)),
    *((501, 1000), (551, 1000), (999, 1000), (1000, 1000), (99_999, 100_000), (100_000, 100_000)),
    *((50_600, 100_000), (10**6 - 1, 10**6), (10**6, 10**6)),
]


def counts(seed: int, many: int) -> list[tuple[int, int]]:
    """Counts of all sizes of n, near 1/2, near 1 and between."""
    rng = np.random.default_rng(seed)
    n = np.exp(rng.uniform(0, math.log(20_000), many)).astype(int)
    share = rng.choice([0.5, 1.0], many) + rng.choice([-1, 1], many) * rng.uniform(0, 0.25, many)
    k = np.clip(np.rint(np.clip(share, 0, 1) * n), 0, n).astype(int)
    return list(zip(k.tolist(), n.tolist(), strict=True))


def tail(p: mpmath.mpf, k: int, n: int) -> mpmath.mpf:
    """P(at least k of n) at success probability p, to 30 digits: a sum over the rarer side."""
    if k == 0:
        return mpmath.mpf(1)
    q, p = 1 - p, mpmath.mpf(p)
    term = mpmath.exp(
        mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
    ) * mpmath.power(p, k) * mpmath.power(q, n - k)  # fmt: skip
    total = term
    for i in range(k, n):  # the terms beyond fall fast, since p is below k / n
        term *= mpmath.mpf(n - i) / (i + 1) * p / q
        total += term
        if term < total * mpmath.mpf(10) ** -28:
            break
    return total


@pytest.mark.parametrize("seed", range(4))
def test_clopper_pearson_is_never_above_the_exact_value(seed):
    """10,000 random counts and the corners: the bound is refuted exactly, in 30 digits."""
    mpmath.mp.dps = 30
    rng = np.random.default_rng([7, seed])
    for k, n in [*counts(seed, 2500), *(CORNERS if seed == 0 else [])]:
        alpha, sigma = float(rng.choice([0.001, 0.05])), float(rng.choice(SIGMAS))
        slack, off = float(rng.choice([0.0, 1.1e-7])), float(rng.choice([0.0, 4.2e-4]))
        found = executed_certificate(k, n, sigma=sigma, slack=slack, taken_off=off, alpha=alpha)
        p_low = mpmath.mpf(found.p_low) + mpmath.mpf(slack)
        assert tail(p_low, k, n) <= mpmath.mpf(alpha) or (found.p_low == 0.0), (k, n)
        ideal = certificate(k, n, sigma=sigma, alpha=alpha)
        assert ideal.p_low - slack - found.p_low <= 2e-11
        if found.radius > 0.0:
            boundary = mpmath.ncdf((mpmath.mpf(found.radius) + mpmath.mpf(off)) / sigma)
            assert tail(boundary + mpmath.mpf(slack), k, n) <= mpmath.mpf(alpha), (k, n)
            expected = sigma * -special.ndtri(ideal.q + slack) - off
            assert found.radius == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_two_class_is_never_above_the_exact_value():
    mpmath.mp.dps = 30
    rng = np.random.default_rng(8)
    for k, n in counts(9, 400):
        n_b = int(rng.integers(0, min(k, n - k) + 1))
        slack, half = 1.1e-7, mpmath.mpf("0.0005")
        found = executed_certificate(
            k, n, sigma=0.25, slack=slack, taken_off=0.0, n_b=n_b, bound="two-class"
        )
        if found.p_low > 0.0:
            assert tail(mpmath.mpf(found.p_low) + mpmath.mpf(slack), k, n) <= half
        if found.radius > 0.0:  # what p_B at most is, from p_low and the radius
            z = mpmath.mpf(8) * found.radius - mpmath.sqrt(2) * mpmath.erfinv(2 * found.p_low - 1)
            p_b = mpmath.ncdf(-z) - mpmath.mpf(slack)
            assert tail(1 - p_b, n - n_b, n) <= half * (1 + mpmath.mpf("1e-6"))


def test_sequential_is_refuted_where_it_is_stored():
    """The e-value at the stored p_low, plus the slack, reaches 1 / alpha."""
    rng = np.random.default_rng(10)
    for k, n in counts(11, 400):
        alpha, slack = float(rng.choice([0.001, 0.05])), 1.1e-7
        found = executed_certificate(
            k, n, sigma=0.25, slack=slack, taken_off=0.0, alpha=alpha, bound="sequential"
        )
        if 0.0 < found.p_low < 1.0 - slack:
            assert sequential_log_e(k, n, found.p_low + slack) >= -math.log(alpha)
