"""Whole runs whose store is damaged, full, read-only or shared: same counts, and what is said."""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from diffcert_ray import certify, open_run
from diffcert_ray.errors import StoreError
from diffcert_ray.pool.local import LocalPool
from diffcert_ray.run.certify import MakePool
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.store import RunStore
from tests.forked_drivers import ended, forked
from tests.noting_pools import at_third_item, noted, noting, votes_of
from tests.s3_proxy import Faults, proxied
from tests.s3_server import BUCKET
from tests.worlds import check_same, counts_of, settings

pytestmark = pytest.mark.usefixtures("waited")

LIMIT_S = 90.0


@dataclass
class Place:
    """Where a test's run is, and what its driver needs to know of that."""

    address: str
    options: dict
    pool: MakePool

    def start(self, world, **how):
        execution = {"item_s": 0.05, "flush_s": 1e-3, "storage_options": self.options}
        return certify(
            settings(execution=execution),
            self.address,
            **({"denoiser": world[0], "dataset": world[1], "pool": self.pool} | how),
        )

    @cached_property
    def run(self):
        """Opened once: a client of an object store takes a second to make."""
        return open_run(self.address, self.options)

    @property
    def store(self) -> RunStore:
        return self.run.store

    def rewrite(self, name: str, data: bytes) -> None:
        """What no driver does: change a stored file."""
        if self.options:
            path = f"{self.address.removeprefix('s3://')}/{name}"
            self.store.location.filesystem().pipe_file(path, data)
        else:
            Path(self.address, name).write_bytes(data)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.fault)])
def place(request, tmp_path, book) -> Place:
    if request.param == "disk":
        return Place(str(tmp_path / "run"), {}, noting(book))
    options = {"endpoint_url": request.getfixturevalue("endpoint")}
    return Place(f"s3://{BUCKET}/{secrets.token_hex(6)}", options, noting(book))


def rows_of(place: Place, name: str) -> set:
    """The votes in one part."""
    rows = place.store.read_rows("units", ["sigma", "image_id", "stream", "start", "stop"])
    at = rows.sources.index(name)
    first = rows.bounds[at - 1] if at else 0
    table = rows.table.slice(first, rows.bounds[at] - first).to_pylist()
    return {
        (r["sigma"], r["image_id"], r["stream"], v)
        for r in table
        for v in range(r["start"], r["stop"])
    }


# --- damaged by hand


@pytest.mark.parametrize(
    "harm",
    [
        "truncated",
        "last-deleted",
        pytest.param("deleted", marks=pytest.mark.fault),
    ],
)
def test_part_harmed_by_hand_is_refused_or_its_votes_are_cast_again_as_asked(
    world, clean, place, book, harm
):
    place.start(world)
    names = place.store.location.list("units")
    assert len(names) >= 3
    name = names[-1] if harm == "last-deleted" else names[1]
    lost, begun = rows_of(place, name), noted(book)
    data = place.store.location.read(name)
    if harm.endswith("deleted"):
        place.store.location.delete(name)
    else:
        place.rewrite(name, data[:-20])
    with pytest.raises(StoreError) as caught:
        place.start(world)
    message = str(caught.value)
    assert place.address in message
    assert "--recompute-damaged" in message
    if harm == "last-deleted":  # the numbering of the parts has no gap: the certificates tell
        assert "certificates in" in message
        assert "A part was deleted: restore it from a copy" in message
    else:
        # Nobody knows the checksum in the name of a part that is gone.
        said = f"{name.rpartition('-')[0]}*.parquet" if harm == "deleted" else name
        assert f"1 damaged files in {place.address}: {said}" in message
    assert noted(book) == begun  # refused before any work
    run = place.start(world, on_damaged="recompute")
    assert run.outcome.complete
    assert noted(book) - begun == Counter(lost)
    if harm == "truncated":
        compact(RunStore.open(place.address, place.options, on_damaged="recompute"))
    elif harm == "deleted":
        place.store.location.create(name, data)  # restored from a copy: its votes are there twice
    check_same(place.run, clean)
    begun = noted(book)
    assert place.start(world).outcome.complete
    assert noted(book) == begun


def test_certificates_deleted_by_hand_are_made_again_without_any_vote(world, clean, place, book):
    place.start(world)
    begun = noted(book)
    for name in place.store.location.list("certificates"):
        place.store.location.delete(name)
    assert place.start(world).outcome.complete
    assert noted(book) == begun
    check_same(place.run, clean)


# --- shared


def test_two_drivers_on_one_run_by_mistake_store_the_same_and_each_is_told(
    world, clean, place, book, caplog
):
    drivers = []
    first = place.start(
        world, pool=at_third_item(lambda: drivers.append(place.start(world)), place.pool)
    )
    [second] = drivers
    assert first.outcome.complete
    assert second.outcome.complete
    check_same(place.run, clean)
    begun = noted(book)
    stored_by_first = begun.total() - second.outcome.votes
    assert stored_by_first == clean.outcome.votes  # it did not know of the other
    assert 0 < second.outcome.votes < clean.outcome.votes  # what the first had stored, it used
    assert max(begun.values()) == 2
    [warning] = [r.getMessage() for r in caplog.records if "another driver" in r.getMessage()]
    assert f"works on the same images of {place.address}" in warning
    assert "--images" in warning
    again = place.start(world)
    assert again.outcome.nfe == 0


def test_drivers_with_images_of_their_own_are_not_told_of_each_other(world, clean, place, caplog):
    another = at_third_item(lambda: place.start(world, images=(3, 6)))
    place.start(world, images=(0, 3), pool=another)
    check_same(place.run, clean)
    assert "another driver" not in caplog.text


class Echo(LocalPool):
    """A pool that delivers every result twice, and the first one once more at the end."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.first: list = []

    def collect(self, timeout_s: float):
        results = super().collect(timeout_s)
        self.first = self.first or results
        return [*results, *results, *self.first]


def test_results_delivered_again_and_again_count_once(world, clean, place):
    assert place.start(world, pool=lambda spec, config: Echo(spec)).outcome.complete
    check_same(place.run, clean)
    raw = place.store.read_rows("units", ["image_id", "start"])
    assert raw.table.num_rows == len(counts_of(clean))


# --- cannot be written


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.call(mount):
        pytest.skip("a file system of a few pages needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], timeout=30, check=True)


def stuff(folder: Path) -> None:
    """Take all space that is left."""
    file = folder / "stuff"
    with file.open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(b"x" * 4096)
    assert shutil.disk_usage(folder).free == 0


def test_disk_that_runs_full_ends_the_run_and_space_lets_the_same_command_continue(
    world, clean, small_disk, book
):
    place = Place(str(small_disk / "run"), {}, noting(book))
    with pytest.raises(StoreError) as caught:
        place.start(world, pool=at_third_item(lambda: stuff(small_disk), place.pool))
    message = str(caught.value)
    assert re.search(rf"cannot write {place.address}/units/part-\S+ ", message)
    assert "the disk is full: free space there, or continue the run on another disk" in message
    assert re.search(r"\d+ rows are not stored", message)
    assert "the same command continues from it" in message
    before, begun = votes_of(counts_of(place.run)), noted(book)
    assert 0 < len(before) < clean.outcome.votes
    with pytest.raises(StoreError, match="the disk is full"):
        place.start(world)  # still: refused before any work
    assert noted(book) == begun
    (small_disk / "stuff").unlink()
    assert place.start(world).outcome.complete
    assert noted(book) - begun == Counter(votes_of(counts_of(clean)) - before)
    check_same(place.run, clean)


def test_read_only_store_is_refused_before_any_work_and_a_finished_run_can_still_be_read(
    world, clean, small_disk, book
):
    place = Place(str(small_disk / "run"), {}, noting(book))
    place.start(world, images=(0, 3))
    begun = noted(book)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], timeout=30, check=True)
    with pytest.raises(StoreError, match="it is mounted read-only: remount it, or give another"):
        place.start(world)
    assert noted(book) == begun
    assert place.start(world, images=(0, 3)).outcome.complete  # nothing is left to do or to write
    with pytest.raises(StoreError, match="mounted read-only"):
        Place(str(small_disk / "new"), {}, noting(book)).start(world)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], timeout=30, check=True)
    assert place.start(world).outcome.complete
    check_same(place.run, clean)


# --- killed while it writes to S3


@pytest.mark.fault
@pytest.mark.forks
@pytest.mark.parametrize("at", [0, 3])
def test_driver_killed_in_the_middle_of_a_put_leaves_no_half_object(
    world, clean, endpoint, tmp_path, book, at
):
    address = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    faults = Faults({"PUT": [*[""] * at, "before"]}, where="/units/")
    pids: list[int] = []
    cut = faults.take

    def kill_instead(method: str) -> str:
        fault = cut(method)
        if fault == "before":
            os.kill(pids[0], 9)
        return fault

    faults.take = kill_instead
    with proxied(endpoint, faults) as url:
        killed = Place(address, {"endpoint_url": url}, noting(book))
        pids.append(forked(lambda: killed.start(world), tmp_path / "log"))
        assert ended(pids[0], LIMIT_S) == -9, (tmp_path / "log").read_text()[-3000:]
    place = Place(address, {"endpoint_url": endpoint}, noting(book))
    before, begun = votes_of(counts_of(place.run)), noted(book)
    assert before < votes_of(counts_of(clean))
    assert place.start(world).outcome.complete
    assert noted(book) - begun == Counter(votes_of(counts_of(clean)) - before)
    check_same(place.run, clean)
