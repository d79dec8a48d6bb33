"""The votes of one item, flat, and what they end as: counts, or the packed state of open ones."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES, OPEN, STREAM_NAMES
from diffcert_ray.votes.units import Item, OpenVotes, Tally, Unit


@dataclass
class Votes:
    """The votes of one item, flat: each array is [N]."""

    units: tuple[Unit, ...]
    unit_index: np.ndarray  # of each vote, in ``units``
    vote: np.ndarray  # its index in the stream
    target: np.ndarray  # the class asked for, or -1: any

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
    """What casting an item's votes gave."""

    votes: Votes
    winner: np.ndarray  # int64 [N]: class of each vote, OPEN where it was handed back
    nfe: np.ndarray  # int64 [N]: evaluations of each vote
    padded: int  # rows that only filled batches
    open_votes: OpenVotes | None = None  # those handed back


@dataclass(frozen=True)
class HandedBack:
    """The state of a vote that its sift stage left open."""

    vote: int  # its position among the item's votes
    round: int  # the round that comes next
    entries: int  # entries of the rule that lie before it
    survivors: np.ndarray  # classes still in, int32 [w], ascending
    losses: np.ndarray  # float64 [entries, w]


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
    """The votes that an item continues, row by row."""

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
