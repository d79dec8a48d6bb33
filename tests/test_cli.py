"""The command line: exit codes, what goes where, and messages of one or two lines."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest

import diffcert_ray
from diffcert_ray import certify
from diffcert_ray.errors import ConfigError
from diffcert_ray.run import estimate as planning
from tests.command_line import diffcert
from tests.worlds import settings, small_world

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


def test_version_is_that_of_the_package(tmp_path):
    done = diffcert("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"diffcert_ray {diffcert_ray.__version__}\n")
    assert diffcert("--version", "certify", cwd=tmp_path).returncode == 0


def test_certify_prints_the_table_on_stdout_and_progress_on_stderr(folder):
    stdout, stderr = (folder / "stdout").read_text(), (folder / "stderr").read_text()
    assert "Certified accuracy, digits-quick" in " ".join(stdout.split())
    assert "results: runs/digits-quick; the rest: runs/digits-quick/report/index.html" in stdout
    assert "diffcert report runs/digits-quick" in " ".join(stdout.split())
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
    assert done.stderr.startswith("verifying runs/digits-quick: reading its images and parts\n")
    assert "evaluating 2 units again" in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 certificates recomputed" in done.stdout
    assert "no difference" in done.stdout


def test_verify_knows_sigmas_that_a_later_start_added(folder):
    added = diffcert("certify", "digits-quick", *TINY, "--set", "votes.sigmas=[0.3]", cwd=folder)
    assert added.returncode == 0, added.stderr
    done = diffcert("verify", "runs/digits-quick", "--sample", "0", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 certificates recomputed" in done.stdout


def test_plan_measures_warns_and_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(planning.estimate.__kwdefaults__, "trial_s", 0.01)
    overrides = ["--set", "votes.sigmas=[0.25, 0.5]", "--set", "votes.radii=[0.8]"]
    options = [*overrides, "--workers", "3", "--price", "spot=0.35"]
    done = diffcert("plan", "digits-quick", *options, "--set", "dataset.first=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"NFE/vote", done.stdout)
    assert "on one worker like this one" in done.stdout
    assert "on 3 such workers" in done.stdout
    assert re.search(r"spot +0.35 +\d+\.\d\d", done.stdout)
    assert "warning: at sigma 0.25 no image can reach radius 0.8" in done.stdout
    assert list(tmp_path.iterdir()) == []


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


def only_json(done) -> dict:
    """What --json printed: one object on one line, and nothing beside it."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_commands_print_one_json_object_for_machines(folder):
    run = "runs/digits-quick"
    found = only_json(diffcert("status", run, "--json", cwd=folder))
    assert found["complete"] is True
    assert found["votes"] == found["votes_asked"]
    assert found["alive"] is True  # certify ran just now
    assert found["writers"] >= 1
    found = only_json(diffcert("report", run, "--json", cwd=folder))
    assert 0.25 in {row["sigma"] for row in found["certified_accuracy"]}
    assert all((folder / name).is_file() for name in found["files"])
    found = only_json(diffcert("verify", run, "--sample", "0", "--json", cwd=folder))
    assert found["certificates"] >= 2
    assert found["same"] is True
    found = only_json(diffcert("compact", run, "--json", cwd=folder))
    assert found["parts"] >= 1


def test_certify_for_machines_reports_itself_and_its_progress_as_json(folder):
    arguments = [*TINY, "--set", "dataset.first=1", "--run", "runs/machine", "--json"]
    done = diffcert("certify", "digits-quick", *arguments, cwd=folder)
    found = only_json(done)
    assert (found["complete"], found["votes"], found["given_up"]) == (True, 30, [])
    assert found["report"]["certified_accuracy"][0]["sigma"] == 0.25
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    last = json.loads(lines[-1])
    assert (last["event"], last["images"], last["votes"]) == ("progress", 1, 30)


def test_a_quiet_certify_says_nothing_but_its_result(folder):
    done = diffcert("certify", "digits-quick", *TINY, "--quiet", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Certified accuracy" in " ".join(done.stdout.split())


def test_convert_and_plan_print_json_too(folder, monkeypatch):
    monkeypatch.setitem(planning.estimate.__kwdefaults__, "trial_s", 0.01)
    weights = str(Path(diffcert_ray.__file__).parent / "models" / "digits.safetensors")
    found = only_json(diffcert("convert", weights, "again.safetensors", "--json", cwd=folder))
    assert found["classes"] == 10
    assert (folder / found["output"]).is_file()
    options = ["--price", "spot=0.5", "--price", "2", "--workers", "4", "--json"]
    found = only_json(diffcert("plan", "digits-quick", *options, cwd=folder))
    hours = found["worker_hours"]
    assert found["wall_hours"] == hours / 4
    assert {c["name"]: c["cost"] for c in found["costs"]} == {
        "spot": hours / 2,
        "worker": 2 * hours,
    }
    assert found["sigmas"][0]["votes"] == 20 * 250


def test_status_of_a_run_under_way_needs_neither_images_nor_checkpoint(tmp_path, monkeypatch):
    world, data = small_world()
    questions = iter(range(100))
    run = certify(
        settings(execution={"item_s": 0.01, "flush_s": 0.001}), tmp_path / "run", local=True,
        denoiser=world, dataset=data, should_stop=lambda: next(questions) >= 6,
    )  # fmt: skip
    stored = int((run.units()["stop"] - run.units()["start"]).sum())
    assert 0 < stored < 6 * 80
    done = diffcert("status", "run", cwd=tmp_path)
    assert f"{stored} of 480" in done.stdout
    assert re.search(r"written +\d+ s ago, by 1 driver", done.stdout)
    assert "somebody seems to work on it" in done.stdout
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    done = diffcert("status", "run", cwd=tmp_path)
    assert "nobody seems to work on it: run certify again" in done.stdout
