"""A driver without a GPU, on a cluster whose nodes have some as far as Ray knows."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from diffcert_ray.attack.run import as_json, attack_run
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import ConfigError, PoolError
from diffcert_ray.pool.on_ray.actors import RayPool
from diffcert_ray.pool.on_ray.every_node import on_every_node
from diffcert_ray.pool.usual import usual_pool
from diffcert_ray.run import certify as certify_module
from diffcert_ray.run.certify import certify
from diffcert_ray.run.devices import at_a_worker
from diffcert_ray.run.stored import Run, open_run
from diffcert_ray.run.verify import verify_run
from tests.command_line import diffcert
from tests.pretended_workers import Pretending
from tests.ray_cluster import NODE, ray_cluster
from tests.scripted_workers import Run as Items
from tests.scripted_workers import Script, plain_items
from tests.worlds import counts_of, settings

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),  # nodes and actors start slowly on a busy machine
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and GPUs, and two nodes with a GPU each, as far as Ray knows."""
    with ray_cluster() as head:
        for _ in range(2):
            head.add_node(num_cpus=2, num_gpus=1, **NODE)
        yield head


def test_workers_hold_the_gpus_of_the_nodes_and_a_whole_run_has_the_cpu_s_counts(
    cluster: Cluster, tmp_path: Path, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, pools = tmp_path / "book", []

    def pretending(spec: Any, config: Any, **where: Any) -> Any:
        pools.append(spec.device)
        return usual_pool(Pretending(spec, book), config, **where)

    tables = settings(
        votes={"n0": 4, "n": 12, "unit": 4, "radii": [0.0]},
        noise_levels={"levels": 6},
        execution={"item_s": 0.05},
    )
    given = {"denoiser": world[0], "dataset": world[1]}
    expected = counts_of(certify(tables, tmp_path / "expected", local=True, **given))
    monkeypatch.setattr(certify_module, "usual_pool", pretending)
    run = certify(tables, tmp_path / "run", address=cluster.address, **given)
    assert run.outcome is not None
    assert run.outcome.complete
    assert counts_of(run) == expected
    assert pools == ["cuda"]  # of "auto", with no GPU on the driver's machine
    notes = [line.split(" ", 3) for line in book.read_text().splitlines()]
    gpu_nodes = {node.node_id for node in cluster.worker_nodes}
    assert {node for node, *_ in notes} == gpu_nodes
    assert {gpus for _, gpus, *_ in notes} == {"0"}
    assert all(int(launches) > 100 for _, _, launches, _ in notes)
    assert {faults for *_, faults in notes} == {"[]"}


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_workers_without_the_gpu_that_ray_gave_them_refuse_by_name(
    cluster: Cluster, tmp_path: Path, world: Any, device: str
) -> None:
    with pytest.raises(PoolError) as caught:
        certify(
            settings(execution={"device": device}), tmp_path / "run", address=cluster.address,
            denoiser=world[0], dataset=world[1],
        )  # fmt: skip
    message = str(caught.value)
    assert "no worker can start on node" in message
    assert "worker 'actor-" in message
    assert "is to compute on a GPU (execution.device), but torch" in message
    assert 'execution.device = "cpu"' in message


def test_shares_of_gpus_are_as_many_as_fit(cluster: Cluster, tmp_path: Path) -> None:
    pool = RayPool(Script(tmp_path, device="cuda"), gpus_per_actor=0.6)
    try:
        state = pool.state()
        assert state.live + state.pending == 2  # and not 3 of 1.8 GPUs
    finally:
        pool.close()


def test_more_workers_than_there_is_room_for_are_asked_for_up_to_the_stated_most(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = Script(tmp_path, device="cuda", item_s=0.2)
    pool = RayPool(script, most_actors=3)
    try:
        run = Items(pool, plain_items(10_000))
        run.until(lambda: pool.state().live == 2)
        state = pool.state()
        assert state.pending == 1
        assert "1 worker waits for a place: each asks for 1 CPU and 1 GPU" in state.note
        more = cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
        run.until(lambda: pool.state().live == 3)
        assert pool.state().pending == 0
    finally:
        pool.close()
    cluster.remove_node(more, allow_graceful=False)


def test_nodes_are_not_asked_for_when_nothing_is_left_to_do(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = RayPool(Script(tmp_path, device="cuda", item_s=2.0), most_actors=3)
    try:
        run = Items(pool, plain_items(5))
        run.until(lambda: pool.state().live == 2)
        assert pool.state().pending == 1
        run.to_the_end()
        assert pool.collect(0.0) == []
        assert (pool.state().live, pool.state().pending) == (2, 0)
    finally:
        pool.close()


# --- plan, verify, attack, bench


def device_and_node(device: str) -> tuple[str, str, list[int]]:
    gpus: list[int] = ray.get_gpu_ids()
    return device, ray.get_runtime_context().get_node_id(), gpus


@pytest.mark.parametrize(("device", "gpus"), [("auto", 1), ("cpu", 0)])
def test_other_work_is_done_on_a_worker_with_the_device_that_workers_have(
    cluster: Cluster, device: str, gpus: int
) -> None:
    execution = load_config({"execution": {"device": device}}).execution
    found = at_a_worker(device_and_node, execution, address=cluster.address)
    assert found[0] == ("cuda" if gpus else "cpu")
    assert found[1] in {node.node_id for node in cluster.worker_nodes}
    assert len(found[2]) == gpus
    assert ray.is_initialized()  # it was there before


def test_no_place_for_a_worker_says_what_is_missing(cluster: Cluster) -> None:
    execution = {"device": "cuda", "gpus_per_actor": 4, "stall_timeout_s": 1.0}
    with pytest.raises(PoolError, match=r"no worker for 1 s: 1 worker waits .* 1 CPU and 4 GPU"):
        at_a_worker(str, load_config({"execution": execution}).execution, address=cluster.address)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run of a shipped network, by a worker in this process."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    fewer = ("votes.n0=10", "votes.n=20", "votes.unit=10", "votes.radii=[0.0]", "dataset.first=2")
    return certify(
        "digits-classify", folder, overrides=(*fewer, "execution.device=cpu"), local=True
    )


def test_verify_and_attack_on_a_worker_say_what_they_say_in_this_process(
    cluster: Cluster, digits: Run
) -> None:
    at = {"address": cluster.address}
    assert verify_run(digits, sample=4, seed=0, **at) == verify_run(digits, sample=4, seed=0)
    said: list[int] = []
    there = attack_run(
        digits, images=2, votes=200, on_image=lambda one, total: said.append(one.image_id), **at
    )
    assert said == [one.image_id for one in there.images]
    assert len(said) == 2
    kept = (Path(digits.address) / "attack/seed-0.json").read_bytes()
    here = attack_run(digits, images=2, votes=200)
    assert as_json(here) == as_json(there)
    assert (Path(digits.address) / "attack/seed-0.json").read_bytes() == kept


def test_plan_and_bench_measure_on_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    cpu = ("--set", "execution.device=cpu", "--address", cluster.address)
    plan = ("plan", "digits-classify", "--set", "dataset.first=2", "--json")
    planned = diffcert(*plan, *cpu, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["device"] == "cpu"
    bench = ("bench", "--scales", "digits")  # takes a minute where it is not refused
    for command in (plan, bench):  # Ray gives each worker a GPU that is not there
        refused = diffcert(*command, "--address", cluster.address, cwd=tmp_path)
        assert refused.returncode != 0
        assert "is to compute on a GPU" in " ".join(refused.stderr.split())


def test_a_run_is_opened_elsewhere_by_its_whole_path(
    digits: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from diffcert_ray.run.stored import Elsewhere

    monkeypatch.chdir(Path(digits.address).parent)
    elsewhere = Elsewhere.of(open_run("run"))
    monkeypatch.chdir(tmp_path)
    assert elsewhere.open().document == digits.document


def test_errors_of_the_configuration_stay_errors_of_the_configuration(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="worker 'plan' on "):
        at_a_worker(refuse, load_config({}).execution, address=cluster.address)


def refuse(device: str) -> None:
    from diffcert_ray.denoisers.device import check_device

    check_device(device, "plan")


def test_the_doctor_looks_at_every_node_and_names_those_that_cannot(
    cluster: Cluster, tmp_path: Path
) -> None:
    command = ("doctor", "digits", "--set", "dataset.first=2", "--run", str(tmp_path / "run"))
    command += ("--address", cluster.address, "--json")
    fine = diffcert(*command, "--set", "execution.device=cpu", cwd=tmp_path)
    assert fine.returncode == 0, fine.stdout
    told = json.loads(fine.stdout)
    nodes = {n: m for n, m in told["machines"].items() if n != "driver"}
    short = {node.node_id[:8] for node in cluster.worker_nodes}
    assert {name.split("(")[1].rstrip(")") for name in nodes} == short
    assert len(told["without"]) == 1  # the head
    assert all(m["numerics"] and m["store"] and m["device"] == "cpu" for m in nodes.values())
    assert told["machines"]["driver"]["numerics"] == ""
    broken = diffcert(*command, cwd=tmp_path)  # on GPUs that are not there
    assert broken.returncode == 1
    for name, machine in json.loads(broken.stdout)["machines"].items():
        checks = [problem["check"] for problem in machine["problems"]]
        assert checks == ([] if name == "driver" else ["device"])


def test_a_node_whose_gpu_is_taken_says_so(cluster: Cluster) -> None:
    @ray.remote(num_gpus=1)
    class Taking:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    taking = Taking.remote()  # type: ignore[attr-defined]
    taken = ray.get(taking.node.remote())
    try:
        answers = on_every_node(
            device_of_this, address=cluster.address, gpus=1.0, place_s=15.0, work_s=60.0
        )
    finally:
        ray.kill(taking)
    said = {a.node: a.value for a in answers if a.takes_workers}
    assert "its GPUs are taken by another run" in str(said.pop(taken))
    assert list(said.values()) == [1]
    assert all(a.ahead_s == 0.0 for a in answers)  # one machine, one clock


def device_of_this() -> int:
    return len(ray.get_gpu_ids())
