"""The units of work: what is stored (Unit), sent to a worker (Item), returned (Result)."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.conventions import ALL_CLASSES


@dataclass(frozen=True, order=True)
class Unit:
    """A fixed range of votes of one image at one sigma in one stream: what is stored and resumed.

    Args:
        sigma: smoothing noise in pixel units.
        image_id: the dataset's number of the image.
        stream: "select" (votes that choose the class) or "estimate" (votes that bound it).
        start: first vote index.
        stop: one past the last vote index.
    """

    sigma: float
    image_id: int
    stream: str
    start: int
    stop: int

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
    """Votes that their sift stage left undecided: one row a vote, survivors and losses ragged.

    Args:
        units: the units that the votes belong to.
        unit_index: int64 [N], position in ``units``.
        vote: int64 [N], vote index.
        target: int64 [N], ALL_CLASSES or a class.
        round: int64 [N], the round of the sift rule that comes next.
        entries: int64 [N], entries of the rule that lie before that round.
        survivor_counts: int64 [N], classes still in.
        survivors: int32 [sum of counts], their class numbers, ascending within a vote.
        losses: float64, for each vote [entries, survivors] in C order, end to end.
    """

    units: tuple[Unit, ...]
    unit_index: np.ndarray
    vote: np.ndarray
    target: np.ndarray
    round: np.ndarray
    entries: np.ndarray
    survivor_counts: np.ndarray
    survivors: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.vote)


def join_open_votes(pieces: list[OpenVotes]) -> OpenVotes:
    """One packing of the votes of several, in the same order.

    Args:
        pieces: at least one.
    """
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
    """What one call of a worker evaluates: fresh votes (parts) or votes left open by earlier items.

    Args:
        item_id: number within the run of this driver.
        sigma: smoothing noise, pixel units, of all votes in the item.
        parts: fresh votes.
        open_votes: votes to continue, or None.
        hand_back_levels: a vote still open after this many noise levels is handed back for another
            item to finish (stages = "split"); None finishes every vote (stages = "fused").
    """

    item_id: int
    sigma: float
    parts: tuple[Part, ...] = ()
    open_votes: OpenVotes | None = None
    hand_back_levels: int | None = None

    @property
    def votes(self) -> int:
        """Number of votes that the item works on."""
        return sum(p.stop - p.start for p in self.parts) + len(self.open_votes or ())


@dataclass(frozen=True)
class Tally:
    """Votes of one unit that an item settled, per class, and the evaluations spent on it.

    Args:
        unit: which.
        target: the class asked for, or -1: any.
        counts: votes of each class.
        nfe: evaluations.
    """

    unit: Unit
    target: int
    counts: dict[int, int]
    nfe: int

    @property
    def votes(self) -> int:
        """Number of votes settled."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Result:
    """What an item returned, and what it cost.

    Args:
        item_id: the item's number.
        tallies: one entry for each unit that the item touched.
        open_votes: votes handed back, or None.
        nfe: evaluations of the denoiser for votes.
        padded: rows evaluated only to fill fixed-shape batches.
        seconds: wall time on the worker.
        device: the device's name.
        worker: the worker's name, which the worker adds.
        numerics: its numerics kind, likewise.
    """

    item_id: int
    tallies: tuple[Tally, ...]
    open_votes: OpenVotes | None
    nfe: int
    padded: int
    seconds: float
    worker: str = ""
    device: str = "cpu"
    numerics: str = ""
