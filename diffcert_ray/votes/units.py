"""The units of work: what is stored (Unit), sent to a worker (Item), returned (Result)."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES


@dataclass(frozen=True, order=True)
class Unit:
    """A fixed range of votes of one image at one sigma in one stream: stored and resumed."""

    sigma: float  # smoothing noise, pixel units
    image_id: int
    stream: str  # "select" (votes that choose the class) or "estimate" (votes that bound it)
    start: int  # first vote index
    stop: int  # one past the last vote index

    @property
    def votes(self) -> int:
        """Number of votes in the unit."""
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """Votes ``start:stop`` of a unit, and the class that they are about.

    ``target`` is ALL_CLASSES for complete votes, or the class A when a vote may stop as soon as it
    is certain whether it is A; it then returns A or NOT_TARGET.
    """

    unit: Unit
    start: int
    stop: int
    target: int = ALL_CLASSES


@dataclass(frozen=True)
class OpenVotes:
    """Votes that their sift stage left undecided: one row a vote, survivors and losses ragged."""

    units: tuple[Unit, ...]
    unit_index: np.ndarray  # int64 [N], position in ``units``
    vote: np.ndarray  # int64 [N], vote index
    target: np.ndarray  # int64 [N], ALL_CLASSES or a class
    round: np.ndarray  # int64 [N], the round of the sift rule that comes next
    entries: np.ndarray  # int64 [N], entries of the rule that lie before that round
    survivor_counts: np.ndarray  # int64 [N], classes still in
    survivors: np.ndarray  # int32 [sum of counts], their class numbers, ascending within a vote
    losses: np.ndarray  # float64, for each vote [entries, survivors] in C order, end to end

    def __len__(self) -> int:
        return len(self.vote)


def join_open_votes(pieces: list[OpenVotes]) -> OpenVotes:
    """One packing of the votes of several, at least one, in the same order."""
    if len(pieces) == 1:
        return pieces[0]
    units: dict[Unit, int] = {}
    index = []
    for piece in pieces:
        renumber = np.array([units.setdefault(u, len(units)) for u in piece.units], np.int64)
        index.append(renumber[piece.unit_index])
    columns = ("vote", "target", "round", "entries", "survivor_counts", "survivors", "losses")
    joined = {name: np.concatenate([getattr(p, name) for p in pieces]) for name in columns}
    return OpenVotes(units=tuple(units), unit_index=np.concatenate(index), **joined)


def split_open_votes(held: OpenVotes, count: int) -> tuple[OpenVotes, OpenVotes]:
    """The first ``count`` votes of a packing, and the rest (which may be empty)."""
    survivors = np.concatenate([[0], np.cumsum(held.survivor_counts)])
    losses = np.concatenate([[0], np.cumsum(held.survivor_counts * held.entries)])

    def rows(a: int, b: int) -> OpenVotes:
        used, unit_index = np.unique(held.unit_index[a:b], return_inverse=True)
        return OpenVotes(
            units=tuple(held.units[i] for i in used),
            unit_index=unit_index.astype(np.int64),
            vote=held.vote[a:b],
            target=held.target[a:b],
            round=held.round[a:b],
            entries=held.entries[a:b],
            survivor_counts=held.survivor_counts[a:b],
            survivors=held.survivors[survivors[a] : survivors[b]],
            losses=held.losses[losses[a] : losses[b]],
        )

    count = min(count, len(held))
    return rows(0, count), rows(count, len(held))


@dataclass(frozen=True)
class Item:
    """What one call of a worker evaluates: fresh votes, or votes that earlier items left open."""

    item_id: int  # number within the run of this driver
    sigma: float  # of all votes in the item, pixel units
    parts: tuple[Part, ...] = ()  # fresh votes
    open_votes: OpenVotes | None = None  # votes to continue
    # A vote still open after this many noise levels is handed back for another item to finish
    # (stages = "split"); None finishes every vote (stages = "fused").
    hand_back_levels: int | None = None

    @property
    def votes(self) -> int:
        """Number of votes that the item works on."""
        return sum(p.stop - p.start for p in self.parts) + len(self.open_votes or ())


@dataclass(frozen=True)
class Tally:
    """Votes of one unit that an item settled, per class, and the evaluations spent on it."""

    unit: Unit
    target: int  # the class asked for, or -1: any
    counts: dict[int, int]  # votes of each class
    nfe: int

    @property
    def votes(self) -> int:
        """Number of votes settled."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Result:
    """What an item returned, and what it cost."""

    item_id: int
    tallies: tuple[Tally, ...]  # one for each unit that the item touched
    open_votes: OpenVotes | None  # votes handed back
    nfe: int  # of the votes
    padded: int  # rows evaluated only to fill fixed-shape batches
    seconds: float  # wall time on the worker
    worker: str = ""  # its name, which the worker adds, as it does its numerics kind
    device: str = "cpu"
    numerics: str = ""
    computed_on: str = ""  # model of the device and version of torch
