"""The command line: exit codes, what goes where, and messages of one or two lines."""

import re
import shlex

import pytest

from diffcert_ray.config import ConfigError
from tests.command_line import diffcert

TINY = ["--set", "dataset.first=2", "--set", "votes.n0=10", "--set", "votes.n=20", "--set",
        "votes.unit=10", "--set", "votes.radii=[0.0]", "--local"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one tiny finished run of real digits, runs/digits-quick."""
    place = tmp_path_factory.mktemp("cli")
    done = diffcert("certify", "digits-quick", *TINY, cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "stdout").write_text(done.stdout)
    (place / "stderr").write_text(done.stderr)
    return place


def test_certify_prints_the_table_on_stdout_and_progress_on_stderr(folder):
    stdout, stderr = (folder / "stdout").read_text(), (folder / "stderr").read_text()
    assert "Certified accuracy, digits-quick" in " ".join(stdout.split())
    assert "With probability at least 1 - alpha" in stdout
    assert "results: runs/digits-quick" in stdout
    last = [line for line in stderr.splitlines() if line.startswith("progress ")][-1]
    facts = dict(pair.split("=", 1) for pair in shlex.split(last)[1:])
    assert (facts["images"], facts["images_total"]) == ("2", "2")
    assert (facts["votes"], facts["workers"]) == ("60", "1")
    assert "NFE" in stderr
    assert "votes_id" in stderr


def test_a_second_certify_only_reports(folder):
    done = diffcert("certify", "digits-quick", *TINY, cwd=folder)
    assert done.returncode == 0
    assert done.stdout == (folder / "stdout").read_text()
    assert "progress" not in done.stderr


def test_report_writes_table_and_curve(folder):
    done = diffcert("report", "runs/digits-quick", cwd=folder)
    assert done.returncode == 0
    report = folder / "runs/digits-quick/report"
    assert (report / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "| sigma | images | r = 0 |" in (report / "table.md").read_text()
    assert (report / "table.csv").read_text().startswith("sigma,radius,certified_accuracy")


def test_status_says_how_far_a_run_is(folder):
    done = diffcert("status", "runs/digits-quick", cwd=folder)
    assert done.returncode == 0
    assert "2 of 2 certified" in done.stdout
    assert "60 of 60" in done.stdout
    assert "complete" in done.stdout


def test_verify_recomputes_the_run(folder):
    done = diffcert("verify", "runs/digits-quick", "--sample", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 certificates recomputed" in done.stdout
    assert "no difference" in done.stdout


def test_verify_knows_sigmas_that_a_later_start_added(folder):
    added = diffcert("certify", "digits-quick", *TINY, "--set", "votes.sigmas=[0.3]", cwd=folder)
    assert added.returncode == 0, added.stderr
    done = diffcert("verify", "runs/digits-quick", "--sample", "0", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 certificates recomputed" in done.stdout


def test_plan_measures_and_stores_nothing(folder, tmp_path):
    done = diffcert("plan", "digits-quick", "--set", "dataset.first=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"NFE/vote", done.stdout)
    assert "on one worker like this one" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_warns_of_radii_that_a_sigma_cannot_reach(tmp_path):
    overrides = ["--set", "votes.sigmas=[0.25, 0.5]", "--set", "votes.radii=[0.8]"]
    done = diffcert("plan", "digits-quick", *overrides, "--set", "dataset.first=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "at sigma 0.25 no image can reach radius 0.8" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["certify", "digitz"], 2, "did you mean 'digits'"),
        (["certify", "digits", "--set", "vote.n=3"], 2, "unknown key 'vote'"),
        (["certify", "digits", "--set", "votes.radii=[0.9]"], 2, "set votes.n to"),
        (["certify", "digits", "--set", "votes.sigmas=[1.5]"], 2, "noise_levels.max"),
        (["certify", "digits", "--images", "5"], 2, "must be A:B"),
        (["certify", "digits", "--images", "5:500"], 2, "not a range of the 100 chosen images"),
        (["certify", "digits", "--set", "dataset.first=999"], 2, "999"),
        (["certify", "digits", "--set", "model.checkpoint=gone.safetensors"], 2, "gone"),
        (["certify", "digits", "--set", "model.sha256=" + 64 * "0"], 2, "model.sha256"),
        (["certify", "digits", "--set", "execution.device=cuda"], 2, "finds no GPU"),
        (["certify", "digits", "--run", "blocked/run"], 1, "blocked"),
        (["status", "nowhere"], 1, "no run at"),
        (["report", "nowhere"], 1, "no run at"),
    ],
)
def test_bad_use_is_one_message_with_the_remedy_before_any_work(arguments, code, message, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    done = diffcert(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):  # what a shell shows with its traceback
        diffcert("--debug", "certify", "digitz", cwd=tmp_path)
