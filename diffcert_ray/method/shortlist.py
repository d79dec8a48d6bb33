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


@dataclass(frozen=True)
class Shortlist:
    """What is made of a head's probabilities.

    Attributes:
        least_p: a class enters the race with more than this probability; the likeliest always does.
        log_odds: standard errors that a class trails by for each nat of its log odds against the
            leader, as the head gives them; 0: the race alone decides.
    """

    least_p: float
    log_odds: float = 0.0

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

    def head_start(self, log_p: np.ndarray, leader: np.ndarray) -> np.ndarray:
        """Standard errors by which classes trail a leader before any loss, float64 [N, K].

        Args:
            log_p: float64 [N, K].
            leader: class of each vote, int64 [N].
        """
        leading = np.take_along_axis(log_p, leader[:, None], axis=1)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(self.log_odds * (leading - log_p), nan=0.0)
