"""verify: finds stored certificates and counts that are not what the votes give; refuses misuse."""

import dataclasses

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from diffcert_ray import certify, open_run
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import check_images
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.report.parquet_export import export_parquet
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.run.certifiable import check_certifiable
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.verification import Verification, compare_certificates, replay
from diffcert_ray.run.verify import verify_run
from diffcert_ray.run.vote_bounds import check_complete_votes, check_fixed_n
from diffcert_ray.run.vote_rows import recompute
from diffcert_ray.storage.schemas import CertificateRow
from tests.edited_parts import edited
from tests.worlds import settings


@pytest.fixture(scope="module")
def plan(world):
    plan = plan_of(load_config(settings()), world[1])
    return dataclasses.replace(plan, off_grid=check_images(world[1], world[1].ids).off_grid)


@pytest.fixture(scope="module")
def rows(clean, plan, world):
    labels = dict(zip(world[1].ids.tolist(), world[1].labels.tolist(), strict=True))
    done = clean.store.done_units()
    votes_id = clean.document.votes_id
    return list(recompute(plan, done, labels.__getitem__, method="apndc", votes_id=votes_id))


@pytest.fixture(scope="module")
def worker(world):
    config = load_config(settings())
    return WorkerSpec(config, weights_of(config, world[0]), "cpu", *world).load("verify")


def test_an_honest_run_has_no_difference(clean, rows, worker):
    found = Verification()
    compare_certificates(clean.certificates(), rows, found)
    replay(clean.units(), worker, found, sample=10**6)
    assert found.differences == []
    assert (found.certificates, found.units) == (6, 6 * 4)
    assert found.same_numerics


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("radius", 0.5), ("predicted", 0), ("n_a", 59), ("label", 9), ("correct", None)),
        *(("abstained", None), ("alpha", 0.1), ("n0", 3), ("method", "dc"), ("votes_id", "y")),
    ],
)
def test_a_changed_certificate_is_found(clean, rows, column, value):
    stored = clean.certificates().astype({"method": str, "votes_id": str})
    stored.loc[2, column] = not stored.loc[2, column] if value is None else value
    found = Verification()
    compare_certificates(stored, rows, found)
    assert len(found.differences) == 1
    assert f"stored {column} " in found.differences[0]
    assert str(stored.loc[2, "image_id"]) in found.differences[0]


def test_a_missing_certificate_and_one_without_votes_are_found(clean, rows):
    found = Verification()
    compare_certificates(clean.certificates().drop(index=0), rows, found)
    assert "no certificate is stored" in found.differences[0]
    abstention = {"predicted": -1, "abstained": True, "correct": False, "radius": 0.0}
    for claimed in ({"predicted": 1}, {"abstained": False}, {"correct": True}, {"radius": 9.0}):
        lonely = clean.certificates().assign(**abstention | claimed)
        found = Verification()
        others = [dataclasses.replace(r, **abstention | claimed) for r in rows[1:]]
        compare_certificates(lonely, others, found)
        (difference,) = found.differences
        assert "not the votes for it" in difference


def test_images_without_a_certificate_are_counted_and_shown(tmp_path):
    tables = {"dataset": {"name": "digits", "first": 5}, "noise_levels": {"levels": 6}}
    tables["votes"] = {"sigmas": [0.25], "n0": 4, "n": 20, "unit": 10, "radii": [0.0]}
    run = certify(tables, tmp_path / "run", local=True)
    assert verify_run(run, sample=0).missing == 0
    others = pc.field("image_id") != int(run.units()["image_id"][0])
    for folder in ("units", "certificates"):
        for part in list((tmp_path / "run" / folder).iterdir()):
            edited(part, pq.read_table(part).filter(others))
    found = verify_run(open_run(tmp_path / "run"), sample=0)
    assert found.missing == 1
    said = CliRunner().invoke(app, ["verify", str(tmp_path / "run"), "--sample", "1"])
    assert "INCOMPLETE: 1 images have no certificate" in said.output
    assert said.exit_code == 3


def test_units_are_drawn_anew_unless_a_seed_is_given():
    def drawn(seed):
        found = Verification(seed=seed)
        return found.chosen(10**6, 20)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert Verification().chosen(3, 20) == [0, 1, 2]


def test_verification_says_how_much_it_may_have_missed():
    found = Verification(units=20, units_stored=1000)
    assert found.missed_share == pytest.approx(0.139, abs=0.001)
    assert (1 - found.missed_share) ** 20 == pytest.approx(0.05)
    assert Verification(units=20, units_stored=20).missed_share == 0.0
    assert Verification(units=0, units_stored=9).missed_share == 1.0


def test_a_changed_count_is_found_by_evaluating_the_unit_again(clean, worker):
    units = clean.units()
    units.at[4, "counts"] = units.at[4, "counts"][::-1].copy() + 1
    found = Verification()
    replay(units, worker, found, sample=10**6)
    assert len(found.differences) == 1
    assert "evaluated again" in found.differences[0]


def test_units_of_another_numerics_kind_are_compared_and_remarked_on(clean, worker):
    found = Verification()
    replay(clean.units().assign(numerics="other"), worker, found, sample=3)
    assert not found.same_numerics
    assert found.differences == []


def certificates(**columns) -> pd.DataFrame:
    row = {"image_id": 7, "sigma": 0.25, "bound": "clopper-pearson", "n": 60} | columns
    return pd.DataFrame([row])


UNITS = pd.DataFrame([{"stream": "estimate", "target": -1}])


@pytest.mark.parametrize(("n", "bound"), [(40, "clopper-pearson"), (80, "two-class")])
def test_a_fixed_n_certificate_of_stopped_or_extended_counts_is_refused(n, bound):
    with pytest.raises(ConfigError, match=rf"{bound} certificate from {n} votes.*n = 60"):
        check_fixed_n(certificates(n=n, bound=bound), "clopper-pearson", 60)


def test_a_fixed_n_certificate_in_a_sequential_run_is_refused():
    with pytest.raises(ConfigError, match="started with sequential"):
        check_fixed_n(certificates(), "sequential", 60)


def test_two_class_on_votes_that_stopped_at_their_target_is_refused():
    with pytest.raises(ConfigError, match=r"two-class.*needs complete votes"):
        check_complete_votes(certificates(bound="two-class"), UNITS.assign(target=3))


def test_honest_certificates_pass(clean):
    check_fixed_n(clean.certificates(), "clopper-pearson", 60)
    check_fixed_n(certificates(n=0, predicted=-1), "clopper-pearson", 60)
    check_complete_votes(clean.certificates().assign(bound="two-class"), clean.units())


def add_certificate(run, **columns):
    """Store one more certificate, made from the first, as a cheating driver might."""
    row = run.certificates().iloc[0].to_dict() | columns
    with run.store.writer() as writer:
        writer.add_certificates([CertificateRow(**row)])


def test_report_and_verify_refuse_a_certificate_of_extended_counts(copied):
    check_certifiable(copied, copied.certificates())
    add_certificate(copied, n=80, n_a=80)
    with pytest.raises(ConfigError, match="certificate from 80 votes"):
        check_certifiable(copied, copied.certificates())


DIGITS = {
    "votes": {
        "sigmas": [0.25],
        "n0": 4,
        "n": 40,
        "unit": 20,
        "radii": [0.0],
        "bound": "sequential",
    },
    "noise_levels": {"levels": 6},
    "dataset": {"name": "digits", "first": 2},
}


@pytest.mark.parametrize(
    "columns",
    [
        {"bound": "two-class", "radius": 9.5},
        {"alpha": 0.5, "radius": 9.5},
        {"method": "dc", "radius": 9.5},
        {"votes_id": "z" * 16, "radius": 9.5},
        {"n0": 5, "radius": 9.5},
    ],
)
def test_report_and_verify_refuse_a_certificate_of_another_run(copied, tmp_path, columns):
    add_certificate(copied, **columns)
    (name, value), _ = columns.items()
    with pytest.raises(ConfigError, match=rf"1 certificates are not this run's.*{name} {value}"):
        series_of_run(copied)
    with pytest.raises(ConfigError, match="1 certificates are not this run's"):
        export_parquet(copied, tmp_path / "export.parquet")


def test_a_sequential_run_that_grew_in_images_votes_and_sigmas_is_verified(tmp_path):
    run = certify(DIGITS, tmp_path / "run", local=True)
    more = {"n": 80, "radii": [0.0, 0.25], "sigmas": [0.25, 0.5]}
    tables = DIGITS | {"votes": DIGITS["votes"] | more, "dataset": {"name": "digits", "first": 3}}
    run = certify(tables, tmp_path / "run", local=True)
    found = verify_run(run, sample=3)
    assert found.differences == []
    assert (found.certificates, found.units) == (6, 3)
    assert run.certificates()["n"].max() > 40


def test_a_stored_sequential_certificate_with_another_count_is_found(tmp_path):
    run = certify(DIGITS, tmp_path / "run", local=True)
    certificates = run.certificates()
    row = certificates.iloc[0].to_dict()
    with run.store.writer() as writer:
        writer.add_certificates([CertificateRow(**row | {"n": row["n"] + 1})])
    with pytest.raises(StoreError, match=r"image 9 .*4 \+ 20 votes are there of 4 \+ 21"):
        run.certificates()
    found = verify_run(run, sample=0)
    assert any("rests on votes that are not stored" in d for d in found.differences)


PLAIN = {
    "method": {"name": "dc"},
    "votes": {"bound": "local", "radii": [0.0]},
    "plain": {"draws": 8, "unit": 4},
    "noise_levels": {"levels": 4},
    "dataset": {"name": "digits", "first": 2},
}


def test_a_plain_run_is_verified_and_a_changed_radius_found(tmp_path):
    run = certify(PLAIN, tmp_path / "run", local=True)
    found = verify_run(run, sample=2)
    assert found.differences == []
    assert (found.certificates, found.units, found.votes) == (2, 2, 8)
    changed = run.certificates().iloc[0].to_dict() | {"radius": 0.5}
    with run.store.writer() as writer:
        writer.add_certificates([CertificateRow(**changed)])
    assert any("radius 0.5" in d for d in verify_run(run, sample=0).differences)


def test_evaluating_units_again_says_how_far_it_is(clean, worker):
    told: list[tuple[int, int]] = []
    found = Verification()
    replay(clean.units(), worker, found, sample=3, on_unit=lambda *where: told.append(where))
    assert told == [(0, 3), (1, 3), (2, 3)]
