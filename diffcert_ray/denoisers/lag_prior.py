"""What a head's log odds foretell of the race between two classes; measured, kept with the head.

Source: ours.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LagPrior:
    """What a head's log odds say of the lag of one class behind another, before any loss is seen.

    A lag is the difference of two classes' weighted sums over all levels. Of a network and sigma;
    measured on votes whose classes went to the end (`tools.lag_measurement`).

    Attributes:
        per_nat: mean lag for each nat of log odds.
        spread: standard deviation of lags around that; infinite: the log odds say nothing.
        noise: standard deviation of the lag as one level alone would tell it; 0: not known.
    """

    per_nat: float = 0.0
    spread: float = math.inf
    noise: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.per_nat, self.spread, self.noise)
        if any(math.isnan(x) or x < 0 for x in numbers) or not self.spread > 0:
            raise ValueError(
                f"a prior of lags with per_nat, spread, noise {numbers}: none may be negative, and "
                "the spread not 0"
            )


NOTHING_FORETOLD = LagPrior()
