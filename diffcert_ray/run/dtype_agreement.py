"""How a dtype's votes compare with those in float32, and whether it may be chosen for its speed."""

from dataclasses import dataclass

from diffcert_ray.certificates.clopper_pearson import upper_confidence_bound
from diffcert_ray.config.tables import Dtype

LEAST = 200  # votes; fewer say too little
MOST_DIFFERENT = 0.001  # of the votes that were compared
LEVEL = 0.025


@dataclass(frozen=True)
class Agreement:
    """How a dtype's votes compare with those in float32.

    Args:
        dtype: of the network.
        votes: compared; 0 where too few could be afforded.
        different: of them.
    """

    dtype: Dtype
    votes: int
    different: int

    @property
    def allowed(self) -> bool:
        """Whether the dtype may be chosen for being faster."""
        return self.votes >= LEAST and self.different <= MOST_DIFFERENT * self.votes

    def __str__(self) -> str:
        if not self.votes:
            return f"{self.dtype}: not compared, {LEAST} votes would take over 1 % of the run"
        most = upper_confidence_bound(self.different, self.votes, LEVEL)
        share = f"at most {100 * most:.2f} % of all, with 97.5 %"
        return f"{self.dtype}: {self.different} of {self.votes:,} votes are not float32's ({share})"
