"""Which noise levels a vote visits, which classes it drops, and when it knows its class.

One vote is a race between classes. Its terms are paired: every class sees the same noise at the
same level. A rule visits the levels in *entries* grouped into *rounds*; after each round the pure
function ``Sift.step`` looks at the vote's own losses (nobody else's: pruning shared between the
votes of an image would change the smoothed function) and says who is still in, and what comes next.

Rules (Chen et al. 2024, section 3.4 and appendix; "ours" where marked):

- ``full``: every class at every level; the smallest weighted sum wins.
- ``exact`` (ours): the same votes as ``full``, bit for bit, for fewer evaluations. Losses are not
  negative, so a class whose sum over some levels exceeds another's sum over all of them cannot win.
  After a few levels for all classes the leader alone goes to the end; the others follow in rounds,
  each until its partial sum exceeds the leader's full one.
- ``paired-z`` (ours): after each round a class is dropped when its mean paired difference to the
  leader exceeds z standard errors; the last one standing wins, after all levels the smallest sum
  does.
- ``shortlist`` (ours): a race among the classes that a head proposes from the denoising step;
  where it proposes one, that is the vote. A class is dropped when its lag, estimated from the
  paired differences and the head's log odds together, exceeds z of its standard deviations.
- ``threshold`` (the paper's sift-and-refine): one level a round; a class is dropped when its summed
  loss exceeds the smallest by the threshold; when at most ``keep`` classes are left, or the sifting
  levels are used up, the best ``keep`` go on to all levels with fresh noise, and the sifting losses
  are discarded.
"""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import NOT_TARGET, OPEN
from diffcert_ray.method.rounds import even_rounds, fine_rounds, growing_rounds, visiting_order
from diffcert_ray.method.shortlist import Shortlist

FULL_ROUND_LEVELS = 8  # `full` needs no decisions: rounds only bound the memory of the row queue
EXACT_LEADER_LEVELS = 3  # at which `exact` evaluates all classes, to find a leader
EXACT_ROUND_LEVELS = 4  # of each of its rounds for the classes that follow the leader
# A variance from a few differences is wrong by a factor: what is known of it beforehand counts as
# much as so many of them (from 1 to 6 made little difference on digits).
KNOWN_DIFFERENCES = 2


@dataclass(frozen=True)
class Sift:
    """A sifting rule laid out over a grid of noise levels.

    Args:
        rule: "full", "exact", "paired-z", "shortlist" or "threshold".
        order: int64 [E], index of the noise level of each entry. For ``threshold`` the first
            entries are the sifting levels.
        coefficient: float64 [E], what a loss is multiplied by in sums: the level's weight (for
            sifting entries of ``threshold``: its density, without the spacing).
        rounds: (start, stop) entries of each round.
        refine_round: first round whose losses count in the final sum (0 unless ``threshold``).
        leader_round: round in which only the leader of the rounds before it is evaluated, up to the
            last entry (``exact``); rounds after it begin again where it began, without that class.
        z: standard errors of ``paired-z`` and ``shortlist``.
        first_ratio: after one level, when there is no standard error yet, ``paired-z`` drops a
            class whose loss exceeds this many times the leader's.
        shortlist: what ``shortlist`` makes of a head's probabilities.
        threshold: of the rule ``threshold``, in loss times density.
        keep: classes that ``threshold`` hands to the refining levels.
    """

    rule: str
    order: np.ndarray
    coefficient: np.ndarray
    rounds: tuple[tuple[int, int], ...]
    refine_round: int = 0
    leader_round: int | None = None
    z: float = 2.0
    first_ratio: float = 2.0
    threshold: float = 0.02
    keep: int = 10
    shortlist: Shortlist | None = None

    def entries_before(self, round_index: int) -> int:
        """Entries at which some class has a loss when a round begins."""
        return max((stop for _, stop in self.rounds[:round_index]), default=0)

    def asked(self, round_index: int, losses: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Classes that a round evaluates, for N votes that are about to begin it.

        Args:
            round_index: the round.
            losses: float64 [entries before the round, N, K], as for ``step``.
            alive: bool [N, K], classes still in.

        Returns:
            bool [N, K], all that are alive or (``exact``) some of them; at least one of each vote.
        """
        if self.leader_round is None or round_index < self.leader_round:
            return alive
        if round_index > self.leader_round:
            return alive & ~_at_the_end(losses)
        terms = self._terms(losses[: self.rounds[round_index][0]], alive)
        leader = sum_over_entries(terms).argmin(axis=1)
        return alive & (np.arange(alive.shape[1]) == leader[:, None])

    def step(
        self,
        round_index: int,
        losses: np.ndarray,
        alive: np.ndarray,
        log_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decide, for N votes that have just finished the same round, what each does next.

        A vote's outcome does not depend on the other rows.

        Args:
            round_index: the round just finished.
            losses: float64 [entries before the next round, N, K]; columns may be any subset of the
                classes that contains all that are alive (in ascending order of class). Values of
                dropped classes, and of entries that a class has not reached, are ignored, but for
                the very last entry of a rule with a ``leader_round``: it is NaN where a class has
                not reached it.
            alive: bool [N, K], classes still in.
            log_p: log probabilities of the head, float64 [N, K], where there is a ``shortlist``.

        Returns:
            (alive, next_round, winner): bool [N, K]; int64 [N]; int64 [N] holding the column of the
            class that won, OPEN, or NOT_TARGET if unresolved (no class has a finite loss left).
        """
        start, stop = self.rounds[round_index]
        votes = alive.shape[0]
        # A non-finite loss never wins.
        broken = ~np.isfinite(losses[start:stop]).all(axis=0)
        if round_index == self.leader_round:  # no other class has been there
            broken &= self.asked(round_index, losses, alive)
        alive = alive & ~broken
        next_round = np.full(votes, round_index + 1, np.int64)
        settled = np.zeros(votes, bool)
        if self.rule in ("paired-z", "shortlist"):
            if stop < len(self.order):  # else the sums decide
                if self.shortlist is None or log_p is None:
                    alive = self._drop_by_paired_z(losses[:stop], alive)
                else:
                    alive = self._drop_by_lag(losses[:stop], alive, log_p, self.shortlist)
            settled = alive.sum(axis=1) == 1
        elif self.leader_round is not None and round_index >= self.leader_round:
            alive = self._drop_by_bound(losses, stop, alive)
            settled = (alive.sum(axis=1) == 1) & (alive & _at_the_end(losses)).any(axis=1)
        elif self.rule == "threshold" and round_index < self.refine_round:
            alive, next_round = self._drop_by_threshold(round_index, losses[:stop], alive)
        winner = np.where(settled, alive.argmax(axis=1), OPEN)
        if round_index + 1 == len(self.rounds):
            winner = self._final_sum(losses, alive).argmin(axis=1)
        winner[~alive.any(axis=1)] = NOT_TARGET
        return alive, next_round, winner

    def _terms(self, losses: np.ndarray, alive: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            terms = losses * self.coefficient[: losses.shape[0], None, None]
        return np.where(alive, terms, np.inf)

    def _drop_by_paired_z(self, losses: np.ndarray, alive: np.ndarray) -> np.ndarray:
        seen = losses.shape[0]
        terms = self._terms(losses, alive)
        leader = sum_over_entries(terms).argmin(axis=1)
        leading = np.take_along_axis(terms, leader[None, :, None], axis=2)
        with np.errstate(invalid="ignore", over="ignore"):
            if seen == 1:  # no standard error yet
                drop = terms[0] > self.first_ratio * leading[0]
            else:
                difference = terms - leading
                mean = sum_over_entries(difference) / seen
                squares, count = self._squares(difference), seen - 1
                drop = mean > self.z * np.sqrt(squares / count / seen * self._unseen(seen))
        drop[np.arange(len(drop)), leader] = False
        return alive & ~drop

    def _drop_by_lag(
        self, losses: np.ndarray, alive: np.ndarray, log_p: np.ndarray, shortlist: Shortlist
    ) -> np.ndarray:
        seen, entries = losses.shape[0], len(self.order)
        known = KNOWN_DIFFERENCES * shortlist.prior.noise**2
        if seen == 1 and not known:  # nothing tells how sure one level is
            return alive
        terms = self._terms(losses, alive) * entries  # each tells the sum over all levels

        def lags(leader: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            difference = terms - np.take_along_axis(terms, leader[None, :, None], axis=2)
            mean = sum_over_entries(difference) / seen
            count = KNOWN_DIFFERENCES * (known > 0) + seen - 1
            squares = (known + self._squares(difference)) / count
            variance = np.maximum(squares / seen * self._unseen(seen), np.finfo(float).tiny)
            return shortlist.lag(log_p, leader, mean, variance)

        leader = sum_over_entries(terms).argmin(axis=1)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            # Where the log odds outweigh the sums, the class that is ahead by both leads.
            lag, _ = lags(leader)
            leader = np.where(alive, lag, np.inf).argmin(axis=1)
            lag, deviation = lags(leader)
            drop = lag > self.z * deviation
        drop[np.arange(len(drop)), leader] = False
        return alive & ~drop

    def _squares(self, difference: np.ndarray) -> np.ndarray:
        """What n >= 1 paired differences say of their variance, times n - 1; float64 [N, K].

        They cover the levels evenly, so a trend over the levels cancels in the mean and must not
        count as noise: it is taken from differences between neighbours in level.
        """
        by_level = difference[np.argsort(self.order[: len(difference)])]
        return sum_over_entries((by_level[1:] - by_level[:-1]) ** 2) / 2

    def _unseen(self, seen: int) -> float:
        """1 - n/E: entries are drawn from a finite set without putting back."""
        return 1.0 - seen / len(self.order)

    def _drop_by_threshold(
        self, round_index: int, losses: np.ndarray, alive: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        total = sum_over_entries(self._terms(losses, alive))
        best = total.min(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            alive = alive & ~(total - best > self.threshold)
        done = (alive.sum(axis=1) <= self.keep) | (round_index + 1 == self.refine_round)
        rank = np.where(alive, total, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
        alive = np.where(done[:, None], alive & (rank < self.keep), alive)
        return alive, np.where(done, self.refine_round, round_index + 1)

    def _drop_by_bound(self, losses: np.ndarray, stop: int, alive: np.ndarray) -> np.ndarray:
        """Drop classes whose sum up to ``stop`` exceeds the smallest final sum there is."""
        complete = alive & _at_the_end(losses)
        best = self._final_sum(losses, complete).min(axis=1, keepdims=True)
        partial = sum_over_entries(self._terms(losses[:stop], alive & ~complete))
        # A sum of E terms of one sign errs by less than E/2 spacings in any order: with this margin
        # a dropped class has the larger final sum as computed, not only in real arithmetic.
        margin = 1.0 - 4.0 * len(self.order) * np.finfo(np.float64).eps
        return alive & (complete | ~(partial * margin > best))

    def _final_sum(self, losses: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Weighted sum of each class alive, added in the order of the levels, not of the visits."""
        first = self.rounds[self.refine_round][0]
        by_level = first + np.argsort(self.order[first:], kind="stable")
        with np.errstate(invalid="ignore"):
            total = sum_over_entries(losses[by_level], self.coefficient[by_level])
        return np.where(alive, total, np.inf)


def sum_over_entries(losses: np.ndarray, coefficient: np.ndarray | None = None) -> np.ndarray:
    """Sum over the first axis, one entry after the other.

    ``np.sum`` adds pairwise or in order, depending on shape and memory layout: a vote's last bits
    would depend on how many other votes are decided with it.

    Args:
        losses: float64 [E, N, K].
        coefficient: what each entry is multiplied by, float64 [E]; nothing by default.

    Returns:
        float64 [N, K].
    """
    total = np.zeros(losses.shape[1:])
    for entry, loss in enumerate(losses):
        total += loss if coefficient is None else loss * coefficient[entry]
    return total


def _at_the_end(losses: np.ndarray) -> np.ndarray:
    """Classes that have reached the last entry of a rule with a ``leader_round``: bool [N, K]."""
    return np.isfinite(losses[-1])


def full_sift(weights: np.ndarray) -> Sift:
    """The rule that evaluates every class at every level.

    Args:
        weights: float64 [T], the levels' weights.
    """
    levels = len(weights)
    return Sift("full", np.arange(levels), weights, even_rounds(0, levels, FULL_ROUND_LEVELS))


def exact_sift(weights: np.ndarray) -> Sift:
    """The rule that returns the votes of ``full`` for fewer evaluations (ours).

    Args:
        weights: float64 [T], the levels' weights, >= 0.
    """
    levels = len(weights)
    # Heavy levels first, of equal ones the highest, where losses are largest: sums grow fastest.
    order = np.lexsort([-np.arange(levels), -weights])
    first = min(EXACT_LEADER_LEVELS, levels)
    rounds = ((0, first), (first, levels), *even_rounds(first, levels, EXACT_ROUND_LEVELS))
    if first == levels:
        return Sift("exact", order, weights[order], rounds[:1])
    return Sift("exact", order, weights[order], rounds, leader_round=1)


def paired_z_sift(
    weights: np.ndarray, *, z: float, first_ratio: float = 2.0, first: float = 1 / 3
) -> Sift:
    """The rule of paired differences over one grid (ours).

    Args:
        weights: float64 [T], the levels' weights.
        z: standard errors by which a class must trail to be dropped, > 0.
        first_ratio: see ``Sift``.
        first: where on the grid the first level lies, see ``visiting_order``.
    """
    order = visiting_order(len(weights), first)
    rounds = growing_rounds(len(weights))
    return Sift("paired-z", order, weights[order], rounds, z=z, first_ratio=first_ratio)


def shortlist_sift(
    weights: np.ndarray, shortlist: Shortlist, *, z: float, first: float = 1 / 3
) -> Sift:
    """The rule of a race among the classes that a head proposes (ours).

    Args:
        weights: float64 [T], the levels' weights.
        shortlist: which classes enter, and what the head says of their lags.
        z: standard deviations by which a class must trail to be dropped, > 0.
        first: see ``visiting_order``.
    """
    order, rounds = visiting_order(len(weights), first), fine_rounds(len(weights))
    return Sift("shortlist", order, weights[order], rounds, z=z, shortlist=shortlist)


def threshold_sift(
    weights: np.ndarray,
    densities: np.ndarray,
    *,
    threshold: float,
    keep: int,
    levels: int,
    ascending: bool = False,
) -> Sift:
    """The paper's sift-and-refine over a grid for refining and a grid for sifting.

    Args:
        weights: float64 [T], weights of the refining levels, noise levels 0..T-1.
        densities: float64 [S], weight density at the sifting levels, noise levels T..T+S-1.
        threshold: largest lag that stays in, in loss (mean over pixels) times density.
        keep: classes that are refined.
        levels: sifting levels at most, <= S.
        ascending: sifting goes from the lowest level up, as in the released code, in place of an
            order in which few levels cover the whole range.
    """
    refine, sifting = len(weights), len(densities)
    order = np.arange(sifting) if ascending else visiting_order(sifting)
    visits = refine + order[: min(levels, sifting)]
    rounds = even_rounds(0, len(visits), 1) + even_rounds(
        len(visits), len(visits) + refine, FULL_ROUND_LEVELS
    )
    return Sift(
        "threshold",
        np.concatenate([visits, np.arange(refine)]),
        np.concatenate([densities[visits - refine], weights]),
        rounds,
        refine_round=len(visits),
        threshold=threshold,
        keep=keep,
    )
