"""Drivers killed with SIGKILL, again and again: the store says how far the run is, and it is."""

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from diffcert_ray import certify, open_run
from tests.forked_drivers import (
    POINTS,
    dying_at,
    ended,
    forked,
    small_items,
)
from tests.noting_pools import (
    in_this_process,
    no_worker_left,
    noted,
    noting,
    on_ray,
    votes_of,
)
from tests.waiting import wait_for
from tests.worlds import check_same, counts_of, settings, small_world

pytestmark = pytest.mark.forks

FLUSH_S = 0.02
LIMIT_S = 90.0


@pytest.fixture(scope="module")
def world():
    return small_world(images=16)


@pytest.fixture(scope="module")
def clean(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "run"
    return certify(tables(), folder, local=True, denoiser=world[0], dataset=world[1])


def tables() -> dict:
    execution = {"item_s": 0.1, "flush_s": FLUSH_S, "actors": 2}
    return settings(votes={"n": 200, "unit": 20}, execution=execution)


def stored_votes(folder: Path) -> set:
    """Of a folder in whatever state: readers must take it as it is."""
    return votes_of(counts_of(open_run(folder))) if (folder / "run.toml").exists() else set()


def kill_driver(world, folder: Path, book: Path, seed: int, *, local: bool) -> int:
    """Start a driver and kill it at a seeded moment; returns how many votes that costs."""
    rng = random.Random(seed)
    point = POINTS[seed % len(POINTS)]
    before, begun = stored_votes(folder), noted(book)
    log = folder.parent / "log"

    def drive() -> None:
        small_items(1000.0)
        pool = dying_at(point, rng, noting(book, in_this_process if local else on_ray))
        certify(tables(), folder, denoiser=world[0], dataset=world[1], pool=pool)

    pid = forked(drive, log)
    if point == "moment":
        some = rng.randint(1, 150)  # votes: any moment will do, while there is work left
        wait_for(lambda: (noted(book) - begun).total() >= some, LIMIT_S)
        os.kill(pid, signal.SIGKILL)
    assert ended(pid, LIMIT_S) == -signal.SIGKILL, log.read_text()[-3000:]
    wait_for(lambda: no_worker_left(book), LIMIT_S)
    here, after = noted(book) - begun, stored_votes(folder)
    assert not before & here.keys()  # what is stored is never evaluated again
    assert max(here.values(), default=1) == 1
    assert before <= after
    assert after - before <= here.keys()
    return len(here.keys() - after)


def finish(world, folder: Path, book: Path):
    """The same command once more, in this process and undisturbed."""
    before, begun = stored_votes(folder), noted(book)
    run = certify(tables(), folder, denoiser=world[0], dataset=world[1], pool=noting(book))
    assert run.outcome.complete
    assert noted(book) - begun == Counter(votes_of(counts_of(run)) - before)
    return run


def check(run, clean, book: Path, lost: int) -> None:
    check_same(run, clean)
    # Each vote once, and once more for each time that it was lost with a driver.
    assert noted(book).total() == clean.outcome.votes + lost


def test_driver_killed_at_each_kind_of_moment_costs_only_what_was_not_stored(
    world, clean, tmp_path, book
):
    folder = tmp_path / "run"
    lost = [kill_driver(world, folder, book, seed, local=True) for seed in range(len(POINTS))]
    run = finish(world, folder, book)
    check(run, clean, book, sum(lost))


@pytest.mark.fault
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_run_whose_driver_is_killed_twenty_times_in_a_row_ends_with_the_same_counts(
    world, clean, tmp_path, book
):
    folder = tmp_path / "run"
    lost = []
    for seed in range(20):
        on_ray = seed in (4, 10, 16)
        lost.append(kill_driver(world, folder, book, seed, local=not on_ray))
        assert set(votes_of(counts_of(clean))) - stored_votes(folder)  # there was work to lose
    run = finish(world, folder, book)
    check(run, clean, book, sum(lost))
