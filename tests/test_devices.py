"""Which device workers have, and the engine on a GPU that is pretended."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from torch import nn

from diffcert_ray import Classifier
from diffcert_ray.checkpoints.image_classifier import digits_convnet
from diffcert_ray.config.loading import load_config
from diffcert_ray.denoisers.device import compute_alike
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import ConfigError
from diffcert_ray.run import devices
from diffcert_ray.run.certify import certify
from diffcert_ray.run.devices import workers_device
from diffcert_ray.run.verify import verify_run
from tests.pretended_gpu import CUDA, NAME, pretended_gpu
from tests.worlds import counts_of, settings, small_world, world_items, world_spec


class Linear(nn.Module):
    """A denoiser of the caller's: a torch module with a parameter and a buffer that is not kept."""

    image_shape, num_classes, has_unconditional, s_range = (1, 4, 4), 4, True, (0.0, 9.0)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.means = nn.Parameter(0.3 * torch.randn(4, 1, 4, 4, generator=generator))
        self.register_buffer("middle", self.means.detach().mean(0), persistent=False)

    def forward(self, u, s, y=None):
        y = torch.full_like(s, -1, dtype=torch.int64) if y is None else y
        mean = torch.where((y >= 0)[:, None, None, None], self.means[y.clamp(min=0)], self.middle)
        share = (s * s / (s * s + 0.09))[:, None, None, None]
        return u + share * (mean - u)


def of_own(network) -> WorkerSpec:
    spec = world_spec()
    weights = weights_of(spec.config, network)
    return dataclasses.replace(spec, denoiser=network, weights=weights)


def on_cuda(spec: WorkerSpec) -> WorkerSpec:
    return dataclasses.replace(spec, device="cuda")


def cast(spec: WorkerSpec) -> list:
    worker = spec.load("w")
    return [worker.evaluate(item) for item in world_items()]


@pytest.mark.parametrize("network", [Linear(), small_world()[0]], ids=["module", "exact world"])
def test_a_network_that_was_given_on_the_cpu_votes_on_the_gpu(network):
    spec = of_own(network)
    expected = cast(spec)
    with pretended_gpu() as gpu:
        found = cast(on_cuda(spec))
    assert [r.tallies for r in found] == [r.tallies for r in expected]
    assert gpu.faults == []
    assert sum(gpu.launches.values()) > 1000
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
    assert {r.device for r in found} == {NAME}  # the model, as the schema of the rows says
    assert {r.device for r in expected} == {"cpu"}
    assert all(NAME in r.computed_on for r in found)


def test_a_network_that_was_given_on_the_gpu_votes_on_the_cpu():
    with pretended_gpu():
        elsewhere = small_world()[0].to("cuda")
        moved = of_own(small_world()[0])
        moved = dataclasses.replace(moved, denoiser=elsewhere).network("denoiser")
        assert moved.means.device.type == "cpu"


def test_a_network_that_is_where_it_shall_be_is_not_copied():
    for network in (Linear().eval(), small_world()[0]):
        assert of_own(network).network("denoiser") is network


def test_a_whole_run_with_own_networks_on_the_gpu_has_the_cpu_s_counts(tmp_path, clean, world):
    with pretended_gpu() as gpu:
        run = certify(settings(), tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])
    assert counts_of(run) == counts_of(clean)
    assert gpu.faults == []
    assert set(run.units()["device"]) == {NAME}


def test_verify_evaluates_on_the_gpu_what_a_cpu_has_stored(tmp_path):
    fewer = ("votes.n0=10", "votes.n=20", "votes.unit=10", "votes.radii=[0.0]", "dataset.first=2")
    run = certify("digits-classify", tmp_path / "run", overrides=fewer, local=True)
    with pretended_gpu() as gpu:
        verified = verify_run(run, sample=4, seed=0)
    assert sum(gpu.launches.values()) > 10
    assert verified.differences == []


def test_a_worker_without_a_gpu_refuses_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"worker 'actor-7' on \S+ .*none.*nvidia-smi.*= \"cpu\""):
        on_cuda(world_spec()).load("actor-7")


# --- who decides


@pytest.fixture
def cluster_with(monkeypatch):
    """Lets a cluster at any address have these resources on its nodes; notes who asked."""
    from diffcert_ray.pool.on_ray import cluster

    asked: list = []

    def let(*nodes, most=None):
        monkeypatch.setattr(cluster, "connect", lambda address, actors: asked.append(address))
        there = {str(n): {"Resources": resources} for n, resources in enumerate(nodes)}
        monkeypatch.setattr(cluster, "alive_nodes", lambda: there)
        monkeypatch.setattr(cluster, "_most_resources", lambda: most or {})
        return asked

    return let


HEAD = {"CPU": 0.0}


@pytest.mark.parametrize(
    ("nodes", "most", "device"),
    [
        ([HEAD, {"CPU": 4.0, "GPU": 1.0}], None, "cuda"),
        ([HEAD, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 8.0}], None, "cuda"),
        ([HEAD, {"CPU": 4.0}], None, "cpu"),
        ([HEAD], {"CPU": 64, "GPU": 16}, "cuda"),  # the autoscaler says what it may add
        ([HEAD], {"CPU": 64}, "cpu"),
    ],
)
def test_the_nodes_of_a_cluster_decide_what_auto_means_and_not_this_machine(
    nodes, most, device, cluster_with, monkeypatch
):
    execution = load_config({}).execution
    asked = cluster_with(*nodes, most=most)
    for here in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        assert workers_device(execution, address="head:1") == device
    assert asked == ["head:1", "head:1"]


def test_auto_is_not_guessed_where_no_node_tells(cluster_with):
    cluster_with(HEAD)
    with pytest.raises(ConfigError, match=r'no node .* set execution\.device = "cuda" or "cpu"'):
        workers_device(load_config({}).execution, address="head:1")


def test_cuda_is_taken_as_given_on_a_cluster_and_looked_for_on_this_machine(
    cluster_with, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = cluster_with(HEAD)
    execution = load_config({"execution": {"device": "cuda"}}).execution
    assert workers_device(execution, address="head:1") == "cuda"
    assert asked == []  # "cuda" and "cpu" need no answer
    for where in ({"local": True}, {"address": None}):
        with pytest.raises(ConfigError, match="finds no GPU here"):
            workers_device(execution, **where)


def test_work_without_an_address_is_done_in_this_process():
    assert devices.at_a_worker(lambda device: device, load_config({}).execution, address=None) == (
        "cuda" if torch.cuda.is_available() else "cpu"
    )


# --- what computes alike


def test_a_classifier_on_a_gpu_computes_as_workers_do():
    conv, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_deterministic_debug_mode(), conv.allow_tf32, matmul.allow_tf32
    threads = torch.get_num_threads()
    try:
        conv.allow_tf32 = matmul.allow_tf32 = True
        torch.set_deterministic_debug_mode("default")
        with pretended_gpu():
            Classifier(small_world()[0].to("cuda"), sigma=0.25, device="cuda")
        assert not conv.allow_tf32
        assert not matmul.allow_tf32
        assert torch.get_deterministic_debug_mode() == 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_deterministic_debug_mode(before[0])
        conv.allow_tf32, matmul.allow_tf32 = before[1:]


def test_cublas_is_told_to_be_deterministic_unless_somebody_has_told_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    compute_alike()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    compute_alike()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_more_than_a_gpu_for_each_worker_must_be_whole_ones():
    assert load_config({"execution": {"gpus_per_actor": 2.0}})
    with pytest.raises(ConfigError, match=r"gpus_per_actor = 1\.5 .*set 0\.5 or 2"):
        load_config({"execution": {"gpus_per_actor": 1.5}})
    with pytest.raises(ConfigError, match=r"actors = 4 and .*most_actors = 8 are both set"):
        load_config({"execution": {"actors": 4, "most_actors": 8}})


# --- a trained classifier


def test_a_trained_classifier_waits_for_the_gpu_once_in_a_chunk_of_batches():
    config = load_config({"method": {"name": "classify"}, "numerics": {"batch": 4}})
    network = digits_convnet()
    images = {i: np.random.default_rng(i).random((1, 8, 8), np.float32) for i in range(3)}
    classifiers = {"cpu": Classifier(None, sigma=0.25, method="classify", classifier=network,
                                     settings={"numerics": {"batch": 4}})}  # fmt: skip
    expected = [classifiers["cpu"].votes(images[i], i, "estimate", 0, 70) for i in images]
    with pretended_gpu() as gpu:
        on_gpu = Classifier(None, sigma=0.25, method="classify", classifier=network,
                            settings={"numerics": {"batch": 4}}, device="cuda")  # fmt: skip
        gpu.waits.clear()
        found = [on_gpu.votes(images[i], i, "estimate", 0, 70) for i in images]
    assert np.array_equal(found, expected)
    assert gpu.faults == []
    assert config.numerics.batch == 4
    # 70 votes in batches of 4 are 18 batches: chunks of 8, 8 and 2.
    assert gpu.waits == {"an event @ denoisers/device.py:array": 3 * len(images)}


# --- the pretended GPU sees what it is there for


def test_the_pretended_gpu_refuses_operands_on_two_devices():
    with pretended_gpu(), pytest.raises(RuntimeError, match="to be on the same device"):
        torch.ones(2, device="cuda") + torch.ones(2)


def test_what_is_read_before_it_has_arrived_is_rubbish():
    with pretended_gpu():
        host = torch.empty(2, pin_memory=True)
        host.copy_(torch.ones(2, device="cuda"), non_blocking=True)
        assert host.tolist() != [1.0, 1.0]
        torch.cuda.synchronize()
        assert host.tolist() == [1.0, 1.0]


def test_a_pinned_source_that_changes_under_way_is_a_fault():
    with pretended_gpu() as gpu:
        source = torch.ones(2).pin_memory()
        there = source.to("cuda", non_blocking=True)
        source.add_(1)
        torch.cuda.synchronize()
        assert there.device == CUDA
    assert len(gpu.faults) == 1


def test_every_way_to_wait_is_written_down():
    with pretended_gpu() as gpu:
        values = torch.arange(4, device="cuda")
        for way in (
            lambda: values.sum().item(),
            lambda: values.cpu(),
            lambda: values[values > 1],
            lambda: values[torch.tensor([1])],
            lambda: torch.ones(3).to("cuda"),
        ):
            before = gpu.waits.total()
            way()
            assert gpu.waits.total() > before
