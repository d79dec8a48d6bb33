"""Scripted faults against the pool's decisions, without Ray: every try is counted."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcert_ray.pool.dispatch import Deadline, Dispatch, spoils_worker
from diffcert_ray.votes.units import Item


def item(number: int) -> Item:
    return Item(number, 0.25)


def feed(dispatch: Dispatch, now: float = 0.0) -> list[tuple[str, int]]:
    """All calls that can be made now."""
    calls = []
    while (pair := dispatch.next_call(now)) is not None:
        calls.append((pair[0], pair[1].item_id))
    return calls


def filled(workers: int, items: int, **options: int) -> Dispatch:
    dispatch = Dispatch(**options)
    for w in range(workers):
        dispatch.add_worker(f"w{w}")
    for i in range(items):
        dispatch.submit(item(i))
    return dispatch


def test_every_worker_gets_a_first_call_before_any_gets_a_second() -> None:
    assert feed(filled(3, 7)) == [
        ("w0", 0), ("w1", 1), ("w2", 2), ("w0", 3), ("w1", 4), ("w2", 5)
    ]  # fmt: skip


def test_room_keeps_two_calls_before_every_worker() -> None:
    dispatch = filled(0, 0)
    assert dispatch.room() == 2  # a first worker finds work
    for w in range(3):
        dispatch.add_worker(f"w{w}")
    assert dispatch.room() == 6
    for i in range(4):
        dispatch.submit(item(i))
    feed(dispatch)
    assert dispatch.room() == 2
    dispatch.finish("w0", 0, now=1.0)
    assert dispatch.room() == 3
    dispatch.stop_feeding("w1")
    assert dispatch.room() == 1
    dispatch.lose_worker("w2", "gone", blame=False)
    assert dispatch.room() == 0


def test_dead_worker_puts_its_items_back_in_front_and_in_order() -> None:
    dispatch = filled(1, 4)
    assert feed(dispatch) == [("w0", 0), ("w0", 1)]
    back = dispatch.lose_worker("w0", "gone", blame=False)
    assert [i.item_id for i in back] == [0, 1]
    assert dispatch.requeued == 2
    dispatch.add_worker("w1")
    assert feed(dispatch) == [("w1", 0), ("w1", 1)]


def test_only_the_item_that_was_being_evaluated_is_blamed_for_a_death() -> None:
    dispatch = filled(0, 2, tries=5)
    for death in range(5):
        dispatch.add_worker(f"w{death}")
        assert feed(dispatch) == [(f"w{death}", 0), (f"w{death}", 1)]
        dispatch.lose_worker(f"w{death}", f"death {death}", blame=True)
    [(lost, error)] = dispatch.take_given_up()
    assert (lost.item_id, error) == (0, "death 4")
    dispatch.add_worker("w5")
    assert feed(dispatch) == [("w5", 1)]


def test_lost_nodes_never_use_up_the_tries_of_an_item() -> None:
    dispatch = filled(0, 1, tries=2)
    for loss in range(20):
        dispatch.add_worker(f"w{loss}")
        assert feed(dispatch) == [(f"w{loss}", 0)]
        dispatch.lose_worker(f"w{loss}", "node lost", blame=False)
    assert dispatch.take_given_up() == []
    assert dispatch.outstanding == 1


def test_raising_item_is_given_up_after_its_tries_with_its_last_error() -> None:
    dispatch = filled(1, 1, tries=5)
    tries = 0
    while feed(dispatch):
        tries += 1
        assert not dispatch.fail("w0", 0, KeyError(f"try {tries}"), now=float(tries))
    assert tries == 5
    [(lost, error)] = dispatch.take_given_up()
    assert (lost.item_id, error) == (0, "KeyError: 'try 5'")
    assert dispatch.outstanding == 0
    assert dispatch.take_given_up() == []


def test_worker_is_replaced_after_three_different_items_fail_in_a_row() -> None:
    dispatch = filled(1, 9)
    replace = []
    for number in (0, 1, 1, 2):
        feed(dispatch)
        replace.append(dispatch.fail("w0", number, KeyError("x"), now=0.0))
    assert replace == [False, False, False, True]
    dispatch.finish("w0", 3, now=0.0)
    assert not dispatch.fail("w0", 4, KeyError("x"), now=0.0)


@pytest.mark.parametrize(
    ("error", "spoiled"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("device cuda is not cpu"), False),
    ],
)
def test_cuda_errors_spoil_their_worker(error: Exception, spoiled: bool) -> None:
    assert spoils_worker(error) is spoiled
    dispatch = filled(1, 1)
    feed(dispatch)
    assert dispatch.fail("w0", 0, error, now=0.0) is spoiled


def test_everything_failing_from_the_start_is_hopeless_and_one_success_is_hope() -> None:
    for success in (False, True):
        dispatch = filled(1, 4, tries=1)
        if success:
            feed(dispatch)
            dispatch.finish("w0", 0, now=0.0)
        for number in (1, 2, 3):
            assert not dispatch.hopeless
            feed(dispatch)
            dispatch.fail("w0", number, KeyError("x"), now=0.0)
        assert dispatch.hopeless is not success


def test_result_that_arrives_twice_is_delivered_once() -> None:
    dispatch = filled(2, 1)
    assert feed(dispatch) == [("w0", 0)]
    dispatch.lose_worker("w0", "no answer", blame=True)
    assert feed(dispatch) == [("w1", 0)]
    assert dispatch.finish("w0", 0, now=1.0)  # it was only slow
    assert not dispatch.finish("w1", 0, now=2.0)
    assert dispatch.outstanding == 0


def test_late_result_takes_the_requeued_item_out_of_the_queue() -> None:
    dispatch = filled(1, 1)
    feed(dispatch)
    dispatch.lose_worker("w0", "no answer", blame=True)
    assert dispatch.finish("w0", 0, now=1.0)
    dispatch.add_worker("w1")
    assert feed(dispatch) == []


def test_late_error_after_the_result_changes_nothing() -> None:
    dispatch = filled(2, 1, tries=1)
    feed(dispatch)
    assert dispatch.finish("w1", 0, now=1.0)
    dispatch.fail("w0", 0, KeyError("late"), now=2.0)
    assert dispatch.take_given_up() == []
    assert feed(dispatch) == []


def test_worker_that_drains_keeps_what_it_has_and_gets_nothing_more() -> None:
    dispatch = filled(2, 8)
    feed(dispatch)
    dispatch.stop_feeding("w0")
    assert dispatch.live == 1
    assert dispatch.finish("w0", 0, now=1.0)
    assert not dispatch.idle("w0")
    assert dispatch.finish("w0", 2, now=1.0)
    assert dispatch.idle("w0")
    assert feed(dispatch) == []
    dispatch.finish("w1", 1, now=1.0)
    assert feed(dispatch) == [("w1", 4)]


def test_deadline_counts_from_when_a_call_is_first_in_its_line() -> None:
    dispatch = Dispatch(deadline=Deadline(floor_s=10.0, first_s=10.0))
    dispatch.add_worker("w0")
    dispatch.submit(item(0))
    feed(dispatch, now=0.0)
    dispatch.submit(item(1))
    feed(dispatch, now=5.0)  # behind the first, whose time it does not prolong
    assert dispatch.overdue(10.0) == []
    assert dispatch.overdue(10.1) == ["w0"]
    dispatch.finish("w0", 0, now=9.0)
    assert dispatch.overdue(19.0) == []
    assert dispatch.overdue(19.1) == ["w0"]
    dispatch.finish("w0", 1, now=19.1)
    assert dispatch.overdue(1000.0) == []
    dispatch.submit(item(2))
    feed(dispatch, now=1000.0)
    assert dispatch.overdue(1010.0) == []


def test_deadline_is_patient_at_first_and_then_five_times_the_95th_percentile() -> None:
    deadline = Deadline()
    assert deadline.seconds([]) == 600.0
    assert deadline.seconds([1.0] * 4) == 600.0
    assert deadline.seconds([1.0] * 5) == 60.0
    assert deadline.seconds([20.0] * 95 + [400.0] * 5) == 100.0
    assert deadline.seconds([20.0] * 94 + [400.0] * 6) == 2000.0


def test_limit_doubles_each_time_it_strikes_and_comes_back_with_answers() -> None:
    """Workers on machines that became slow are not ended one after the other for ever."""
    dispatch = Dispatch(deadline=Deadline(floor_s=10.0, first_s=10.0), tries=9)
    dispatch.add_worker("w0")
    limits = []
    for _ in range(7):
        limits.append(dispatch.limit_s)
        dispatch.lengthen_limit()
    assert limits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 320.0]
    for number in range(250):
        dispatch.submit(item(number))
        feed(dispatch)
        dispatch.finish("w0", number, now=0.0)
        if number in (48, 49, 99):
            limits.append(dispatch.limit_s)
    assert limits[-3:] == [320.0, 160.0, 80.0]
    assert dispatch.limit_s == 10.0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 25))
def test_each_item_comes_out_exactly_once_whatever_is_lost(
    seed: int, workers: int, items: int
) -> None:
    """Any sequence of deaths, errors, drains and late answers; the calls are counted."""
    rng = np.random.default_rng(seed)
    dispatch = filled(workers, items, tries=4)
    calls: list[tuple[str, int]] = []
    late: list[tuple[str, int]] = []
    out: Counter[int] = Counter()
    evaluated, failures, named = 0, Counter[int](), workers
    while dispatch.outstanding:
        if not dispatch.live:
            dispatch.add_worker(f"w{named}")
            named += 1
        made = feed(dispatch)
        evaluated += len(made)
        calls += made
        worker, number = calls[int(rng.integers(len(calls)))]
        first = next(i for w, i in calls if w == worker)
        action = rng.choice(["finish", "fail", "die", "vanish", "drain", "late"])
        if action == "finish":
            calls.remove((worker, first))
            out[first] += dispatch.finish(worker, first, now=0.0)
        elif action == "fail":
            calls.remove((worker, first))
            failures[first] += 1
            dispatch.fail(worker, first, KeyError("x"), now=0.0)
        elif action in ("die", "vanish"):
            failures[first] += action == "die"
            dispatch.lose_worker(worker, "x", blame=action == "die")
            late += [c for c in calls if c[0] == worker]
            calls = [c for c in calls if c[0] != worker]
        elif action == "drain":
            dispatch.stop_feeding(worker)
        elif late:
            worker, number = late.pop()
            out[number] += dispatch.finish(worker, number, now=0.0)
        for lost, _ in dispatch.take_given_up():
            out[lost.item_id] += 1
            assert failures[lost.item_id] >= 4
    assert out == Counter(range(items))
    assert evaluated <= items + dispatch.requeued


# --- the tail: the last open items a second time


class Simulated:
    """Workers that take their seconds for every call; a driver that fills what room there is."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now = seconds, 0.0
        self.dispatch = filled(len(seconds), 0)
        self.begun: Counter[int] = Counter()
        self.delivered: list[int] = []
        self._lines: dict[str, list[int]] = {worker: [] for worker in seconds}
        self._ends: dict[str, float] = {}

    def to_the_end(self, items: int) -> float:
        """When the last item is delivered."""
        waiting = list(range(items))
        while len(self.delivered) < items:
            for _ in range(min(self.dispatch.room(), len(waiting))):
                self.dispatch.submit(item(waiting.pop(0)))
            self._give(self.dispatch.next_call)
            if self.dispatch.room():
                self._give(self.dispatch.copy_call)
            self._go_on()
        return self.now

    def _give(self, following: "Callable[[float], tuple[str, Item] | None]") -> None:
        while (pair := following(self.now)) is not None:
            self._lines[pair[0]].append(pair[1].item_id)
            self._begin(pair[0])

    def _begin(self, worker: str) -> None:
        if worker not in self._ends and self._lines[worker]:
            self.begun[self._lines[worker][0]] += 1
            self._ends[worker] = self.now + self.seconds[worker]

    def _go_on(self) -> None:
        """To the next call that ends."""
        worker = min(self._ends, key=self._ends.__getitem__)
        self.now = self._ends.pop(worker)
        done = self._lines[worker].pop(0)
        if self.dispatch.finish(worker, done, self.now):
            self.delivered.append(done)
        self._begin(worker)


@pytest.mark.parametrize("slow", [10.0, 1000.0])
def test_a_slow_worker_does_not_hold_up_the_end(slow: float) -> None:
    seconds = {f"w{n}": 1.0 for n in range(64)} | {"w5": slow}
    ideal = next(t for t in range(1, 99) if sum(t // s for s in seconds.values()) >= 256)
    assert ideal == 5  # 63 workers finish 252 of the 256 items in four seconds
    run = Simulated(seconds)
    assert run.to_the_end(256) <= 1.2 * ideal
    assert sorted(run.delivered) == list(range(256))  # each once
    assert max(run.begun.values()) <= 2
    assert run.begun.total() - 256 <= 8  # what the slow one held, and a few


def test_workers_of_one_speed_evaluate_next_to_nothing_twice() -> None:
    seconds = {f"w{n}": 1.0 + n / 640 for n in range(64)}
    run = Simulated(seconds)
    assert run.to_the_end(256) <= 1.2 * 4.2
    assert run.begun.total() <= 1.02 * 256


def test_nothing_is_copied_while_anything_waits_or_nobody_is_idle() -> None:
    dispatch = filled(2, 2)
    assert feed(dispatch) == [("w0", 0), ("w1", 1)]
    assert dispatch.copy_call(9.0) is None  # nobody is idle
    dispatch.finish("w1", 1, 1.0)
    dispatch.submit(item(2))
    assert dispatch.copy_call(9.0) is None  # an item waits
    assert feed(dispatch, 9.0) == [("w1", 2)]


def test_an_item_is_copied_once_and_delivered_once() -> None:
    dispatch = filled(3, 1)
    assert feed(dispatch) == [("w0", 0)]
    assert dispatch.copy_call(9.0) is None  # how long a call takes is not known yet
    dispatch.submit(item(1))
    assert feed(dispatch) == [("w1", 1)]
    dispatch.finish("w1", 1, now=1.0)
    assert dispatch.copy_call(0.5) is None  # it is not late
    pair = dispatch.copy_call(2.0)
    assert pair is not None
    assert (pair[0], pair[1].item_id) == ("w2", 0)
    assert dispatch.copy_call(3.0) is None  # w1 is idle, but one copy is enough
    assert dispatch.outstanding == 1
    assert dispatch.finish("w2", 0, now=4.0)
    assert not dispatch.finish("w0", 0, now=5.0)
    assert dispatch.outstanding == 0
    assert dispatch.requeued == 0


def copied() -> Dispatch:
    """An item that w0 has, and w1 a copy of it."""
    dispatch = filled(2, 2)
    assert feed(dispatch) == [("w0", 0), ("w1", 1)]
    dispatch.finish("w1", 1, now=1.0)
    assert dispatch.copy_call(2.0) is not None
    return dispatch


@pytest.mark.parametrize("lost", ["w0", "w1"])
def test_a_lost_worker_puts_nothing_back_of_which_another_has_a_copy(lost: str) -> None:
    dispatch = copied()
    assert dispatch.lose_worker(lost, "gone", blame=False) == []
    assert dispatch.next_call(3.0) is None
    assert dispatch.finish("w1" if lost == "w0" else "w0", 0, now=4.0)


def test_an_item_comes_back_when_both_who_have_it_are_lost() -> None:
    dispatch = copied()
    dispatch.lose_worker("w0", "gone", blame=False)
    assert [i.item_id for i in dispatch.lose_worker("w1", "gone", blame=False)] == [0]
    dispatch.add_worker("w2")
    assert feed(dispatch) == [("w2", 0)]


def test_a_copy_that_fails_leaves_the_item_to_the_other() -> None:
    dispatch = copied()
    dispatch.fail("w1", 0, KeyError("broken"), now=3.0)
    assert feed(dispatch) == []
    assert dispatch.finish("w0", 0, now=4.0)
    dispatch = copied()
    dispatch.fail("w1", 0, KeyError("broken"), now=3.0)
    dispatch.fail("w0", 0, KeyError("broken"), now=4.0)
    assert [pair[1] for pair in feed(dispatch)] == [0]  # nobody has it any more
