"""Commands as jobs of a real Ray job server, and the metrics that its agent exports."""

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from diffcert_ray import certify, open_run
from diffcert_ray.monitoring import COUNTERS, GAUGES
from jobs import submit
from tests.worlds import settings, small_world

pytest.importorskip("opentelemetry", reason="ray[default] is not installed")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # six processes that import torch, one after the other
    # Ray's own: a hint about a default that will change, and sockets and files of ended processes.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana-dashboard.json"
CONFIG = """
name = "two-digits"
[dataset]
name = "digits"
first = 2
[votes]
n0 = 10
n = 20
unit = 10
radii = [0.0]
[execution]
actors = 1
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of the job server of a Ray on this machine."""
    before = dict(os.environ)
    # Jobs are shell commands: they find the same diffcert as the one that is tested.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before["PATH"]])
    seconds = ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 300  # on a busy machine
    info = ray.init(
        address="local",
        num_cpus=1,
        num_gpus=0,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=0,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield f"http://{info.address_info['webui_url']}"
    ray.shutdown()
    ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = seconds
    os.environ.clear()
    os.environ.update(before)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.2)


def exported() -> dict[str, dict[str, float]]:
    """What the agent of this node exports of ours: value by run, by name."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for name, tags, value in re.findall(r"(?m)^(ray_diffcert_\w+)\{(.*)\} (\S+)$", text):
        run = dict(re.findall(r'(\w+)="([^"]*)"', tags))["run"]
        found.setdefault(name, {})[run] = float(value)
    return found


def test_metrics_arrive_at_the_endpoint_under_the_names_that_the_dashboard_uses(
    server: str, tmp_path: Path
) -> None:
    world, dataset = small_world()
    tables = settings(name="watched", execution={"actors": 1, "item_s": 0.05})
    run = certify(tables, tmp_path / "r", denoiser=world, dataset=dataset)
    votes = "ray_diffcert_votes_total"
    wait_for(lambda: exported().get(votes, {}).get("watched") == run.outcome.votes, 60)
    found = exported()
    assert found["ray_diffcert_nfe_total"]["watched"] == run.outcome.nfe
    assert found["ray_diffcert_items_total"]["watched"] == run.outcome.items
    assert found["ray_diffcert_actors_live"]["watched"] == 1
    assert found["ray_diffcert_nodes_draining"]["watched"] == 0
    names = {f"ray_{n}_total" for n in COUNTERS} | {f"ray_{n}" for n in GAUGES}
    # A counter that never grew is not there: nothing was put back.
    assert names - set(found) <= {"ray_diffcert_items_requeued_total"}
    assert set(found) <= names
    used = set(re.findall(r"ray_diffcert_\w+", DASHBOARD.read_text("utf-8")))
    assert used == names
    assert json.loads(DASHBOARD.read_text("utf-8"))["uid"] == "diffcert"


def test_five_commands_run_as_jobs_with_a_config_and_a_store(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = tmp_path / "two.toml", tmp_path / "run"
    config.write_text(CONFIG)

    def job(*command: str) -> str:
        assert submit.main(["--cluster", server, *command]) == 0
        return capsys.readouterr().out

    said = job("certify", str(config), "--run", str(folder), "--set", "votes.n=30")
    assert "certify two.toml" in said
    assert "Certified accuracy, two-digits" in said
    run = open_run(folder)
    assert len(run.certificates()) == 2
    assert set(run.certificates()["n"]) == {30}
    assert "complete" in job("status", str(folder))
    assert "no difference" in job("verify", str(folder), "--sample", "1")
    assert "generation 1" in job("compact", str(folder))
    assert "Certified accuracy, two-digits" in job("report", str(folder))


def test_exit_code_of_a_job_is_that_of_the_command(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(["--cluster", server, "status", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().out
