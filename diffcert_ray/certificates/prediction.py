"""PREDICT: the class that the smoothed classifier returns, or an abstention, from counts."""

from collections.abc import Mapping

from scipy import stats

from diffcert_ray.certificates.fraction import check_fraction
from diffcert_ray.conventions import ABSTAIN, NOT_TARGET


def prediction(counts: Mapping[int, int], *, alpha: float = 0.001, slack: float = 0.0) -> int:
    """The class of one image by the counts of its votes, or ABSTAIN.

    With probability at least 1 - alpha over the votes, this abstains or returns the class that the
    smoothed classifier itself returns. It certifies no radius.

    Args:
        counts: complete votes for each class; -2 holds unresolved votes, which are added to the
            runner-up (whatever classes they were for, the test would then reject no less).
        alpha: failure probability, in (0, 1).
        slack: probability that the noise of a vote is not the ideal one, as in
            `executed_certificate`; n times it is taken off alpha, which covers that any vote's is.

    Returns:
        The class with most votes (the smallest of those that tie), if a two-sided binomial test at
        level alpha says that it beats the runner-up; else ABSTAIN (-1).

    Raises:
        ValueError: alpha or a count is out of range, or there are no votes.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.1 (PREDICT); the test of
        the top two counts: Hung and Fithian 2019.
    """
    n = sum(counts.values())
    check_prediction(n, alpha, slack)
    bad = {label: count for label, count in counts.items() if count < 0 or label < NOT_TARGET}
    if bad or ABSTAIN in counts:
        raise ValueError(
            f"counts={dict(counts)}: give counts of at least 0, classes of at least 0 (and -2 for "
            "unresolved votes)"
        )
    ranked = sorted((-count, label) for label, count in counts.items() if label >= 0)
    if not ranked:
        return ABSTAIN
    top = -ranked[0][0]
    runner_up = (-ranked[1][0] if len(ranked) > 1 else 0) + counts.get(NOT_TARGET, 0)
    if top <= runner_up:
        return ABSTAIN
    test = stats.binomtest(top, top + runner_up, 0.5, alternative="two-sided")
    return ranked[0][1] if test.pvalue <= alpha - n * slack else ABSTAIN


def check_prediction(n: int, alpha: float, slack: float = 0.0) -> None:
    """Refuse numbers of votes and failure probabilities that no prediction can be made from.

    Args:
        n: votes, >= 1.
        alpha: in (0, 1).
        slack: as `prediction`.

    Raises:
        ValueError: a value is out of range, or so many votes use up half of alpha.
    """
    if n < 1:
        raise ValueError(f"n={n}: a prediction needs at least one vote")
    check_fraction("alpha", alpha)
    if n * slack > alpha / 2:
        raise ValueError(
            f"n={n} votes at alpha={alpha}: the noise as it is sampled costs {slack:.2g} of alpha "
            f"for each; use at most {int(alpha / 2 / slack)} votes, or a larger alpha"
        )
