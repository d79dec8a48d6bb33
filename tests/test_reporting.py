"""Runs and logs into reports: what is exported is read back, and files land where they should."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.commands.main import app
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.export import export_logs
from diffcert_ray.report.sources import open_sources, pictures_of, series_of_run
from diffcert_ray.run.certify import certify
from diffcert_ray.run.stored import open_run
from tests.worlds import settings, small_world

RADII = [0.0, 0.1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of an exact world at two sigmas."""
    world, data = small_world()
    folder = tmp_path_factory.mktemp("reporting") / "world"
    config = settings(votes={"sigmas": [0.25, 0.3]})
    certify(config, folder, local=True, denoiser=world, dataset=data)
    return open_run(folder)


def test_an_exported_run_is_reported_from_its_logs_as_from_the_run(run, tmp_path):
    logs = export_logs(run)
    assert list(logs) == [f"world-clopper-pearson-sigma-{s}.tsv" for s in ("0.25", "0.3")]
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    found = open_sources([str(tmp_path / name) for name in logs])
    assert found.runs == ()
    rows = run.certificates()
    for one, sigma in zip(found.series, (0.25, 0.3), strict=True):
        exact = certified_accuracy(rows[rows["sigma"] == sigma], RADII)
        pd.testing.assert_frame_equal(certified_accuracy(one.certificates, RADII), exact)


def test_a_run_says_what_it_is_and_what_it_cost(run):
    (one,) = series_of_run(run)
    facts = dict(one.facts)
    assert facts["votes_id"] == run.document.votes_id
    assert facts["plan_id"] == run.document.plan_id
    assert facts["certified"] == "12 of 12 (images x sigmas)"
    assert facts["votes cast"] == "960, in 48 units; 0 in no certificate"
    units = run.units()
    assert facts["evaluations"] == f"{units['nfe'].sum():,} NFE"
    (kind,) = units["numerics"].unique()
    assert facts["numerics kinds"] == f"1: {kind} (48 units)"
    assert facts["units that kinds disagree on"] == "0 (the one whose part sorts first counts)"
    assert "[votes]" in one.config
    assert one.command.startswith("diffcert certify world.toml --run ")
    assert one.seed == 0


def test_votes_beyond_the_look_that_stopped_an_image_are_counted(tmp_path):
    world, data = small_world(images=2)
    votes = {"bound": "sequential", "n": 2000, "unit": 20, "radii": [0.05]}
    certify(settings(votes=votes), tmp_path / "run", local=True, denoiser=world, dataset=data)
    run = open_run(tmp_path / "run")
    units, rows = run.units(), run.certificates()
    beyond = (units["stop"] - units["start"]).sum() - (rows["n0"] + rows["n"]).sum()
    assert beyond > 0
    (one,) = series_of_run(run)
    assert dict(one.facts)["votes cast"].endswith(f"; {beyond:,} in no certificate")


def test_pictures_of_another_dataset_are_not_shown(run):
    found = pictures_of(run)  # the configuration says digits, the run was of a world
    assert found.image is None
    assert "not the run's" in found.missing


def test_report_writes_into_the_first_run_and_a_log_beside_itself(run, tmp_path):
    logs = CliRunner().invoke(app, ["export", run.address, "--output", str(tmp_path)])
    assert logs.exit_code == 0, logs.output
    log = str(tmp_path / "world-clopper-pearson-sigma-0.3.tsv")
    both = CliRunner().invoke(app, ["report", run.address, log])
    assert both.exit_code == 0, both.exception
    text = run.store.location.read("report/table.md").decode()
    assert "Certified accuracy side by side" in text
    alone = CliRunner().invoke(app, ["report", log, "--published", "cifar10"])
    assert alone.exit_code == 0, alone.exception
    page = (tmp_path / f"{log}-report" / "index.html").read_text()
    assert "published: APNDC" in page
    tex = (tmp_path / f"{log}-report" / "table.tex").read_text()
    assert r"\begin{tabular}" in tex


def test_two_reports_of_one_run_are_equal(run):
    def files() -> dict[str, bytes]:
        assert CliRunner().invoke(app, ["report", run.address]).exit_code == 0
        names = ("index.html", "table.md", "table.tex", "table.csv", "curve.svg")
        return {name: run.store.location.read(f"report/{name}") for name in names}

    assert files() == files()


def test_a_run_without_certificates_is_refused(run, tmp_path):
    world, data = small_world()
    begun = certify(
        settings(), tmp_path / "begun", local=True, denoiser=world, dataset=data,
        should_stop=lambda: True,
    )  # fmt: skip
    assert begun.certificates().empty
    with pytest.raises(ConfigError, match="no certificates yet"):
        open_sources([begun.address])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A sequential run that was stopped when some of its 30 images had finished."""
    world, data = small_world(images=30)
    folder = tmp_path_factory.mktemp("stopped") / "world"
    votes = {"bound": "sequential", "n": 1000, "unit": 20, "radii": RADII}
    polls = iter(range(1000))
    run = certify(
        settings(votes=votes, execution={"item_s": 0.02}), folder, local=True, denoiser=world,
        dataset=data, should_stop=lambda: next(polls) >= 25,
    )  # fmt: skip
    assert 0 < len(run.certificates()) < 20
    return run


def test_the_figures_of_a_stopped_run_do_not_exceed_those_of_the_finished_one(stopped, tmp_path):
    rows = stopped.certificates()
    line = f"INCOMPLETE: {len(rows)} of 30 images at sigma 0.25 finished"
    done = CliRunner().invoke(app, ["report", stopped.address])
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith(line)
    assert f"{len(rows)} of 30" in done.stdout.split("Certified accuracy")[1]
    shown = CliRunner().invoke(app, ["report", stopped.address, "--json"])
    found = json.loads(shown.stdout)
    assert found["series"][0]["unfinished"].startswith(line)
    assert found["series"][0]["facts"]["certified"].startswith(f"{len(rows)} of 30 ")
    assert found["certified_accuracy"][0]["n_missing"] == 30 - len(rows)
    world, data = small_world(images=30)
    folder = shutil.copytree(stopped.address, tmp_path / "world")
    whole = certify(
        settings(votes=stopped.config.votes.model_dump()), folder, local=True, denoiser=world,
        dataset=data,
    )  # fmt: skip
    assert whole.asked() == {0.25: 30}
    finished = certified_accuracy(whole.certificates(), RADII, asked=whole.asked())
    assert set(finished["n_missing"]) == {0}
    for stored, exact in zip(found["certified_accuracy"], finished.to_dict("records"), strict=True):
        for name in ("certified_accuracy", "interval_low", "guaranteed_low"):
            assert stored[name] <= exact[name]
        assert stored["interval_high"] >= exact["interval_high"]


def test_logs_of_a_stopped_run_are_named_so_and_the_export_says_it(stopped, run, tmp_path):
    done = CliRunner().invoke(app, ["export", stopped.address, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.exception
    assert done.stderr.startswith("INCOMPLETE")
    (log,) = tmp_path.glob("*.tsv")
    assert log.name == "world-sequential-sigma-0.25-incomplete.tsv"
    assert open_sources([str(log)]).series[0].name == log.name
    done = CliRunner().invoke(app, ["export", run.address, "--output", str(tmp_path / "whole")])
    assert "INCOMPLETE" not in done.stderr


def test_unread_images_are_named(run):
    rows = run.certificates()
    assert series_of_run(run)[0].notes == ()
    unread = rows.assign(nfe=np.where(rows["image_id"] == 101, 0, rows["nfe"]))
    other = type(run)(run.address, run.store, run.document)
    object.__setattr__(other, "certificates", lambda: unread)
    (note,) = series_of_run(other)[0].notes
    assert "image_id 101" in note
