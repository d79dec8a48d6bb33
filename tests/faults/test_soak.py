"""Rounds of random faults, each on a run of its own: right counts at the end, for every reader.

The pools are of this process; a killed driver is one that an exception ends at an item.
"""

import contextlib
import logging
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffcert_ray import certify, open_run
from diffcert_ray.errors import StoreError
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.storage import writer as writing
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.local_folder import LocalFolder
from tests.edited_parts import flipped
from tests.noting_pools import at_third_item
from tests.test_two_kinds import DayBack, another_kind, by_target, check, one_kind, wanted

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.fault

ROUNDS = 100
FAULTS_IN_A_ROUND = 3
LIMIT_S = 60


class KilledError(Exception):
    """The end of a driver."""


class Soak:
    """One run that things happen to.

    Args:
        folder: of the run.
        world: denoiser and images.
        chance: decides all that is random.
        foreign: folder of a run of other votes.
    """

    def __init__(
        self, folder: Path, world: Any, chance: random.Random, foreign: Path, patch: Any
    ) -> None:
        self.folder, self.world, self.chance, self.patch = folder, world, chance, patch
        self.foreign = foreign

    def drive(self, pool: Any = one_kind, **given: Any) -> Any:
        return certify(
            wanted("fixed"), self.folder, denoiser=self.world[0], dataset=self.world[1],
            pool=pool, images=(0, 3), on_damaged="recompute", **given,
        )  # fmt: skip

    def kill(self) -> None:
        def dies() -> None:
            raise KilledError

        with contextlib.suppress(KilledError):
            self.drive(at_third_item(dies))

    def stop(self) -> None:
        left = iter([False] * self.chance.randrange(1, 9))
        self.drive(should_stop=lambda: next(left, True))

    def part(self) -> Path | None:
        parts = sorted(p for f in ("units", "certificates") for p in self.folder.glob(f"{f}/*"))
        return self.chance.choice(parts) if parts else None

    def harm(self, change: Callable[[bytes], bytes]) -> None:
        if part := self.part():
            part.write_bytes(change(part.read_bytes()))

    def truncate(self) -> None:
        self.harm(lambda data: data[: self.chance.randrange(len(data))])

    def flip(self) -> None:
        self.harm(lambda data: flipped(data, self.chance.randrange(8 * len(data))))

    def delete(self) -> None:
        if part := self.part():
            part.unlink()

    def put_foreign(self) -> None:
        part = self.chance.choice(sorted(self.foreign.glob("units/*")))
        (self.folder / "units").mkdir(parents=True, exist_ok=True)
        (self.folder / "units" / part.name).write_bytes(part.read_bytes())

    def second(self) -> None:
        self.drive(at_third_item(lambda: self.drive()))

    def second_of_another_kind(self) -> None:
        self.drive(at_third_item(lambda: self.drive(another_kind)))

    def compacted(self) -> None:
        run = self.drive()
        compact(run.store, delete_sources=self.chance.random() < 0.5)

    def unwritable(self) -> None:
        """A folder that is read-only, or a disk that is full, from some file on."""
        left, create = self.chance.randrange(6), LocalFolder.create

        def refuses(location: Any, name: str, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise StoreError(f"cannot write {name}: no space left on device")
            create(location, name, data)

        with self.patch.context() as patched, contextlib.suppress(StoreError):
            patched.setattr(LocalFolder, "create", refuses)
            self.drive()

    def clock_a_day_back(self) -> None:
        with self.patch.context() as patched:
            patched.setattr(writing, "datetime", DayBack)
            self.drive(self.chance.choice([one_kind, another_kind]))


FAULTS = (
    *(Soak.kill, Soak.stop, Soak.truncate, Soak.flip, Soak.delete, Soak.put_foreign, Soak.second),
    *(Soak.second_of_another_kind, Soak.unwritable, Soak.clock_a_day_back, Soak.compacted),
)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Ends what hangs."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def kinds(world, tmp_path_factory):
    """The counts of an undisturbed run by each kind, and the folder of a run of another seed."""
    counts = []
    for pool in (one_kind, another_kind):
        folder = tmp_path_factory.mktemp("clean") / "run"
        given = {"denoiser": world[0], "dataset": world[1], "images": (0, 3), "pool": pool}
        counts.append(by_target(certify(wanted("fixed"), folder, **given)))
    other = tmp_path_factory.mktemp("foreign") / "run"
    tables = wanted("fixed")
    tables["votes"]["seed"] = 7
    certify(tables, other, **given)
    return counts, other


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_run_survives_random_faults(kinds, world, tmp_path, seed, monkeypatch):
    chance = random.Random(seed)
    counts, foreign = kinds
    soak = Soak(tmp_path / "run", world, chance, foreign, monkeypatch)
    with within(LIMIT_S):
        soak.drive(should_stop=lambda: chance.random() < 0.3)
        faults = [chance.choice(FAULTS) for _ in range(FAULTS_IN_A_ROUND)]
        for fault in faults:
            logger.info("fault: %s", fault.__name__)
            fault(soak)
        assert soak.drive().outcome.complete
        again = soak.drive()
        assert (again.outcome.complete, again.outcome.nfe) == (True, 0)
    run = open_run(tmp_path / "run")
    check(run)
    assert series_of_run(run)
    found = by_target(run)
    assert set(found) == set(counts[0])
    assert all(found[key] in (counts[0][key], counts[1][key]) for key in found)
    if not {Soak.second_of_another_kind, Soak.clock_a_day_back}.intersection(faults):
        assert found == counts[0]
