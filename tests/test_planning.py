"""What a run will take: prices, doubts, and runs without votes."""

import dataclasses

import numpy as np
import pytest

from diffcert_ray.config.loading import load_config
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.run.estimate import bills, estimate_plain
from diffcert_ray.run.kind import kind_of
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.reachable import doubts, must_abstain
from tests.test_plain_run import plain_settings, separated_world
from tests.worlds import settings, small_world


def doubts_of(**tables: object) -> list[str]:
    config = load_config(settings(**tables))
    _, data = small_world()
    return doubts(config, plan_of(config, data), 4, sifted=config.kind_name == "diffusion")


def test_workers_divide_the_time_and_not_the_cost():
    one, two = (bills(6.0, {"spot": 0.5, "big": 2.0}, workers) for workers in (1, 4))
    assert [(b.name, b.cost, b.wall_hours) for b in one] == [("spot", 3.0, 6.0), ("big", 12.0, 6.0)]
    assert [(b.cost, b.wall_hours) for b in two] == [(3.0, 1.5), (12.0, 1.5)]
    with pytest.raises(ValueError, match="at least 0"):
        bills(1.0, {"x": -1.0}, 1)


def test_sound_settings_raise_no_doubt():
    assert doubts_of() == []


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"votes": {"sigmas": [0.25, 0.5], "radii": [0.5]}}, "at sigma 0.25 no image can reach"),
        ({"votes": {"bound": "sequential"}}, "it can hardly stop early"),
        (
            {"votes": {"bound": "sequential", "unit": 1, "radii": [0.0]}},
            "the largest of votes.radii",
        ),
        ({"votes": {"estimate": "target"}, "sift": {"rule": "full"}}, "saves no evaluation"),
        ({"votes": {"estimate": "target"}, "method": {"name": "classify"}}, "saves no evaluation"),
        ({"sift": {"rule": "threshold", "keep": 4}}, "never drops"),
        (
            {
                "sift": {"rule": "threshold", "keep": 1},
                "noise_levels": {"grid": "linear", "weights": "reference", "levels": 1001},
            },
            "refines on 126 points",
        ),
    ],
)
def test_settings_that_can_hardly_be_meant_are_named_with_the_remedy(tables, said):
    (found,) = doubts_of(**tables)
    assert said in found
    assert any(word in found for word in ("set ", "add ", "raise "))


def test_a_run_without_votes_is_counted_exactly_and_measured():
    world, data = separated_world()
    config = load_config(plain_settings())
    plan = plan_of(config, data)
    worker = WorkerSpec(config, weights_of(config, world), "cpu", world, data).load("plan")
    found = estimate_plain(plan, worker, trial_s=0.01)
    assert (found.images, found.draws, found.nfe) == (5, 400, 400 * 2 * 4)
    assert found.units == 5 * 3
    assert 1 <= found.trial_draws <= plan.unit
    assert found.worker_hours == pytest.approx(found.nfe / found.nfe_per_s / 3600)
    assert np.isfinite(found.nfe_per_s)
    rows = found.units * 2 * 4
    assert 8 * rows < found.stored_bytes < 60 * rows  # two numbers of 8 bytes, and little beside


def test_where_n_certifies_nothing_at_all_every_image_must_abstain_and_that_is_said(caplog):
    config = load_config(settings(votes={"n": 9, "radii": [0.0]}))
    plan = plan_of(config, small_world()[1])
    (sentence,) = must_abstain(plan)
    assert "must abstain, at radius 0 too: n = 9" in sentence
    needed = int(sentence.split("set votes.n to ")[1].split()[0])
    enough = dataclasses.replace(plan, n=needed)
    assert must_abstain(enough) == []
    assert must_abstain(dataclasses.replace(plan, n=needed - 1))
    kind_of(config).check(config, plan)
    assert sentence in caplog.text
