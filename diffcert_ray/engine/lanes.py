"""Votes under way: which classes each still has, its losses, and the rows that it waits for.

A *lane* holds one vote from its first row to its class, then the next one. Nothing here knows of
batches or networks: rows go out, losses come in, and the sifting rule decides.
"""

from collections.abc import Iterator

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET, OPEN
from diffcert_ray.engine.item_votes import HandedBack
from diffcert_ray.method.sift import Sift

DECIDE_BYTES = 32 * 2**20  # losses that one call of the sifting rule is given

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Lane, entry and class of each row, int64 [n]."""


class Lanes:
    """A fixed number of lanes."""

    def __init__(self, sift: Sift, classes: int, count: int) -> None:
        self._sift, self._classes = sift, classes
        self._losses = np.empty((count, len(sift.order), classes))
        self._alive = np.zeros((count, classes), bool)
        self._next_round = np.zeros(count, np.int64)
        self._waits_for = np.zeros(count, np.int64)
        self._log_p = np.zeros((count, classes)) if sift.shortlist is not None else None
        self.free = np.arange(count)
        self.vote = np.zeros(count, np.int64)

    def __len__(self) -> int:
        return len(self.vote)

    def enter(self, votes: np.ndarray) -> np.ndarray:
        """Give votes (their positions in the item, int64 [n]) free lanes; returns these."""
        lanes, self.free = self.free[: len(votes)], self.free[len(votes) :]
        self.vote[lanes] = votes
        self._alive[lanes] = True
        self._next_round[lanes] = 0
        if self._sift.leader_round is not None:
            self._losses[lanes, -1] = np.nan  # the sifting rule tells by it who went to the end
        return lanes

    def restore(self, lane: int, held: HandedBack) -> None:
        """Give a vote that another item handed back its survivors and losses."""
        self._alive[lane] = False
        self._alive[lane, held.survivors] = True
        self._next_round[lane] = held.round
        self._losses[lane, : held.entries, held.survivors] = held.losses.T

    def state(self, lane: int) -> HandedBack:
        """The state of a lane's vote, for another item to go on with."""
        round_index = int(self._next_round[lane])
        seen = self._sift.entries_before(round_index)
        survivors = np.flatnonzero(self._alive[lane]).astype(np.int32)
        losses = self._losses[lane, :seen][:, survivors]
        return HandedBack(int(self.vote[lane]), round_index, seen, survivors, losses)

    def release(self, lanes: np.ndarray) -> None:
        """Make lanes free."""
        self.free = np.concatenate([self.free, lanes])

    def entries_seen(self, lanes: np.ndarray) -> np.ndarray:
        """Entries of the rule that lie behind each lane: int64 [n]."""
        rounds, index = np.unique(self._next_round[lanes], return_inverse=True)
        seen = [self._sift.entries_before(int(r)) for r in rounds]
        return np.array(seen, np.int64)[index.reshape(-1)]

    # ---- classes are proposed --------------------------------------------------------------------

    def propose(self, lanes: np.ndarray, log_p: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Let the head's probabilities say which classes of each lane enter its race.

        Votes that another item handed back have their survivors already.

        Args:
            lanes: the denoising step of their votes is in, int64 [n].
            log_p: log probabilities, float64 [n, K].
            target: class that each vote is about, or ALL_CLASSES, int64 [n].

        Returns:
            int64 [n]: the vote's class where none is left to race with, or OPEN; lanes of settled
            votes become free.
        """
        assert self._sift.shortlist is not None  # else no head was asked
        assert self._log_p is not None
        self._log_p[lanes] = log_p
        fresh = self._next_round[lanes] == 0
        enters = self._sift.shortlist.proposed(log_p)
        self._alive[lanes[fresh]] = enters[fresh]
        alone = fresh & (enters.sum(axis=1) == 1)
        winner = np.where(alone, enters.argmax(axis=1), OPEN)
        about = fresh & (target != ALL_CLASSES)
        out = about & ~enters[np.arange(len(lanes)), np.maximum(target, 0)]
        winner[out | (about & alone & (winner != target))] = NOT_TARGET
        self.release(lanes[winner != OPEN])
        return winner

    # ---- rows go out and come back ---------------------------------------------------------------

    def wait_for(self, lanes: np.ndarray, rows: int) -> None:
        """Let lanes wait for rows that are of no round."""
        self._waits_for[lanes] = rows

    def next_rows(self, lanes: np.ndarray) -> Iterator[Rows]:
        """The rows of the next round of each lane, in the order lane, entry, class."""
        for round_index in np.unique(self._next_round[lanes]):
            group = lanes[self._next_round[lanes] == round_index]
            start, stop = self._sift.rounds[round_index]
            asked = self._asked(int(round_index), group)
            mask = np.broadcast_to(asked[:, None, :], (len(group), stop - start, self._classes))
            row, entry, klass = np.nonzero(mask)
            self._waits_for[group] = asked.sum(axis=1) * (stop - start)
            yield group[row], start + entry, klass

    def store(self, rows: Rows, losses: np.ndarray) -> None:
        """Keep the losses of evaluated rows, float64 [n]."""
        lane, entry, klass = rows
        self._losses[lane, entry, klass] = losses

    def arrived(self, lane: np.ndarray) -> np.ndarray:
        """Count rows as evaluated; returns the lanes that wait for no further row, ascending."""
        rows_of_lane = np.bincount(lane, minlength=len(self))
        self._waits_for -= rows_of_lane
        return np.flatnonzero((rows_of_lane > 0) & (self._waits_for == 0))

    # ---- the rule decides ------------------------------------------------------------------------

    def decide(self, lanes: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Let the rule say what each of some lanes does next; lanes of settled votes become free.

        Args:
            lanes: all rows of their round are in, int64 [n].
            target: class that each vote is about, or ALL_CLASSES, int64 [n].

        Returns:
            int64 [n]: the vote's class, or OPEN.
        """
        rounds = self._next_round[lanes]  # as it is before any of them moves on
        winner = np.full(len(lanes), OPEN, np.int64)
        for round_index in np.unique(rounds):
            (group,) = np.nonzero(rounds == round_index)
            winner[group] = self._decide_round(int(round_index), lanes[group], target[group])
        self.release(lanes[winner != OPEN])
        return winner

    def _decide_round(self, round_index: int, group: np.ndarray, target: np.ndarray) -> np.ndarray:
        won = np.empty(len(group), np.int64)
        seen = self._sift.entries_before(round_index + 1)
        for a, b, losses, alive, columns in self._survivors(group, seen):
            log_p = None
            if self._log_p is not None:
                log_p = np.take_along_axis(self._log_p[group[a:b]], columns, axis=1)
            known = () if log_p is None else (log_p,)
            still, following, winner = self._sift.step(round_index, losses, alive, *known)
            row, asked = np.arange(b - a), target[a:b]
            kept = np.zeros((b - a, self._classes), bool)
            np.put_along_axis(kept, columns, still, axis=1)
            chosen = np.where(winner >= 0, columns[row, np.maximum(winner, 0)], winner)
            # A vote about one class ends when that class is out; when it wins, `chosen` says so.
            about = asked != ALL_CLASSES
            out = about & ~kept[row, np.maximum(asked, 0)]
            chosen[out | (about & (chosen >= 0) & (chosen != asked))] = NOT_TARGET
            self._alive[group[a:b]] = kept
            self._next_round[group[a:b]] = following
            won[a:b] = chosen
        return won

    def _asked(self, round_index: int, group: np.ndarray) -> np.ndarray:
        """Classes that the next round of each lane of a group evaluates: bool [lanes, K]."""
        sift = self._sift
        if sift.leader_round is None:
            return self._alive[group]
        asked = np.zeros((len(group), self._classes), bool)
        seen = sift.entries_before(round_index)
        for a, b, losses, alive, columns in self._survivors(group, seen):
            np.put_along_axis(asked[a:b], columns, sift.asked(round_index, losses, alive), axis=1)
        return asked

    def _survivors(
        self, group: np.ndarray, seen: int
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """Losses of the first entries for lanes a:b of a group, with survivors' columns only.

        Yields:
            (a, b, losses [seen, b - a, w], alive [b - a, w], columns [b - a, w]). Columns are in
            ascending order of class; rows with fewer survivors are filled up with dropped classes.
        """
        alive = self._alive[group]
        width = int(alive.sum(axis=1).max())
        step = max(1, DECIDE_BYTES // (8 * max(seen, 1) * width))
        for a in range(0, len(group), step):
            b = min(a + step, len(group))
            still = alive[a:b]
            columns = np.sort(np.argsort(~still, axis=1, kind="stable")[:, :width], axis=1)
            entries = np.arange(seen)[:, None, None]
            losses = self._losses[group[None, a:b, None], entries, columns[None]]
            yield a, b, losses, np.take_along_axis(still, columns, axis=1), columns
