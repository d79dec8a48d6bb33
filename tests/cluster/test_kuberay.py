"""The KubeRay manifests: their own fields by a schema, their pods by Kubernetes' schemas."""

import copy
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from diffcert_ray.config.loading import load_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    kubernetes_validate = pytest.importorskip("kubernetes_validate")

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERNETES = "1.33"

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def table(required: list[str], **properties: Any) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


# The fields of ray.io/v1 that the manifests use, by the reference of KubeRay 1.5 to 1.7. Pod
# templates are only objects here: Kubernetes' own schemas check them.
START = {"type": "object", "additionalProperties": TEXT}  # values are strings, numbers too
POD = table(["spec"], metadata={"type": "object"}, spec={"type": "object"})
WORKERS = table(
    ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
    rayStartParams=START, template=POD,
)  # fmt: skip
CLUSTER_SPEC = table(
    ["rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=table(["mode"], mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=table(
        [],
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
    ),
    headGroupSpec=table(["rayStartParams", "template"], rayStartParams=START, template=POD),
    workerGroupSpecs={"type": "array", "items": WORKERS, "minItems": 1},
)
JOB_SPEC = table(
    ["entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes"],
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return table(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=table(["name"], name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
        spec=spec,
    )


def ray_cluster() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay-cluster.yaml").read_text("utf-8"))


def config_map_and_job() -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(yaml.safe_load_all((CLUSTER / "kuberay-job.yaml").read_text("utf-8")))


def cluster_specs() -> list[dict[str, Any]]:
    return [ray_cluster()["spec"], config_map_and_job()[1]["spec"]["rayClusterSpec"]]


def pods() -> list[tuple[str, dict[str, Any]]]:
    """(group, pod spec) of every pod template of both manifests."""
    found = []
    for spec in cluster_specs():
        found.append(("head", spec["headGroupSpec"]["template"]["spec"]))
        found += [(g["groupName"], g["template"]["spec"]) for g in spec["workerGroupSpecs"]]
    return found


def test_manifests_use_only_fields_that_kuberay_knows():
    jsonschema.validate(ray_cluster(), resource("RayCluster", CLUSTER_SPEC))
    jsonschema.validate(config_map_and_job()[1], resource("RayJob", JOB_SPEC))


def test_schema_refuses_a_misspelt_field_and_a_number_where_ray_wants_text():
    for path, value in ((("authOption",), {}), (("headGroupSpec", "rayStartParams", "n"), 0)):
        wrong = copy.deepcopy(ray_cluster())
        place = wrong["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, resource("RayCluster", CLUSTER_SPEC))


def test_pods_and_config_map_are_valid_kubernetes():
    documents = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        for _, spec in pods()
    ]
    assert len(documents) == 6
    for document in [*documents, config_map_and_job()[0]]:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    broken = copy.deepcopy(documents[0])
    broken["spec"]["terminationGracePeriod"] = 30  # it is terminationGracePeriodSeconds
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_tokens_are_asked_for_and_version_of_ray_is_that_of_the_image():
    for spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token"}
        images = {c["image"].split(":")[1] for _, pod in pods() for c in pod["containers"]}
        assert images == {spec["rayVersion"]}


def test_head_is_on_demand_and_takes_no_work():
    for spec in cluster_specs():
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for _, pod in (p for p in pods() if p[0] == "head"):
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
        assert pod["terminationGracePeriodSeconds"] >= 60


def test_workers_prefer_spot_fall_back_to_on_demand_and_ask_for_one_gpu():
    names = set()
    for group, pod in (p for p in pods() if p[0] != "head"):
        names.add(group)
        affinity = pod["affinity"]["nodeAffinity"]
        (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
        (wish,) = preferred["preference"]["matchExpressions"]
        assert wish["values"] == ["spot"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        keys = [e["key"] for t in required["nodeSelectorTerms"] for e in t["matchExpressions"]]
        assert keys == ["node.kubernetes.io/instance-type"]  # and nothing about spot
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert len(names) == 2


def test_worker_pods_drain_their_node_and_wait_within_their_grace_period():
    for group, pod in pods():
        assert pod["restartPolicy"] == "Never"  # a restarted container would be another Ray node
        if group == "head":
            continue
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        drain_s, wait_s = re.fullmatch(
            r"python /home/ray/spot_watcher\.py now --seconds (\d+); sleep (\d+)", hook
        ).groups()
        item_s = load_config("digits").execution.item_s
        assert int(wait_s) >= 2 * item_s  # two calls are in flight before each actor
        assert int(wait_s) <= int(drain_s) < pod["terminationGracePeriodSeconds"]


def test_job_runs_the_mounted_configuration_on_the_cluster_that_it_makes():
    config_map, job = config_map_and_job()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0].pop("volumeMounts")
    (volume,) = head.pop("volumes")
    assert volume["name"] == mount["name"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["diffcert", "certify"]
    assert words[-2:] == ["--address", "auto"]
    folder, _, name = words[2].rpartition("/")
    assert folder == mount["mountPath"]
    load_config(tomllib.loads(config_map["data"][name]))
    # Without the mounted configuration it is the cluster that stays.
    assert job["spec"]["rayClusterSpec"] == ray_cluster()["spec"]
    assert job["spec"]["backoffLimit"] >= 1  # exit code 3 is continued on a new cluster
    assert job["spec"]["shutdownAfterJobFinishes"]


def test_monitor_scrapes_the_port_that_every_pod_names():
    monitor = yaml.safe_load((CLUSTER / "kuberay-monitor.yaml").read_text("utf-8"))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for _, pod in pods():
        ports = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
        assert ports[endpoint["port"]] == 8080
    for spec in cluster_specs():
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert group["rayStartParams"]["metrics-export-port"] == "8080"
