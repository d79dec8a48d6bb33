"""Decide at a look whether an image of a sequential run has enough votes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.fraction import check_fraction
from diffcert_ray.certificates.radius import check_sigma
from diffcert_ray.certificates.sequential import LOG_MARGIN, sequential_log_e

NEAR = 1e-6
"""Relative slack of the quick test, far above the rounding of an e-value's logarithm."""

Decision = Literal["continue", "certified", "futile", "cap"]


@dataclass
class SequentialLooks:
    """The looks at one image so far, and whether it goes on.

    The rules, in this order, where "certified" means by the best of the looks so far:

    1. "certified": the largest asked radius is certified.
    2. "cap": the last look is at the cap.
    3. "futile": the smallest asked radius r that is not certified yet cannot be hoped for: with k_r
       the fewest votes for the class that certify r at the cap, either the votes left are too few
       to reach k_r, or the posterior probability (Jeffreys prior, votes so far) that the class's
       probability lies above (k_r - 1/2) / cap is below futility_level.
    4. "continue".

    Stopping rules do not touch the certificate's validity: futility_level only trades votes for
    images that are given up although the cap would have certified them.

    Args:
        cap: votes at which the image stops in any case, >= 1.
        sigma: smoothing noise, pixel units, > 0.
        radii: asked radii, pixel units, >= 0, not empty.
        alpha: failure probability of the certificate, in (0, 1).
        futility_level: posterior probability below which a radius is given up, in (0, 1).
        slack: subtracted from the bound on the probability, as in `executed_certificate`.
        taken_off: subtracted from the radius, pixel units, likewise.

    Raises:
        ValueError: a value is out of range.

    Source: ours. The likelihood ratio of a success is at least 1 for every p > p0, so the
        e-value never falls with one: unanimous votes to the cap are the best that can come.
    """

    cap: int
    sigma: float
    radii: Sequence[float]
    alpha: float
    futility_level: float
    slack: float
    taken_off: float

    def __post_init__(self) -> None:
        _check(self.radii, self.sigma, self.alpha, self.futility_level)
        self._missing = sorted(self.radii)
        self._votes_needed: dict[float, int] = {}

    def look(self, k: int, n: int) -> Decision:
        """Take the next look.

        Args:
            k: votes for the class so far, 0 <= k <= n.
            n: votes so far, more than at the last look and at most the cap.

        Raises:
            ValueError: the look is beyond the cap, or counts are out of range.
        """
        if n > self.cap:
            raise ValueError(
                f"n={n} votes are beyond the cap of {self.cap}; pass looks up to the cap only"
            )
        self._certify(k, n)
        if not self._missing:
            return "certified"
        if n == self.cap:
            return "cap"
        needed = self._needed(self._missing[0])
        if needed - k > self.cap - n:
            return "futile"
        if special.betaincc(k + 0.5, n - k + 0.5, (needed - 0.5) / self.cap) < self.futility_level:
            return "futile"
        return "continue"

    def _needed(self, radius: float) -> int:
        """Fewest votes for the class that certify a radius at the cap; cap + 1 if none do."""
        if radius not in self._votes_needed:
            p_r, q_r = self._boundary(radius)
            below, enough = 0, self.cap + 1
            while enough - below > 1:
                middle = (below + enough) // 2
                if _refuted(middle, self.cap, p_r, q_r, self.alpha):
                    enough = middle
                else:
                    below = middle
            self._votes_needed[radius] = enough
        return self._votes_needed[radius]

    def _boundary(self, radius: float) -> tuple[float, float]:
        """The probability that must be refuted for a radius, and one minus it."""
        z = (radius + self.taken_off if radius > 0.0 else 0.0) / self.sigma
        q = max(float(special.ndtr(-z)) - self.slack, 1e-300)
        return 1.0 - q, q

    def _certify(self, k: int, n: int) -> None:
        """Drop the radii that this look certifies."""
        if not self._missing:
            return
        p_r, q_r = self._boundary(self._missing[0])
        # One e-value says whether the bound, a hundred of them, is worth computing.
        if not _refuted(k, n, p_r, q_r, self.alpha * (1 + NEAR)):
            return
        at_look = executed_certificate(
            k,
            n,
            sigma=self.sigma,
            slack=self.slack,
            taken_off=self.taken_off,
            alpha=self.alpha,
            bound="sequential",
        )
        if not at_look.abstained:
            self._missing = [r for r in self._missing if at_look.radius < r]


def _refuted(k: int, n: int, p0: float, q0: float, level: float) -> bool:
    """Whether k successes in n votes refute "the probability is at most p0 = 1 - q0"."""
    return bool(sequential_log_e(k, n, p0, q0=q0) >= LOG_MARGIN - math.log(level))


def _check(radii: Sequence[float], sigma: float, alpha: float, level: float) -> None:
    check_sigma(sigma)
    if len(radii) == 0 or not all(0.0 <= r < math.inf for r in radii):
        raise ValueError(f"radii={list(radii)}: give at least one, finite and at least 0")
    if max(radii) / sigma > 8.0:
        raise ValueError(
            f"radius {max(radii)} is more than 8 sigma (sigma={sigma}) and out of reach of any "
            "number of votes; ask for smaller radii or use a larger sigma"
        )
    check_fraction("alpha", alpha)
    check_fraction("futility_level", level)
