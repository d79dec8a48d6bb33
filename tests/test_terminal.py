"""What a person reads while a run goes on."""

import io
import json
import shlex
from types import SimpleNamespace

import pytest
from rich.console import Console

from diffcert_ray.commands.progress import (
    CountedProgress,
    LineProgress,
    LiveProgress,
    QuietProgress,
    duration,
    json_line,
    key_value_line,
    progress_line,
)
from diffcert_ray.pool.local import PoolState
from diffcert_ray.run.loop import Driver, Progress


def progress(done: int = 3, **changes) -> Progress:
    facts = {
        "images_done": done, "images_total": 20, "votes_done": 1500, "votes_total": 5000,
        "nfe": 45_000, "nfe_per_s": 7250.0, "seconds_left": 200.0,
        "pool": PoolState(live=2, pending=1, requeued=4, note="waiting for a node"),
    }  # fmt: skip
    return Progress(**(facts | changes))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3661, "1 h 01 min")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_line_says_images_votes_speed_time_left_and_workers():
    assert progress_line(progress()) == (
        "3/20 images, 1,500/5,000 votes, 7,250 NFE/s, 3 min 20 s left, 2 workers (+1 starting), "
        "4 items requeued; waiting for a node"
    )


def test_lines_come_every_ten_seconds_and_at_the_end():
    now, console = [0.0], Console(file=io.StringIO(), width=200)
    line = LineProgress(console, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        line(progress(done=second % 19))
    now[0] = 26.0
    line(progress(done=20))
    written = console.file.getvalue().splitlines()
    images = [dict(p.split("=", 1) for p in shlex.split(w)[1:])["images"] for w in written]
    assert images == ["0", "10", "1", "20"]


def test_lines_are_key_value_pairs_or_json_of_the_same_facts():
    pairs = shlex.split(key_value_line(progress(seconds_left=None)))
    assert pairs[0] == "progress"
    facts = dict(pair.split("=", 1) for pair in pairs[1:])
    assert (facts["votes"], facts["votes_total"], facts["seconds_left"]) == ("1500", "5000", "?")
    assert facts["note"] == "waiting for a node"
    found = json.loads(json_line(progress(seconds_left=None)))
    assert found["event"] == "progress"
    assert found["seconds_left"] is None
    assert {k for k in found if k != "event"} == set(facts)


def test_counted_steps_say_how_many_are_done_and_the_time_left():
    now, console = [0.0], Console(file=io.StringIO(), width=200)
    told = CountedProgress(console, "units", clock=lambda: now[0])
    for done in range(21):
        now[0] = 2.0 * done
        told(done, 20)
    assert console.file.getvalue().splitlines() == [
        "5/20 units, 30 s left",
        "10/20 units, 20 s left",
        "15/20 units, 10 s left",
        "20/20 units, 0 s left",
    ]


def test_quiet_says_nothing(capsys):
    with QuietProgress() as quiet:
        quiet(progress())
    assert capsys.readouterr() == ("", "")


def test_the_live_bar_shows_the_same_facts():
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with LiveProgress(console) as live:
        live(progress())
    shown = console.file.getvalue()
    assert "3/20 images" in shown
    assert "30 %" in shown
    assert "7,250 NFE/s" in shown


class Resumed:
    """Work of 10 images of 100 votes, of which 6 images were stored by an earlier start."""

    images_done, images_total, votes_total, nfe_per_vote = 6, 10, 1000, 10.0
    votes_unused = 0

    def __init__(self) -> None:
        self.votes_done, self.finished_images = 600, []

    @property
    def finished(self) -> bool:
        return self.votes_done == self.votes_total

    def take(self, nfe: float, workers: int = 1) -> object:
        return object()

    def deliver(self, result: object) -> list:
        self.votes_done += 50
        return []


class TwoSecondsAnItem:
    """A pool whose one worker casts 50 votes, 500 evaluations, in two seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def room(self) -> int:
        return 1

    def submit(self, item: object) -> None:
        """Nothing to keep."""

    def collect(self, timeout_s: float) -> list:
        self.now += 2.0
        tally = SimpleNamespace(votes=50)
        return [SimpleNamespace(tallies=[tally], nfe=500, padded=0, seconds=2.0, numerics="k")]

    def given_up(self) -> list:
        return []

    def state(self) -> PoolState:
        return PoolState(live=1)


def test_after_a_resume_stored_votes_count_as_done_and_speed_is_of_this_start_only():
    pool, seen = TwoSecondsAnItem(), []
    writer = SimpleNamespace(flush=lambda force=False: None, add_certificates=list, bytes_written=0)
    driver = Driver(
        Resumed(), pool, writer, lambda result, units: None, lambda image: None,
        on_progress=seen.append, clock=lambda: pool.now,
    )  # fmt: skip
    driver.run()
    first = seen[0]
    assert (first.images_done, first.votes_done, first.votes_total) == (6, 650, 1000)
    assert (first.votes, first.nfe) == (50, 500)
    assert first.nfe_per_s == pytest.approx(250.0)
    assert first.seconds_left == pytest.approx(350 * 10 / 250)
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with LiveProgress(console) as live:
        live(first)
    assert "65 %" in console.file.getvalue()
    assert "14 s left" in console.file.getvalue()
