"""Whether a run is being worked on, from the times of its parts."""

import pytest

from diffcert_ray.storage.activity import Activity, Write, activity, newest_writes
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.schemas import UnitRow
from diffcert_ray.storage.store import RunStore


def part(time: float, votes: int, writer: str = "a") -> Write:
    return Write(time, writer, votes)


def test_a_run_without_parts_is_idle():
    assert activity([], 100.0) == Activity(None, 0, None, alive=False)


def test_the_rate_is_that_of_the_last_ten_minutes_of_all_writers():
    slow_start = [part(0.0, 10), part(1000.0, 10)]
    recent = [part(2000.0, 500), part(2030.0, 300, "b"), part(2060.0, 300)]
    found = activity([*recent, *slow_start], now=2070.0)
    assert found.votes_per_s == pytest.approx(600 / 60)  # the first part was cast before
    assert (found.last_s, found.writers, found.alive) == (10.0, 2, True)


def test_a_single_part_tells_no_rate():
    assert activity([part(5.0, 100)], 6.0).votes_per_s is None


@pytest.mark.parametrize(
    ("gap", "silence", "alive"), [(30, 100, True), (30, 200, False), (100, 290, True)]
)
def test_silence_much_longer_than_between_the_last_parts_means_that_nobody_works(
    gap, silence, alive
):
    writes = [part(gap * k, 50) for k in range(4)]
    assert activity(writes, now=3 * gap + silence).alive is alive


def test_a_writers_clock_ahead_of_ours_is_just_now():
    assert activity([part(1000.0, 1)], now=990.0).last_s == 0.0


def test_parts_tell_their_writer_votes_and_time(tmp_path):
    store = RunStore.create(str(tmp_path / "run"), b"")
    for start in (0, 100):
        with store.writer() as writer:
            row = UnitRow(0.25, 7, "sha", "estimate", start, start + 100, -1, (3,), (100,), 1, 1.0,
                          "cpu", "kind", "w", 0)  # fmt: skip
            writer.add_units([row])
    found = newest_writes(store, "units")
    assert [w.votes for w in found] == [100, 100]
    assert len({w.writer for w in found}) == 2
    assert activity(found, max(w.time for w in found) + 1).alive
    compact(store)
    assert newest_writes(store, "units") == []
