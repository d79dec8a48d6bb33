"""The class that an image's selection votes choose, and how many of them that takes.

Any rule that looks at the selection stream alone leaves a certificate as valid as it was: it is the
estimation votes that bound the class's probability, and their noise is other noise. A wrong choice
costs an abstention. Selection stops after all n0 votes, or where a lead is given as soon as one
class is so many votes ahead of the next one, looked at after each unit in the order of the votes.
"""

from collections import Counter
from collections.abc import Mapping

from diffcert_ray.conventions import ABSTAIN, NOT_TARGET


def leading_class(total: Mapping[int, int]) -> int:
    """The class with most votes; ABSTAIN where every vote is unresolved.

    Ties go to the lowest class: any rule will do that looks at the selection votes only.
    """
    return min((c for c in total if c != NOT_TARGET), key=lambda c: (-total[c], c), default=ABSTAIN)


class Selection:
    """The selection votes of one image up to where they choose, added in their order.

    Args:
        n0: selection votes at most, >= 1.
        lead: votes by which the leading class must be ahead, >= 1; None: all n0 votes are counted.
    """

    def __init__(self, n0: int, lead: int | None = None) -> None:
        self._n0, self._lead = n0, lead
        self._total: Counter[int] = Counter()
        self.used = 0  # votes counted; once a class is chosen, those that chose it
        self.chosen: int | None = None  # the class, ABSTAIN if all are unresolved; None: undecided

    def add(self, votes: int, counts: Mapping[int, int]) -> None:
        """Count the next votes; ``counts`` are those of each class, unresolved ones included."""
        self.used += votes
        self._total.update(counts)
        if self.used >= self._n0 or (self._lead is not None and self._ahead >= self._lead):
            self.chosen = leading_class(self._total)

    @property
    def needed(self) -> int:
        """Votes that must still come before a class can be chosen; more may be."""
        left = self._n0 - self.used
        if self.chosen is not None:
            return 0
        return left if self._lead is None else min(left, self._lead - self._ahead)

    @property
    def _ahead(self) -> int:
        """Votes by which the leading class is ahead of the next one."""
        resolved = sorted(n for c, n in self._total.items() if c != NOT_TARGET)
        second, first = [0, 0, *resolved][-2:]
        return first - second
