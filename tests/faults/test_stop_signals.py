"""Ctrl-C and a scheduler's SIGTERM: store, say so, exit with 3; a second signal ends it at once."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import tomli_w

from diffcert_ray import certify, open_run
from diffcert_ray.commands import main as cli
from diffcert_ray.commands.exit_codes import INCOMPLETE
from diffcert_ray.run import certify as certification
from tests.forked_drivers import ended, forked, small_items
from tests.noting_pools import at_third_item, noted, noting, votes_of
from tests.waiting import wait_for
from tests.worlds import counts_of, settings, small_world

pytestmark = pytest.mark.forks

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def world():
    return small_world(images=8)


def tables(item_s: float = 0.1) -> dict:
    execution = {"item_s": item_s, "flush_s": 0.01}
    return settings(votes={"n": 100, "unit": 10}, execution=execution)


def diffcert(world, folder: Path, log: Path, book: Path, *, hangs: bool = False) -> int:
    """The command in a process of its own; ``hangs``: its third item does not come back."""
    config = folder.parent / "world.toml"
    config.write_text(tomli_w.dumps(tables()))

    def hang() -> None:
        (folder / "hangs").touch()
        threading.Event().wait(LIMIT_S)

    def command() -> None:
        small_items(500.0)
        pool = at_third_item(hang, noting(book)) if hangs else noting(book)
        certification.certify = partial(certify, denoiser=world[0], dataset=world[1], pool=pool)
        sys.argv = ["diffcert", "certify", str(config), "--local", "--run", str(folder)]
        cli.main()

    return forked(command, log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_signal_stores_what_has_come_back_and_the_same_command_continues(
    world, tmp_path: Path, book: Path, number: int
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    pid = diffcert(world, folder, log, book)
    wait_for(lambda: len(list((folder / "units").glob("part-*"))) >= 2, LIMIT_S)
    os.kill(pid, number)
    assert ended(pid, LIMIT_S) == INCOMPLETE == 3
    said = " ".join(log.read_text().split())
    assert "stopping: storing what has come back (again: stop at once)" in said
    assert "stopped: what has come back is stored; the same command continues" in said
    assert "Traceback" not in said
    stored, begun = votes_of(counts_of(open_run(folder))), noted(book)
    open_ = open_units(begun)
    # Everything that was complete, and nothing half.
    assert stored == {vote for vote in begun if (*vote[:3], vote[3] // 10) not in open_}
    run = certify(tables(5.0), folder, denoiser=world[0], dataset=world[1], pool=noting(book))
    assert run.outcome.complete
    everything = votes_of(counts_of(run))
    assert len(everything) == 8 * (20 + 100)
    assert noted(book) - begun == Counter(everything - stored)


def open_units(begun: Counter) -> set:
    """Units of ten votes that were not evaluated to their end."""
    units = Counter((*vote[:3], vote[3] // 10) for vote in begun)
    return {unit for unit, votes in units.items() if votes < 10}


def test_second_signal_ends_the_program_at_once(world, tmp_path: Path, book: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    pid = diffcert(world, folder, log, book, hangs=True)
    wait_for((folder / "hangs").exists, LIMIT_S)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: "again: stop at once" in " ".join(log.read_text().split()), LIMIT_S)
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert ended(pid, LIMIT_S) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5.0
    assert open_run(folder).config.name == "world"  # what was stored before is whole
