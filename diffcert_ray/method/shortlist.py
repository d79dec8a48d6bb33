"""Which classes enter the race of a vote: those that a head on its first evaluation finds likely.

The unconditional step of a vote leaves activations behind; a head (`denoisers.shortlist_head`)
gives every class a probability from them, at no evaluation. A vote stays a function of its own
noisy image and noise, so certificates hold as they stand, whatever the head says: a bad head costs
agreement with the full vote, never validity. For the same reason nothing else may enter: not the
class that selection chose, not other votes of the image.

Source: ours.
"""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.denoisers.lag_prior import NOTHING_FORETOLD, LagPrior


@dataclass(frozen=True)
class Shortlist:
    """What is made of a head's probabilities.

    Attributes:
        least_p: a class enters the race with more than this probability; the likeliest always does.
        prior: what its log odds say of lags.
    """

    least_p: float
    prior: LagPrior = NOTHING_FORETOLD

    def proposed(self, log_p: np.ndarray) -> np.ndarray:
        """Classes that enter the race.

        Args:
            log_p: log probabilities of N votes, float64 [N, K]. A vote with one that is not a
                number is given no shortlist: all its classes enter.

        Returns:
            bool [N, K], at least one of each vote.
        """
        with np.errstate(invalid="ignore"):
            enters = log_p > np.log(self.least_p)
        broken = np.isnan(log_p).any(axis=1)
        enters[np.arange(len(log_p)), np.where(broken, 0, log_p.argmax(axis=1))] = True
        enters[broken] = True
        return enters

    def lag(
        self, log_p: np.ndarray, leader: np.ndarray, mean: np.ndarray, variance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lags behind a leader, from the losses seen and the head's log odds together.

        The two are independent estimates, weighted by their precision (the posterior of a normal
        mean). Log odds that are not finite say nothing.

        Args:
            log_p: float64 [N, K].
            leader: class of each vote, int64 [N].
            mean: lags as the losses tell them, float64 [N, K].
            variance: of these, float64 [N, K], > 0.

        Returns:
            (lag, deviation): its mean and standard deviation, float64 [N, K].
        """
        leading = np.take_along_axis(log_p, leader[:, None], axis=1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            nats = leading - log_p
            prior = np.where(np.isfinite(nats), self.prior.spread**-2.0, 0.0)
            before = np.where(np.isfinite(nats), self.prior.per_nat * nats, 0.0)
            precision = 1.0 / variance + prior
            return (mean / variance + prior * before) / precision, precision**-0.5
