"""Two drivers of different numerics kinds on the same images: certificates are what units give."""

import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import torch

from diffcert_ray import ABSTAIN, certify, open_run
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.errors import StoreError, VotesError
from diffcert_ray.pool.local import LocalPool, Pool
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.run import certify as certification
from diffcert_ray.run import vote_runs
from diffcert_ray.run.kind import kind_of
from diffcert_ray.run.verify import verify_run
from diffcert_ray.storage import writer as writing
from diffcert_ray.storage.compaction import compact
from diffcert_ray.tools.exact_worlds import GaussianClasses
from tests.noting_pools import at_third_item
from tests.worlds import counts_of, settings

IMAGES = 3
NEVER_WAITS = {"item_s": 0.001, "flush_s": 0.001}
VOTES = {
    "fixed": {},
    "sequential": {"bound": "sequential"},
    "target": {"estimate": "target"},
}


class DriverDiedError(Exception):
    """A driver's end that leaves it no time."""


class DayBack(datetime):
    """A clock that is a day behind."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) - timedelta(days=1)


@dataclass(frozen=True)
class Rough:
    """What ``inner`` loads, with networks whose numbers are coarse."""

    inner: Any
    device: str = "cpu"

    def load(self, name: str) -> Any:
        inner = self.inner
        network = inner.network("denoiser")
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                other = torch.randn(parameter.shape, generator=noise)
                parameter.mul_(1 + 0.3 * other)
        return replace(inner, denoiser=network).load(name)


def another_kind(spec: Any, config: Config) -> Pool:
    """Workers whose network returns other numbers, far more often so than a processor would."""
    world = spec.denoiser
    other = GaussianClasses(world.means.roll(1, 0) * 0.5 + world.means * 0.5, world.tau)
    return LocalPool(replace(spec, denoiser=other))


def one_kind(spec: Any, config: Config) -> Pool:
    return LocalPool(spec)


def by_target(run: Any) -> dict[Any, dict[int, int]]:
    """Stored counts: (image, stream, first vote, class asked for) -> class -> votes."""
    return {
        tuple(u[k] for k in ("image_id", "stream", "start", "target")): dict(
            zip(u["classes"].tolist(), u["counts"].tolist(), strict=True)
        )
        for u in run.units().to_dict("records")
    }


def check(run: Any) -> int:
    """Every certificate is what the counted units give; how many units kinds disagree on."""
    counts, config = by_target(run), run.config.votes
    certificates = run.certificates()
    assert sorted(certificates["image_id"]) == list(range(100, 100 + IMAGES))
    for row in certificates.to_dict("records"):
        image_id = row["image_id"]
        select = counts[image_id, "select", 0, ALL_CLASSES]
        select = {k: n for k, n in select.items() if k >= 0}
        chosen = min(select, key=lambda c: (-select[c], c))
        looks = range(0, row["n"], 20)
        target = chosen if config.estimate == "target" else ALL_CLASSES
        votes = [counts[image_id, "estimate", a, target].get(chosen, 0) for a in looks]
        assert row["n_a"] == sum(votes)
        assert row["predicted"] in (chosen, ABSTAIN)
        if config.bound == "clopper-pearson":
            assert row["n"] == 60
            off = {"slack": row["slack"], "taken_off": row["taken_off"]}
            given = executed_certificate(row["n_a"], 60, sigma=0.25, alpha=0.001, **off)
            assert (row["radius"], row["p_low"]) == (given.radius, given.p_low)
            assert row["abstained"] == given.abstained
    run.store.units()
    return int(run.store.differing)


def wanted(votes: str) -> dict[str, Any]:
    """The settings of a small run, cut into many items and parts."""
    return settings(votes=VOTES[votes], execution=NEVER_WAITS, noise_levels={"levels": 8})


@pytest.fixture
def drive(world, tmp_path):
    def driven(pool: Any, votes: Any = "fixed", **given: Any) -> Any:
        return certify(
            wanted(votes),
            tmp_path / "run",
            denoiser=world[0],
            dataset=world[1],
            pool=pool,
            images=(0, IMAGES),
            **given,
        )

    return driven


@pytest.mark.parametrize("compacts", [False, True])
@pytest.mark.parametrize("votes", ["fixed", "sequential"])
@pytest.mark.parametrize("kinds", [(one_kind, another_kind), (another_kind, one_kind)])
def test_certificates_are_what_the_counted_units_give(drive, kinds, votes, compacts):
    def meanwhile() -> None:
        run = drive(kinds[1], votes)
        if compacts:
            compact(run.store, delete_sources=True)

    run = drive(at_third_item(meanwhile, kinds[0]), votes)
    assert run.outcome.complete
    assert check(run) > 0
    compact(run.store, delete_sources=True)
    assert check(open_run(run.address)) > 0


def left_by_dying_drivers(drive, folder, kinds, votes, monkeypatch) -> None:
    """Both drivers end after their last part, before they look at what the other one stored."""

    def dies(opened: Any) -> bool:
        raise DriverDiedError

    def meanwhile() -> None:
        with pytest.raises(DriverDiedError):
            drive(kinds[1], votes)

    with monkeypatch.context() as patched:
        patched.setattr(certification, "_in_agreement", dies)
        with pytest.raises(DriverDiedError):
            drive(at_third_item(meanwhile, kinds[0]), votes)
    with pytest.raises((AssertionError, KeyError, StoreError, VotesError)):
        check(open_run(folder))


@pytest.mark.parametrize("votes", ["fixed", "sequential", "target"])
@pytest.mark.parametrize(
    ("kinds", "behind"), [((one_kind, another_kind), False), ((another_kind, one_kind), True)]
)
def test_the_same_command_heals_what_drivers_left_that_died(
    drive, tmp_path, kinds, votes, behind, monkeypatch
):
    folder = tmp_path / "run"
    left_by_dying_drivers(drive, folder, kinds, votes, monkeypatch)
    if behind:  # this machine's clock is a day behind the others'
        monkeypatch.setattr(writing, "datetime", DayBack)
    assert check(drive(one_kind, votes)) > 0
    stored = sorted((folder / "certificates").iterdir())
    again = drive(one_kind, votes)
    assert again.outcome.nfe == 0
    assert sorted((folder / "certificates").iterdir()) == stored  # nothing more to heal


def test_part_names_alone_tell_which_delivery_counts(drive, tmp_path, monkeypatch):
    """The clock of the second driver is behind: its units count, though they came later."""
    drive(one_kind)
    counted = counts_of(open_run(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "first")
    monkeypatch.setattr(writing, "datetime", DayBack)
    shutil.rmtree(tmp_path / "run" / "units")
    shutil.rmtree(tmp_path / "run" / "certificates")
    other = counts_of(drive(another_kind))
    assert other != counted
    for folder in ("units", "certificates"):
        shutil.copytree(tmp_path / "first" / folder, tmp_path / "run" / folder, dirs_exist_ok=True)
    monkeypatch.undo()
    assert counts_of(open_run(tmp_path / "run")) == other
    drive(one_kind)
    run = open_run(tmp_path / "run")
    assert counts_of(run) == other
    assert check(run) > 0


def test_verify_and_report_find_no_difference_after_two_kinds(tmp_path):
    tables = {"dataset": {"name": "digits", "first": 3}, "noise_levels": {"levels": 6}}
    tables["votes"] = {"sigmas": [0.5], "n0": 4, "n": 20, "unit": 10, "radii": [0.0]}
    tables["execution"] = NEVER_WAITS

    def rough(spec: Any, config: Config) -> Pool:
        return LocalPool(Rough(spec))

    def meanwhile() -> None:
        certify(tables, tmp_path / "run", pool=rough)

    certify(tables, tmp_path / "run", pool=at_third_item(meanwhile, one_kind))
    run = open_run(tmp_path / "run")
    run.store.units()
    assert run.store.differing > 0
    found = verify_run(run, sample=0)
    assert (found.certificates, found.missing, found.differences) == (3, 0, [])
    assert series_of_run(run)


def test_one_certificate_that_its_votes_do_not_bear_out_is_found_wherever_it_stands(
    drive, monkeypatch
):
    monkeypatch.setattr(vote_runs, "AT_ONCE", 2)  # of three: the last stands in a part of its own
    run = drive(one_kind)
    kind, held = kind_of(run.config), run.store.done_units()
    stored = run.certificates()
    assert kind.borne_out(run.config, held, stored)
    for position in range(IMAGES):
        other = stored.copy()
        other.loc[position, "n_a"] -= 1
        assert not kind.borne_out(run.config, held, other)
