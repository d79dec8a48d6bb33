"""Commands as jobs of a real Ray job server, and the metrics that its agent exports."""

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from diffcert_ray import certify, open_run
from diffcert_ray.run.monitoring import COUNTERS, GAUGES
from jobs import submit
from tests.waiting import wait_for
from tests.worlds import counts_of, settings, small_world

pytest.importorskip("opentelemetry", reason="ray[default] is not installed")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # six processes that import torch, one after the other
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
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
item_s = 0.5
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of the job server of a Ray that shares nothing with others on this machine.

    Jobs find their cluster through a file in Ray's folder, which the Ray that was started last
    overwrites, and of two agents at the default port only one takes jobs.
    """
    before = dict(os.environ)
    # Jobs are shell commands: they find the same diffcert as the one that is tested.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before["PATH"]])
    seconds = ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 300  # on a busy machine
    folder = tempfile.mkdtemp(prefix="ray")  # a short path: sockets are in it
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "num_gpus": 0,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": free_port(),
            "dashboard_agent_listen_port": free_port(),
            "object_store_memory": 80 * 2**20,
            "temp_dir": folder,
            "_system_config": {"metrics_report_interval_ms": 500},
        },
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield f"http://{cluster.head_node.webui_url}"
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = seconds
        os.environ.clear()
        os.environ.update(before)


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
    wait_for(lambda: exported().get(votes, {}).get("watched") == run.outcome.votes, 60, 0.2)
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


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    """What a job printed, however its lines were cut."""
    return " ".join(capsys.readouterr().out.split())


def votes_of(folder: Path) -> int:
    units = open_run(folder).units()
    return int((units["stop"] - units["start"]).sum())


def test_five_commands_run_as_jobs_and_a_stopped_one_goes_on_where_it_was(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = tmp_path / "two.toml", tmp_path / "run"
    config.write_text(CONFIG)
    certified = ("certify", str(config), "--run", str(folder), "--set", "votes.n=600")

    def job(*command: str) -> str:
        code = submit.main(["--cluster", server, *command])
        said = said_by(capsys)
        assert code == 0, said
        return said

    assert submit.main(["--cluster", server, "--no-wait", *certified]) == 0
    [name] = re.findall(r"job (\S+) at", said_by(capsys))
    client = submit.JobSubmissionClient(server)
    votes = "ray_diffcert_votes_total"

    def voting() -> bool:
        assert not client.get_job_status(name).is_terminal(), client.get_job_logs(name)
        return exported().get(votes, {}).get("two-digits", 0) > 0

    wait_for(voting, 600, 0.2)
    client.stop_job(name)
    wait_for(lambda: client.get_job_status(name).is_terminal(), 120, 0.2)
    log = " ".join(client.get_job_logs(name).split())
    assert "stopped: what has come back is stored; the same command continues" in log
    before = votes_of(folder)  # stored by the stop alone: no flush was due
    assert 0 < before < 2 * 610
    assert "state incomplete" in job("status", str(folder))

    said = job(*certified)
    assert "certify two.toml" in said
    assert "Certified accuracy, two-digits" in said
    assert f"{2 * 610 - before:,} votes, " in said  # what was stored is not evaluated again
    alone = certify(str(config), tmp_path / "alone", overrides=["votes.n=600"], local=True)
    assert counts_of(open_run(folder)) == counts_of(alone)
    assert open_run(folder).certificates()["n"].tolist() == [600, 600]
    assert "no difference" in job("verify", str(folder), "--sample", "1")
    assert "generation 1" in job("compact", str(folder))
    assert "Certified accuracy, two-digits" in job("report", str(folder))


def test_exit_code_of_a_job_is_that_of_the_command(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(["--cluster", server, "status", str(tmp_path / "nothing")]) == 1
    assert "nothing" in said_by(capsys)
