"""Votes that are ready to be cast and that no item holds yet, by sigma, in the order of their turn.

Units are made when they are given out: what is ready may wait for hours.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from diffcert_ray.votes.units import Part, Unit

Key = tuple[float, int]
"""(sigma, image_id)."""
Ranges = list[tuple[int, int]]
"""(start, stop) of units."""


@dataclass
class _Stretch:
    """Units of one image and stream.

    ``ranges`` are (start, stop) of the units, the next one last; votes before ``begun`` are out.
    """

    sigma: float
    image_id: int
    stream: str
    target: int
    ranges: Ranges
    begun: int = 0

    @property
    def votes(self) -> int:
        """Votes that are left."""
        whole = sum(stop - start for start, stop in self.ranges)
        return whole - max(0, self.begun - self.ranges[-1][0]) if self.ranges else 0

    def take(self, votes: int) -> Part:
        """The next votes: ``votes`` of them, or what is left of a unit."""
        start, stop = self.ranges[-1]
        low = max(start, self.begun)
        self.begun = min(low + votes, stop)
        if self.begun == stop:
            self.ranges.pop()
        unit = Unit(self.sigma, self.image_id, self.stream, start, stop)
        return Part(unit, low, self.begun, self.target)


class ReadyVotes:
    """Votes of many images; those of one image and stream keep their order, as looks need them."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._queues: dict[float, deque[_Stretch]] = {s: deque() for s in sigmas}
        self._votes: Counter[float] = Counter()
        self._waiting: dict[Key, _Stretch] = {}

    @property
    def votes(self) -> int:
        """Votes of all images."""
        return sum(self._votes.values())

    def sigma(self) -> float | None:
        """The first sigma that has any, or None."""
        return next((s for s, queue in self._queues.items() if queue), None)

    def add(self, key: Key, stream: str, target: int, ranges: Ranges, *, begins: bool) -> None:
        """Take units of an image.

        Args:
            key: (sigma, image_id).
            stream: of the votes.
            target: the class that they are asked about, or ALL_CLASSES.
            ranges: (start, stop) of the units, in the order of the votes.
            begins: the image has no votes yet: those under way finish before it begins.
        """
        if not ranges:
            return
        self._votes[key[0]] += sum(stop - start for start, stop in ranges)
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.stream == stream:
            waiting.ranges[:0] = ranges[::-1]  # behind its earlier votes
            return
        stretch = self._waiting[key] = _Stretch(*key, stream, target, ranges[::-1])
        queue = self._queues[key[0]]
        if begins:
            queue.append(stretch)
        else:
            queue.appendleft(stretch)

    def withdraw(self, key: Key) -> int:
        """Take back what an image still has; the number of votes."""
        if self._waiting.pop(key, None) is None:
            return 0
        sigma, image_id = key
        kept = deque(s for s in self._queues[sigma] if s.image_id != image_id)
        before, left = self._votes[sigma], sum(s.votes for s in kept)
        self._queues[sigma], self._votes[sigma] = kept, left
        return before - left

    def take(self, sigma: float, votes: int) -> tuple[Part, ...]:
        """The next ``votes`` votes at a sigma, or all that there are."""
        queue, parts = self._queues[sigma], []
        while queue and votes > 0:
            stretch = queue[0]
            parts.append(stretch.take(votes))
            if not stretch.ranges:
                queue.popleft()
                self._waiting.pop((sigma, stretch.image_id), None)
            taken = parts[-1].stop - parts[-1].start
            self._votes[sigma] -= taken
            votes -= taken
        return tuple(parts)
