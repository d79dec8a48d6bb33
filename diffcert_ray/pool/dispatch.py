"""Which worker gets which item, and what a loss costs: decisions without Ray or a clock.

Every ``now`` is seconds on the caller's clock; workers and nodes are known by name.
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from diffcert_ray.votes.units import Item

RECENT_CALLS = 200
FIRST_CALLS = 5  # are enough to go by
DEADLINE_FACTOR = 5.0
LATE_FACTOR = 1.5  # times the usual time, after which a call may be copied
# So many different items fail in a row on one worker: it is replaced, since a broken worker answers
# fast and would draw item after item. So many are given up before any has succeeded: all would be.
WORKER_FAILURES = 3
GIVEN_UP_AT_FIRST = 3
# On machines that have become slow, a fixed limit would end one worker after the other, and start
# new ones, for ever: each time it strikes it doubles, and so many returned calls halve it again.
DOUBLINGS = 5
CALLS_PER_HALVING = 50


def spoils_worker(error: BaseException) -> bool:
    """Whether a worker is unusable after an error: a CUDA error stays with its process."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in text for w in ("cuda", "cudnn", "cublas"))


@dataclass(frozen=True)
class Deadline:
    """How long one call may take: DEADLINE_FACTOR times the 95th percentile of recent calls."""

    floor_s: float = 60.0  # at least
    # Until FIRST_CALLS have returned: nothing is known yet, and they are slow (compilation).
    first_s: float = 600.0

    def seconds(self, recent: Collection[float]) -> float:
        """The limit, seconds, given the durations of recent calls in seconds."""
        if len(recent) < FIRST_CALLS:
            return max(self.floor_s, self.first_s)
        rank = math.ceil(0.95 * len(recent)) - 1
        return max(self.floor_s, DEADLINE_FACTOR * sorted(recent)[rank])


@dataclass
class _Line:
    """Calls before one worker in their order; the first is being evaluated, since ``since``."""

    items: deque[int] = field(default_factory=deque)
    since: float = 0.0
    failed_since_success: set[int] = field(default_factory=set)


class Dispatch:
    """Items on their way: a queue, a short line before each worker, and tries that are counted.

    Args:
        in_flight: calls before each worker, >= 1.
        tries: an item that failed this often is given up, >= 1.
    """

    def __init__(self, *, in_flight: int = 2, tries: int = 5, deadline: Deadline | None = None):
        self.requeued = 0
        self._in_flight = in_flight
        self._tries = tries
        self._deadline = deadline or Deadline()
        self._items: dict[int, Item] = {}
        self._queue: deque[int] = deque()
        self._lines: dict[str, _Line] = {}
        self._fed: set[str] = set()
        # Fed workers by how many calls they have: the emptiest is found at once among a thousand.
        self._takers: list[dict[str, None]] = [{} for _ in range(in_flight)]
        self._copied: set[int] = set()
        self._failures: Counter[int] = Counter()
        self._given_up: list[tuple[Item, str]] = []
        self._given_up_count = 0
        self._succeeded = False
        self._recent: deque[float] = deque(maxlen=RECENT_CALLS)
        self._doublings, self._returned = 0, 0

    # ---- workers ---------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Workers that take items."""
        return len(self._fed)

    def add_worker(self, worker: str) -> None:
        """Feed a worker from now on."""
        self._lines[worker] = _Line()
        self._fed.add(worker)
        self._sort_in(worker)

    def stop_feeding(self, worker: str) -> None:
        """Give a worker nothing more; what it has may still come back."""
        self._fed.discard(worker)
        self._sort_in(worker)

    def idle(self, worker: str) -> bool:
        """Whether a worker has nothing to do."""
        return not self._lines[worker].items

    def lose_worker(self, worker: str, error: str, *, blame: bool) -> list[Item]:
        """Forget a dead worker, and put back everything that it had; returns these items.

        With ``blame`` its first item counts as failed: it was being evaluated, the others were not.
        Nobody is to blame for the loss of a node.
        """
        line = self._lines.pop(worker, _Line())
        self._fed.discard(worker)
        for takers in self._takers:
            takers.pop(worker, None)
        if blame and line.items and line.items[0] in self._items:
            self._count_failure(line.items[0], error)
        # The others were delivered by somebody, or somebody has a copy.
        back = [i for i in line.items if i in self._items and not self._held(i)]
        self._put_back(back)
        return [self._items[i] for i in back]

    def overdue(self, now: float) -> list[str]:
        """Workers whose first call has taken longer than it may."""
        limit = self.limit_s
        return [w for w, line in self._lines.items() if line.items and now - line.since > limit]

    @property
    def limit_s(self) -> float:
        """How long a call may take at present, seconds."""
        return self._deadline.seconds(self._recent) * 2**self._doublings

    def lengthen_limit(self) -> None:
        """Be more patient: workers were just lost because they were overdue."""
        self._doublings, self._returned = min(self._doublings + 1, DOUBLINGS), 0

    # ---- items -----------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Items taken and neither delivered nor given up."""
        return len(self._items)

    def room(self) -> int:
        """How many more items keep every worker busy; enough for one while there is none."""
        return max(0, self._in_flight * max(1, self.live) - len(self._items))

    def submit(self, item: Item) -> None:
        """Queue an item."""
        self._items[item.item_id] = item
        self._queue.append(item.item_id)

    def next_call(self, now: float) -> tuple[str, Item] | None:
        """The next item and the worker that is to evaluate it, or None if there is no such pair."""
        worker = next((w for takers in self._takers for w in takers), None)
        while self._queue and worker is not None:
            item = self._items.get(self._queue.popleft())
            if item is None:  # delivered after it was put back
                continue
            line = self._lines[worker]
            if not line.items:
                line.since = now
            line.items.append(item.item_id)
            self._sort_in(worker)
            return worker, item
        return None

    def copy_call(self, now: float) -> tuple[str, Item] | None:
        """An idle worker, and an open item that it is to evaluate a second time; or None.

        To be asked when nothing is left to hand out. Waiting items go before those that are being
        evaluated for clearly longer than is usual, and each is copied once at most. What comes back
        first is delivered, and the other one is not.
        """
        idle = next(iter(self._takers[0]), None)
        if idle is None or any(i in self._items for i in self._queue):
            return None
        late = LATE_FACTOR * statistics.median(self._recent) if self._recent else math.inf
        found: tuple[int, float, int] | None = None
        for line in self._lines.values():
            for place, item_id in enumerate(line.items):
                waited = now - line.since
                if item_id not in self._items or item_id in self._copied:
                    continue
                if place or waited > late:
                    found = max(found or (-1, 0.0, 0), (place, waited, item_id))
        if found is None:
            return None
        item_id = found[2]
        self._copied.add(item_id)
        line = self._lines[idle]
        line.since = now
        line.items.append(item_id)
        self._sort_in(idle)
        return idle, self._items[item_id]

    def finish(self, worker: str, item_id: int, now: float) -> bool:
        """Take note of a returned call.

        Returns:
            Whether the result is to be delivered: an item counts once, whoever evaluated it.
        """
        line = self._lines.get(worker)
        self._succeeded = True
        self._returned += 1
        if self._returned >= CALLS_PER_HALVING:
            self._doublings, self._returned = max(self._doublings - 1, 0), 0
        if line is not None:
            line.failed_since_success.clear()
            self._leave_line(worker, item_id, now, measured=True)
        self._copied.discard(item_id)
        return self._items.pop(item_id, None) is not None

    def fail(self, worker: str, item_id: int, error: BaseException, now: float) -> bool:
        """Take note of a call that raised: the item is put back, or given up.

        Returns:
            Whether the worker is to be replaced.
        """
        line = self._lines.get(worker)
        suspicious = False
        if line is not None:
            line.failed_since_success.add(item_id)
            suspicious = len(line.failed_since_success) >= WORKER_FAILURES
            self._leave_line(worker, item_id, now, measured=False)
        if item_id in self._items:
            self._count_failure(item_id, f"{type(error).__name__}: {error}")
            if item_id in self._items and not self._held(item_id):
                self._put_back([item_id])
        return spoils_worker(error) or suspicious

    def take_given_up(self) -> list[tuple[Item, str]]:
        """Items given up since the last call, with the last error of each."""
        given_up, self._given_up = self._given_up, []
        return given_up

    @property
    def hopeless(self) -> bool:
        """Whether several items were given up and none ever succeeded: so would the rest be."""
        return not self._succeeded and self._given_up_count >= GIVEN_UP_AT_FIRST

    # ---- lines -----------------------------------------------------------------------------------

    def _leave_line(self, worker: str, item_id: int, now: float, *, measured: bool) -> None:
        line = self._lines[worker]
        if item_id not in line.items:
            return
        if measured and line.items[0] == item_id:
            self._recent.append(now - line.since)
        line.items.remove(item_id)
        line.since = now
        self._sort_in(worker)

    def _sort_in(self, worker: str) -> None:
        for takers in self._takers:
            takers.pop(worker, None)
        waiting = len(self._lines[worker].items)
        if worker in self._fed and waiting < self._in_flight:
            self._takers[waiting][worker] = None

    def _held(self, item_id: int) -> bool:
        """Whether any worker has an item before it."""
        return item_id in self._copied and any(item_id in x.items for x in self._lines.values())

    def _put_back(self, item_ids: list[int]) -> None:
        self._queue.extendleft(reversed(item_ids))
        self.requeued += len(item_ids)

    def _count_failure(self, item_id: int, error: str) -> None:
        self._failures[item_id] += 1
        if self._failures[item_id] >= self._tries:
            self._given_up.append((self._items.pop(item_id), error))
            self._copied.discard(item_id)
            self._given_up_count += 1
