"""Whole runs on Ray whose workers die or raise: same counts, what it cost, and what is said."""

import dataclasses
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import tomli_w

from diffcert_ray import certify, open_run
from diffcert_ray.commands import main as cli
from diffcert_ray.run import certify as certification
from diffcert_ray.run.certify import MakePool
from diffcert_ray.votes.units import Item, Result
from tests.noting_pools import noted, noting, on_ray, votes_of
from tests.worlds import check_same, counts_of, settings

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BAD_IMAGE = 103
COLUMNS = ["image_id", "predicted", "radius", "n_a", "n"]


@dataclasses.dataclass(frozen=True)
class Misbehaving:
    """What ``inner`` loads, but an item that holds the bad image raises or kills its worker.

    Args:
        inner: what is loaded.
        fault: "raises" or "dies".
        mark: a file that exists once the fault has happened, which then was the last time; None
            for a fault that stays.
    """

    inner: Any
    fault: str
    mark: Path | None = None

    @property
    def device(self) -> str:
        """What the actors ask for."""
        return str(self.inner.device)

    def load(self, name: str) -> "MisbehavingWorker":
        return MisbehavingWorker(self, self.inner.load(name))

    def due(self, item: Item) -> bool:
        """Whether the fault happens in this item."""
        if all(part.unit.image_id != BAD_IMAGE for part in item.parts):
            return False
        if self.mark is None:
            return True
        try:
            self.mark.open("x").close()
        except FileExistsError:
            return False
        return True


class MisbehavingWorker:
    """A worker that misbehaves when its work is half done: evaluated, and not told."""

    def __init__(self, spec: Misbehaving, inner: Any) -> None:
        self.spec, self.inner = spec, inner
        self.numerics, self.compiled = inner.numerics, inner.compiled

    def evaluate(self, item: Item) -> Result:
        result: Result = self.inner.evaluate(item)
        if not self.spec.due(item):
            return result
        if self.spec.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("this image is broken")


Command = Callable[[MakePool], tuple[int, str]]


@pytest.fixture
def diffcert(world, tmp_path, monkeypatch, capsys, local_ray) -> Command:
    """``diffcert certify`` on the oracle world; gives its exit code and what a person sees."""
    config = tmp_path / "world.toml"
    execution = {"item_s": 0.01, "flush_s": 0.01, "actors": 2}
    config.write_text(tomli_w.dumps(settings(execution=execution)))
    monkeypatch.setattr("diffcert_ray.run.loop.FIRST_ITEM_NFE", 200.0)
    monkeypatch.setenv("COLUMNS", "300")
    command = ["diffcert", "certify", str(config), "--run", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", command)

    def run(pool: MakePool) -> tuple[int, str]:
        on_world = partial(certify, denoiser=world[0], dataset=world[1], pool=pool)
        monkeypatch.setattr(certification, "certify", on_world)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((said.err + said.out).split())

    return run


def misbehaving(fault: str, make: MakePool, mark: Path | None = None) -> MakePool:
    """The pools of ``make``, whose workers misbehave."""
    return lambda spec, config: make(Misbehaving(spec, fault, mark), config)


def test_worker_killed_in_the_middle_of_an_item_costs_that_item_and_nothing_else(
    clean, diffcert: Command, book: Path, tmp_path: Path, caplog
) -> None:
    code, said = diffcert(misbehaving("dies", noting(book, on_ray), tmp_path / "mark"))
    assert code == 0, said
    assert "Certified accuracy, world" in said
    run = open_run(tmp_path / "run")
    check_same(run, clean)
    begun, votes = noted(book), votes_of(counts_of(clean))
    assert set(begun) == votes
    again = begun - Counter(votes)  # what was evaluated in vain
    assert BAD_IMAGE in {image_id for _, image_id, _, _ in again}
    assert max(begun.values()) == 2
    # One item of 200 evaluations, and no other: nothing else had been begun on that worker.
    assert again.total() <= 20
    [lost] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("lost ")]
    assert re.match(r"lost actor=actor-\d address=\S+ node=\w{8} requeued=[12] error=", lost)


def test_image_that_always_fails_ends_the_run_incomplete_and_a_mended_one_continues(
    clean, diffcert: Command, book: Path, tmp_path: Path, caplog
) -> None:
    code, said = diffcert(misbehaving("raises", noting(book, on_ray)))
    assert code == 3, said
    [given_up] = re.findall(r"incomplete: (\d+) images were given up after repeated failures", said)
    assert f"image {BAD_IMAGE} at sigma 0.25" in said
    assert "see the log above, then run the same command again" in said
    assert "given up item=" in caplog.text
    run, votes = open_run(tmp_path / "run"), votes_of(counts_of(clean))
    stored = votes_of(counts_of(run))
    assert BAD_IMAGE not in {image_id for _, image_id, _, _ in stored}
    # The others have their certificates, and those of the run without faults.
    certified = run.certificates()[COLUMNS].set_index("image_id")
    expected = clean.certificates()[COLUMNS].set_index("image_id")
    assert len(certified) == len(expected) - int(given_up) >= 1
    assert certified.equals(expected.loc[certified.index])
    begun = noted(book)
    tries = [count for (_, image_id, _, _), count in begun.items() if image_id == BAD_IMAGE]
    # Five, and what a worker had before it was replaced, since three items in a row had failed.
    assert 5 <= min(tries) <= max(tries) <= 7
    assert max(begun[vote] for vote in stored) <= 2
    code, said = diffcert(noting(book, on_ray))
    assert code == 0, said
    assert noted(book) - begun == Counter(votes - stored)
    check_same(open_run(tmp_path / "run"), clean)
