"""verify: finds stored certificates and counts that are not what the votes give; refuses misuse."""

import dataclasses

import pandas as pd
import pytest

from diffcert_ray import certify
from diffcert_ray.api import plan_of
from diffcert_ray.config import ConfigError, load_config
from diffcert_ray.results import recompute
from diffcert_ray.verify import Verification, check_certifiable, compare_certificates, replay
from diffcert_ray.worker import WorkerSpec, weights_of
from tests.worlds import settings, small_world


@pytest.fixture(scope="module")
def world():
    return small_world()


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    return certify(settings(), folder, local=True, denoiser=world[0], dataset=world[1])


@pytest.fixture(scope="module")
def plan(world):
    return plan_of(load_config(settings()), world[1])


@pytest.fixture(scope="module")
def rows(run, plan, world):
    labels = dict(zip(world[1].ids.tolist(), world[1].labels.tolist(), strict=True))
    done = run.store.done_units()
    return list(recompute(plan, done, labels.__getitem__, method="apndc", votes_id="x"))


@pytest.fixture(scope="module")
def worker(world):
    config = load_config(settings())
    return WorkerSpec(config, weights_of(config, world[0]), "cpu", *world).load("verify")


def test_an_honest_run_has_no_difference(run, rows, worker):
    found = Verification()
    compare_certificates(run.certificates(), rows, found)
    replay(run.units(), worker, found, sample=10**6)
    assert found.differences == []
    assert (found.certificates, found.units) == (6, 6 * 4)
    assert found.same_numerics


@pytest.mark.parametrize(("column", "value"), [("radius", 0.5), ("predicted", 0), ("n_a", 59)])
def test_a_changed_certificate_is_found(run, rows, column, value):
    stored = run.certificates()
    stored.loc[2, column] = value
    found = Verification()
    compare_certificates(stored, rows, found)
    assert len(found.differences) == 1
    assert column in found.differences[0]
    assert str(stored.loc[2, "image_id"]) in found.differences[0]


def test_a_missing_certificate_and_one_without_votes_are_found(run, rows):
    found = Verification()
    compare_certificates(run.certificates().drop(index=0), rows, found)
    assert "no certificate is stored" in found.differences[0]
    lonely = run.certificates().assign(predicted=1)
    found = Verification()
    compare_certificates(lonely, [dataclasses.replace(r, predicted=1) for r in rows[1:]], found)
    assert "not the votes for it" in found.differences[0]


def test_a_changed_count_is_found_by_evaluating_the_unit_again(run, worker):
    units = run.units()
    units.at[4, "counts"] = units.at[4, "counts"][::-1].copy() + 1
    found = Verification()
    replay(units, worker, found, sample=10**6)
    assert len(found.differences) == 1
    assert "evaluated again" in found.differences[0]


def test_units_of_another_numerics_kind_are_compared_and_remarked_on(run, worker):
    found = Verification()
    replay(run.units().assign(numerics="other"), worker, found, sample=3)
    assert not found.same_numerics
    assert found.differences == []


def certificates(**columns) -> pd.DataFrame:
    row = {"image_id": 7, "sigma": 0.25, "bound": "clopper-pearson", "n": 60} | columns
    return pd.DataFrame([row])


UNITS = pd.DataFrame([{"stream": "estimate", "target": -1}])


@pytest.mark.parametrize(("n", "bound"), [(40, "clopper-pearson"), (80, "two-class")])
def test_a_fixed_n_certificate_of_stopped_or_extended_counts_is_refused(plan, n, bound):
    with pytest.raises(ConfigError, match=rf"{bound} certificate from {n} votes.*n = 60"):
        check_certifiable(plan, certificates(n=n, bound=bound), UNITS)


def test_a_fixed_n_certificate_in_a_sequential_run_is_refused(plan):
    sequential = dataclasses.replace(plan, bound="sequential")
    with pytest.raises(ConfigError, match="started with sequential"):
        check_certifiable(sequential, certificates(), UNITS)


def test_two_class_on_votes_that_stopped_at_their_target_is_refused(plan):
    with pytest.raises(ConfigError, match=r"two-class.*needs complete votes"):
        check_certifiable(plan, certificates(bound="two-class"), UNITS.assign(target=3))


def test_honest_certificates_pass(plan, run):
    check_certifiable(plan, run.certificates(), run.units())
    check_certifiable(plan, certificates(n=0, predicted=-1), UNITS)
