"""The votes of one item, flat, and what they end as: counts, or the packed state of open ones."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES, OPEN, STREAM_NAMES
from diffcert_ray.votes.units import Item, OpenVotes, Tally, Unit


@dataclass
class Votes:
    """The votes of one item, flat: each array is [N].

    Args:
        units: of the item.
        unit_index: of each vote, in ``units``.
        vote: its index in the stream.
        target: the class asked for, or -1: any.
    """

    units: tuple[Unit, ...]
    unit_index: np.ndarray
    vote: np.ndarray
    target: np.ndarray

    @staticmethod
    def of(item: Item) -> "Votes":
        """All votes of an item: fresh ones first, then those to continue."""
        units: dict[Unit, int] = {}
        unit_index, vote, target = [], [], []
        for part in item.parts:
            count = part.stop - part.start
            unit_index.append(np.full(count, units.setdefault(part.unit, len(units)), np.int64))
            vote.append(np.arange(part.start, part.stop, dtype=np.int64))
            target.append(np.full(count, part.target, np.int64))
        if item.open_votes is not None:
            held = item.open_votes
            renumber = np.array([units.setdefault(u, len(units)) for u in held.units], np.int64)
            unit_index.append(renumber[held.unit_index])
            vote.append(held.vote)
            target.append(held.target)
        empty = np.empty(0, np.int64)
        columns = [np.concatenate([empty, *column]) for column in (unit_index, vote, target)]
        return Votes(tuple(units), *columns)

    def __len__(self) -> int:
        return len(self.vote)

    def addresses(self) -> tuple[np.ndarray, np.ndarray]:
        """Image id and stream number of each vote's noise: two int64 [N]."""
        image_id = np.array([u.image_id for u in self.units], np.int64)
        stream = np.array([STREAM_NAMES.index(u.stream) for u in self.units], np.int64)
        return image_id[self.unit_index], stream[self.unit_index]

    def tallies(self, winner: np.ndarray, nfe: np.ndarray) -> tuple[Tally, ...]:
        """Counts of the settled votes, one tally for each unit.

        Args:
            winner: class of each vote, OPEN where there is none, int64 [N].
            nfe: evaluations of each vote, int64 [N].
        """
        target = np.full(len(self.units), ALL_CLASSES, np.int64)
        target[self.unit_index] = self.target
        of_unit = np.zeros(len(self.units), np.int64)
        np.add.at(of_unit, self.unit_index, nfe)
        counts: list[dict[int, int]] = [{} for _ in self.units]
        settled = winner != OPEN
        pairs = np.stack([self.unit_index[settled], winner[settled]], axis=1)
        values, times = np.unique(pairs, axis=0, return_counts=True)
        for (unit, won), count in zip(values.tolist(), times.tolist(), strict=True):
            counts[unit][won] = count
        return tuple(
            Tally(unit, int(target[i]), counts[i], int(of_unit[i]))
            for i, unit in enumerate(self.units)
        )


@dataclass(frozen=True)
class CastVotes:
    """What casting an item's votes gave.

    Args:
        votes: of the item.
        winner: class of each vote, OPEN where it was handed back, int64 [N].
        nfe: evaluations of each vote, int64 [N].
        padded: rows that only filled batches.
        open_votes: those handed back, or None.
    """

    votes: Votes
    winner: np.ndarray
    nfe: np.ndarray
    padded: int
    open_votes: OpenVotes | None = None


@dataclass(frozen=True)
class HandedBack:
    """The state of a vote that its sift stage left open.

    Args:
        vote: its position among the item's votes.
        round: the round that comes next.
        entries: entries of the rule that lie before it.
        survivors: classes still in, int32 [w], ascending.
        losses: float64 [entries, w].
    """

    vote: int
    round: int
    entries: int
    survivors: np.ndarray
    losses: np.ndarray


def packed(votes: Votes, back: list[HandedBack]) -> OpenVotes | None:
    """Votes still open, in the order of the item's votes, or None if there are none."""
    if not back:
        return None
    back = sorted(back, key=lambda row: row.vote)
    index = np.array([row.vote for row in back])
    used, unit_index = np.unique(votes.unit_index[index], return_inverse=True)
    return OpenVotes(
        units=tuple(votes.units[i] for i in used),
        unit_index=unit_index.astype(np.int64),
        vote=votes.vote[index],
        target=votes.target[index],
        round=np.array([row.round for row in back], np.int64),
        entries=np.array([row.entries for row in back], np.int64),
        survivor_counts=np.array([len(row.survivors) for row in back], np.int64),
        survivors=np.concatenate([row.survivors for row in back]),
        losses=np.concatenate([row.losses.ravel() for row in back]),
    )


class Unpacked:
    """The votes that an item continues, row by row.

    Args:
        held: as they were handed back.
    """

    def __init__(self, held: OpenVotes) -> None:
        self._held = held
        self._survivors = np.concatenate([[0], np.cumsum(held.survivor_counts)])
        self._losses = np.concatenate([[0], np.cumsum(held.survivor_counts * held.entries)])

    def row(self, row: int) -> HandedBack:
        """One of them; ``vote`` is the row."""
        held, entries = self._held, int(self._held.entries[row])
        survivors = held.survivors[self._survivors[row] : self._survivors[row + 1]]
        losses = held.losses[self._losses[row] : self._losses[row + 1]]
        return HandedBack(
            row, int(held.round[row]), entries, survivors, losses.reshape(entries, -1)
        )
