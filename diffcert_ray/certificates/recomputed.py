"""Radii and bounds of stored certificates computed again from their counts, thousands at a time.

`certificate` makes one certificate; this asks whether many stored ones are what their counts give.
Values are compared to a relative 1e-9, far below what matters and far above what another version of
scipy changes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from diffcert_ray.certificates.sequential import LOG_MARGIN, sequential_log_e

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

TOLERANCE = 1e-9
"""How far, relative to their size, a stored number may lie from the recomputed one."""
EDGE = 1e-7
"""How far, relative to q, a stored sequential bound may lie from the edge of what is refuted."""


@dataclass(frozen=True, eq=False)
class Recomputed:
    """What counts give, one entry for each certificate.

    Attributes:
        q: 1 - p_low, slack included.
        radius: what is certified, pixel units, before anything is taken off; <= 0: abstained.
        taken_off: of that radius.
        sigma: smoothing noise, pixel units.
    """

    q: Floats
    radius: Floats
    taken_off: Floats
    sigma: Floats

    def p_low_agrees(self, p_low: Floats) -> Booleans:
        """Whether each stored p_low is the recomputed one."""
        q = 1.0 - np.asarray(p_low, np.float64)
        return np.asarray(np.abs(q - self.q) <= TOLERANCE * self.q + 1e-15)

    def radius_agrees(self, radius: Floats, abstained: Booleans) -> Booleans:
        """Whether each stored radius is the recomputed one, and abstained where it should be."""
        # Near 1, p_low holds q to 1e-16 only, which moves the radius by that over q.
        allowed = self.sigma * (TOLERANCE + 4e-16 / np.maximum(self.q, 1e-300))
        expected = np.maximum(self.radius - self.taken_off, 0.0)
        abstains = self.radius <= 0.0
        same = np.where(abstained, radius == 0.0, np.abs(radius - expected) <= allowed)
        at_edge = np.abs(self.radius) <= allowed
        return np.asarray(same & ((abstained == abstains) | at_edge))


def recomputed(
    n_a: Integers,
    n: Integers,
    *,
    sigma: Floats,
    alpha: float,
    bound: str,
    n_b: Integers | None = None,
    slack: Floats | float = 0.0,
    taken_off: Floats | float = 0.0,
) -> Recomputed:
    """What the counts of many images certify by a bound of fixed n.

    Args:
        n_a: votes for the class, [N], 0 <= n_a <= n.
        n: estimation votes, [N], >= 1.
        sigma: smoothing noise, pixel units, [N].
        alpha: failure probability of each certificate.
        bound: "clopper-pearson" or "two-class".
        n_b: for "two-class": votes for the strongest other class, unresolved ones included, [N].
        slack: subtracted from p_low.
        taken_off: subtracted from the radius.
    """
    two = bound == "two-class"
    level = alpha / 2 if two else alpha
    q = np.minimum(_lower_bound_q(n_a, n, level) + slack, 1.0)
    if n_b is None:
        return radius_of_bound(q, sigma, taken_off)
    p_b = np.minimum(_lower_bound_q(n - n_b, n, level) + slack, 1.0)
    radius = sigma / 2 * (-special.ndtri(q) - special.ndtri(p_b))
    return Recomputed(q, radius, np.broadcast_to(taken_off, q.shape), sigma)


def radius_of_bound(q: Floats, sigma: Floats, taken_off: Floats | float = 0.0) -> Recomputed:
    """What bounds on a probability certify.

    Args:
        q: 1 - p_low, slack included, [N].
        sigma: smoothing noise, pixel units, [N].
        taken_off: subtracted from the radius.
    """
    return Recomputed(q, -sigma * special.ndtri(q), np.broadcast_to(taken_off, q.shape), sigma)


def _lower_bound_q(n_a: Integers, n: Integers, alpha: float) -> Floats:
    """`lower_confidence_bound_q` of each pair of counts; each distinct pair is computed once."""
    size = int(n.max(initial=0)) + 1
    pairs, where = np.unique(n_a * size + n, return_inverse=True)
    k, m = np.divmod(pairs, size)
    with np.errstate(all="ignore"):
        q = special.betainccinv(m - k + 1, np.maximum(k, 1), alpha)
    q = np.where(k == m, -np.expm1(math.log(alpha) / np.maximum(m, 1)), q)
    return np.asarray(np.where(k == 0, 1.0, q)[where.reshape(-1)], np.float64)


def sequential_agrees(
    q: Floats, image: Integers, k: Integers, n: Integers, alpha: float
) -> Booleans:
    """Whether bounds are the best that the looks at their image refute, neither more nor less.

    Two e-values a look say it, where computing the bound takes forty.

    Args:
        q: 1 - p_low without slack, [N].
        image: index in q of each look, [L].
        k: votes for the class up to each look, [L].
        n: votes up to each look, [L], >= 1.
        alpha: failure probability of each certificate.
    """
    refuted = _refuted_at_a_look(q * (1 + EDGE), image, k, n, alpha)
    too_little = _refuted_at_a_look(q * (1 - EDGE), image, k, n, alpha)
    nothing = q >= 1.0 - EDGE
    return np.asarray((refuted | nothing) & ~too_little)


def _refuted_at_a_look(
    q: Floats, image: Integers, k: Integers, n: Integers, alpha: float
) -> Booleans:
    needed = -math.log(alpha) + LOG_MARGIN
    q_look = q[image]
    possible = (q_look > 0.0) & (q_look < 1.0)
    p_look = np.where(possible, 1.0 - q_look, 0.5)
    with np.errstate(all="ignore"):
        # An e-value is at most the likelihood ratio of the best p: most looks need no more.
        best = special.xlogy(k, k / n) + special.xlogy(n - k, (n - k) / n)
        ratio = best - special.xlogy(k, p_look) - special.xlogy(n - k, q_look)
    looked = np.flatnonzero(possible & (k / n > p_look) & (ratio >= needed - 1e-6))
    found = np.zeros(len(q), bool)
    if len(looked):
        log_e = sequential_log_e(k[looked], n[looked], p_look[looked], q0=q_look[looked])
        found[image[looked[log_e >= needed]]] = True
    return found
