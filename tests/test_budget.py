"""A start stops at its budget with what has come back stored; the same call goes on from there."""

import json

import pytest

from diffcert_ray.errors import ConfigError
from diffcert_ray.pool.local import LocalPool, PoolState
from diffcert_ray.run.budget import VIEW, Budget, BudgetNote, Spending, noted_budget
from diffcert_ray.run.certify import certify
from diffcert_ray.storage.open_location import open_location
from tests.command_line import diffcert
from tests.worlds import check_same, counts_of, settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def spending(**limits):
    clock = Clock()
    return Spending(Budget(**limits), clock), clock


def test_hours_are_of_wall_time():
    spent, clock = spending(hours=2.0)
    clock.now = 7199.0
    assert spent.reached(10**9) == ""
    assert spent.said(10**9) == "2 of 2 h"
    clock.now = 7200.0
    assert spent.reached(0) == "--max-hours (2 of 2 h)"


def test_evaluations_are_those_that_have_come_back():
    spent, _ = spending(nfe=5000)
    assert spent.reached(4999) == ""
    assert spent.reached(5120) == "--max-nfe (5,120 of 5,000 NFE)"


def test_workers_cost_while_they_take_items():
    spent, clock = spending(cost=3.0, price=0.5)
    for seconds, workers in ((1800, 0), (3600, 4), (1800, 2)):
        clock.now += seconds
        spent.look(workers)
    assert spent.worker_s == 4 * 3600 + 2 * 1800
    assert spent.reached(0) == ""  # 5 hours of a worker are 2.50
    assert spent.said(0) == "2.5 of 3 for workers"
    clock.now += 3600
    spent.look(1)
    assert spent.reached(0) == "--max-cost (3 of 3 for workers)"


def test_without_a_limit_nothing_is_reached_and_nothing_said():
    spent, clock = spending(price=1.0)
    clock.now = 1e9
    spent.look(1000)
    assert spent.reached(10**12) == spent.said(10**12) == ""


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"hours": 0.0}, "--max-hours 0 must be above 0"),
        ({"nfe": -5}, "--max-nfe -5 must be above 0"),
        ({"cost": float("inf"), "price": 1.0}, "--max-cost inf must be above 0, and finite"),
        ({"cost": 5.0}, "--max-cost 5 needs the price of a worker for an hour: give --price"),
        ({"price": -1.0}, "--price -1 must be at least 0"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_with_the_remedy(limits, said):
    with pytest.raises(ConfigError, match=said):
        Budget(**limits)


def test_a_run_in_many_budgets_has_the_counts_of_one_without(tmp_path, clean, world):
    starts = 0
    while True:
        starts += 1
        run = certify(
            settings(execution={"item_s": 0.01}), tmp_path / "run", local=True,
            denoiser=world[0], dataset=world[1], max_nfe=2500,
        )  # fmt: skip
        assert starts < 50
        if run.outcome.complete:
            break
        assert run.outcome.interrupted
        assert run.outcome.reached.startswith("--max-nfe (")
        assert run.outcome.nfe >= 2500
    assert starts > 1
    check_same(run, clean)


def test_a_budget_of_money_stops_a_run_of_many_workers(tmp_path, world):
    class Crowd(LocalPool):
        def state(self):
            return PoolState(live=10**9)

    run = certify(
        settings(execution={"item_s": 0.01}), tmp_path / "run", denoiser=world[0],
        dataset=world[1], max_cost=1.0, price=0.35, pool=lambda spec, config: Crowd(spec),
    )  # fmt: skip
    assert not run.outcome.complete
    assert "--max-cost" in run.outcome.reached
    assert counts_of(run)  # what had come back is stored


def test_what_is_spent_is_noted_at_the_start_each_minute_and_at_the_end(tmp_path):
    location, clock = open_location(str(tmp_path / "run"), None), Clock()
    note = BudgetNote(location, clock)
    note.note("", now=True)
    assert noted_budget(location) == {}
    for at, said, kept in ((0.0, "a", "a"), (59.0, "b", "a"), (60.0, "c", "c"), (61.0, "d", "c")):
        clock.now = at
        note.note(said)
        assert noted_budget(location)["budget"] == kept
    note.note("e", "--max-nfe (2 of 1 NFE)", now=True)
    assert noted_budget(location) == {
        "budget": "e",
        "reached": "--max-nfe (2 of 1 NFE)",
        "at": 61.0,
    }
    location.delete(VIEW)
    location.create(VIEW, b"{torn")
    assert noted_budget(location) == {}


FEW = ("--set", "dataset.first=3", "--set", "votes.n0=4", "--set", "votes.n=8", "--set",
       "votes.unit=4", "--set", "votes.radii=[0.0]", "--set", "execution.item_s=0.001", "--set",
       "numerics.batch=8", "--local")  # fmt: skip


def test_the_command_stops_with_code_3_says_why_and_goes_on(tmp_path):
    command = ("certify", "digits", "--run", "run", *FEW)
    stopped = diffcert(*command, "--max-nfe", "1", cwd=tmp_path)
    assert stopped.returncode == 3
    assert "budget reached: --max-nfe (" in stopped.stderr
    assert "the same command continues" in " ".join(stopped.stderr.split())
    assert "budget=" in stopped.stderr  # the line of progress
    status = diffcert("status", "run", cwd=tmp_path)
    assert "of 1 NFE spent by the last start that had one; it stopped at --max-nfe (" in (
        " ".join(status.stdout.split())
    )
    told = json.loads(diffcert("status", "run", "--json", cwd=tmp_path).stdout)
    assert told["budget"]["reached"].startswith("--max-nfe")
    done = diffcert(*command, "--max-hours", "9", "--max-cost", "9", "--price", "a=0.1", "--price",
                    "b=0.2", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = diffcert(*command, "--max-cost", "9", cwd=tmp_path)
    assert refused.returncode == 2
    assert "give --price" in refused.stderr
