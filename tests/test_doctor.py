"""What the doctor finds wrong with a machine, and what it says can be done."""

import json
from dataclasses import replace

import pytest
import torch

from diffcert_ray.config.loading import load_config
from diffcert_ray.tools.doctor import CLOCK_S, Asked, Machine, compared, examine
from tests.command_line import diffcert


def asked(run=None, **tables):
    config = load_config({"dataset": {"first": 2}, "noise_levels": {"levels": 2}} | tables)
    return Asked(config, run, config)


def test_a_machine_that_can_do_all_says_what_it_has(tmp_path):
    found = examine(asked(str(tmp_path / "run")), "cpu")
    assert found.problems == ()
    assert found.versions["torch"] == torch.__version__.split("+")[0]
    assert found.device == "cpu"
    assert found.free_gib > 0.0
    assert len(found.weights["denoiser"]) == 64
    assert found.images == 2
    assert found.store
    assert len(found.numerics) == 12
    assert not list((tmp_path).rglob("*.toml"))  # nothing but a probe was written, and removed


@pytest.mark.parametrize(
    ("tables", "check", "said", "remedy"),
    [
        ({"model": {"checkpoint": "/nowhere.pkl"}}, "checkpoint", "/nowhere.pkl", "address"),
        ({"dataset": {"name": "cifar10", "path": "/nowhere"}}, "data", "/nowhere", "address"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(tables, check, said, remedy):
    found = examine(asked(**tables), "cpu")
    assert [problem.check for problem in found.problems] == [check]
    assert said in found.problems[0].said
    assert remedy in found.problems[0].remedy
    assert found.numerics == ""  # no worker is tried where something is missing


def test_a_store_that_cannot_be_written_and_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = examine(asked("/proc/nowhere/run"), "cuda")
    assert [problem.check for problem in found.problems] == ["device", "store"]
    assert "is to compute on a GPU" in found.problems[0].said
    driver = examine(asked(), "cuda", works=False)
    assert driver.problems == ()  # a driver needs no GPU
    assert driver.weights


def test_without_a_configuration_only_the_machine_is_looked_at():
    found = examine(Asked(None, None), "cpu")
    assert found.problems == ()
    assert (found.weights, found.fingerprint, found.numerics) == ({}, "", "")


DRIVER = Machine("head", {"diffcert_ray": "1", "ray": "2"}, weights={"denoiser": 64 * "a"},
                 fingerprint=64 * "b")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "ahead_s", "check", "said"),
    [
        ({"versions": {"diffcert_ray": "1", "ray": "3"}}, 0.0, "packages", "ray is 3, 2 on the"),
        ({"weights": {"denoiser": 64 * "c"}}, 0.0, "checkpoint", "cccccccccccc..., aaaaaaaaaaaa"),
        ({"fingerprint": 64 * "c"}, 0.0, "data", "fingerprint cccccccccccc"),
        ({}, CLOCK_S + 1, "clock", "31 s ahead of"),
        ({}, -90.0, "clock", "90 s behind"),
    ],
)
def test_what_differs_from_the_driver_is_a_problem_of_the_node(change, ahead_s, check, said):
    (node,) = compared(DRIVER, [(replace(DRIVER, **change), ahead_s)])
    (problem,) = node.problems
    assert problem.check == check
    assert said in problem.said
    assert problem.remedy


def test_a_node_like_the_driver_has_no_problem():
    (node,) = compared(DRIVER, [(DRIVER, CLOCK_S - 1)])
    assert node.problems == ()


def test_the_command_says_it_and_its_exit_code(tmp_path):
    fine = diffcert("doctor", "digits", "--set", "dataset.first=2", "--run", "run", cwd=tmp_path)
    assert fine.returncode == 0, fine.stderr
    assert "1 machine, no problem" in fine.stdout
    broken = ("doctor", "digits", "--set", "model.checkpoint=/nowhere.pkl")
    done = diffcert(*broken, cwd=tmp_path)
    assert done.returncode == 1
    assert "problem: checkpoint: " in done.stdout
    assert "1 machine, 1 with problems" in done.stdout
    told = json.loads(diffcert(*broken, "--json", cwd=tmp_path).stdout)
    assert told["machines"]["this machine"]["problems"][0]["check"] == "checkpoint"
    assert diffcert("doctor", cwd=tmp_path).returncode == 0
