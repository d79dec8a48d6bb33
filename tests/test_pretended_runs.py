"""Every method, rule, dtype and source of networks on a GPU that is pretended: the CPU's counts.

And how often the host waits for the device, and what it is given to do, which make a GPU slow.
"""

import dataclasses
from typing import Any

import pytest
import torch

from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.engine import item_run
from diffcert_ray.engine.memory import example_rows
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.plain.units import LossItem, LossUnit
from diffcert_ray.run import calibration
from diffcert_ray.run.calibration import calibrate
from diffcert_ray.tools import floor
from diffcert_ray.tools.measure import Schedule, measure
from diffcert_ray.votes.units import Item, Part, Unit
from tests.pretended_gpu import PretendedGpu, pretended_gpu
from tests.test_devices import Linear
from tests.worlds import small_world

SMALL: dict[str, Any] = {
    "noise_levels": {"levels": 3}, "numerics": {"batch": 16}, "dataset": {"first": 2},
}  # fmt: skip
CONVNET = {"classifier": {"checkpoint": "digits", "architecture": "digits-convnet"}}
READ = "an event @ denoisers/device.py:array"
"""The one way in which the host may wait while an item is evaluated: for what it asked to come."""


def spec_of(denoiser: Any = None, **tables: Any) -> WorkerSpec:
    config = load_config(SMALL | tables)
    data = load_dataset(config.dataset) if denoiser is None else small_world(2)[1]
    return WorkerSpec(config, weights_of(config, denoiser), "cpu", denoiser, data)


def item_of(spec: WorkerSpec, votes: int = 4) -> Any:
    ids = [int(i) for i in spec.dataset.ids[:2]]
    if spec.config.kind_name == "losses":
        return LossItem(0, tuple(LossUnit(i, 0, votes) for i in ids))
    sigma = spec.config.votes.sigmas[0]
    return Item(0, sigma, tuple(Part(Unit(sigma, i, "estimate", 0, votes), 0, votes) for i in ids))


def on_both(spec: WorkerSpec, votes: int = 4) -> tuple[Any, Any, PretendedGpu]:
    """What an item gives on the CPU and on the GPU, and the GPU as it was since the load."""
    item = item_of(spec, votes)
    expected = spec.load("cpu").evaluate(item)
    with pretended_gpu() as gpu:
        worker = dataclasses.replace(spec, device="cuda").load("cuda")
        gpu.waits.clear()
        gpu.launches.clear()
        found = worker.evaluate(item)
    return expected, found, gpu


def check(spec: WorkerSpec, votes: int = 4) -> PretendedGpu:
    expected, found, gpu = on_both(spec, votes)
    assert [t.counts for t in found.tallies] == [t.counts for t in expected.tallies]
    assert found.nfe == expected.nfe
    assert gpu.faults == []
    assert set(gpu.waits) == {READ}
    return gpu


@pytest.mark.parametrize("rule", ["paired-z", "exact", "full", "threshold"])
@pytest.mark.parametrize("method", ["apndc", "epndc", "dc", "apndc-posterior"])
def test_own_networks_with_every_method_and_rule(method, rule):
    check(spec_of(Linear(), method={"name": method}, sift={"rule": rule}))


@pytest.mark.parametrize(
    "numerics",
    [{}, {"dtype": "tf32"}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"channels_last": True}],
    ids=lambda numerics: next(iter(numerics.values()), "float32"),
)
def test_networks_of_files_in_every_dtype(numerics):
    check(spec_of(numerics={"batch": 16} | numerics), votes=2)


@pytest.mark.parametrize(
    "tables",
    [
        {"model": {"unconditional": "digits"}},
        {"sift": {"rule": "shortlist", "head": "digits"}},
        {"sift": {"head": "digits"}, "method": {"name": "shortlist-classify"}},
        CONVNET | {"method": {"name": "classify"}},
        CONVNET | {"method": {"name": "denoise-classify"}},
        {"votes": {"estimate": "target"}},
    ],
    ids=["two files", "shortlist", "shortlist-classify", "classify", "denoise-classify", "target"],
)
def test_every_other_network_and_question(tables):
    check(spec_of(**tables), votes=2)


def test_votes_that_are_handed_from_one_item_to_the_next():
    spec = spec_of(Linear())
    item = dataclasses.replace(item_of(spec), hand_back_levels=1)
    first = spec.load("cpu").evaluate(item)
    assert first.open_votes is not None
    rest = Item(1, item.sigma, (), first.open_votes)
    expected = spec.load("cpu").evaluate(rest)
    with pretended_gpu() as gpu:
        worker = dataclasses.replace(spec, device="cuda").load("cuda")
        halves = worker.evaluate(item), worker.evaluate(rest)
    assert halves[0].tallies == first.tallies
    assert halves[1].tallies == expected.tallies
    assert gpu.faults == []


@pytest.mark.parametrize("bound", ["local", "lipschitz"])
def test_losses_without_votes(bound):
    levels = {"weights": "linear-s", "min": 1.0, "levels": 2}
    spec = spec_of(Linear(), method={"name": "dc"}, votes={"bound": bound}, noise_levels=levels)
    expected, found, gpu = on_both(spec)
    for ours, theirs in zip(found.tallies, expected.tallies, strict=True):
        assert ours.sums == pytest.approx(theirs.sums, abs=1e-6)
    assert gpu.faults == []
    assert gpu.waits == {READ: 1}  # for the losses of the whole item


# --- how often the host waits, and for what the device is launched


def test_the_host_waits_once_for_each_chunk_of_batches():
    gpu = check(spec_of(Linear(), sift={"rule": "full"}), votes=100)
    rows = 200 * (1 + 3 * Linear.num_classes)
    least = -(-rows // (item_run.CHUNK_BATCHES * 16))
    assert least <= gpu.waits[READ] <= 1.5 * least + 2


FORWARD_LAUNCHES = 165  # of the digits network, eager
CHUNK_LAUNCHES = 230  # around the forwards of a chunk: noise, inputs, targets, losses


def test_a_forward_of_the_digits_network_launches_no_more_than_it_did():
    spec = dataclasses.replace(spec_of(), device="cuda")
    with pretended_gpu() as gpu, torch.no_grad():
        network = spec.network("denoiser")
        rows = example_rows(network, 16, "cuda")
        gpu.launches.clear()
        network(*rows)
        launches = gpu.launches.total()
    assert 100 < launches <= FORWARD_LAUNCHES, gpu.launches


def test_the_engine_launches_no_more_around_the_network_than_it_did(monkeypatch):
    forwards, chunks = [], []
    forward, chunk = Linear.forward, item_run.ItemRun._queue_chunk

    def counted(self, u, s, y=None):
        before = gpu.launches.total()
        out = forward(self, u, s, y)
        forwards.append(gpu.launches.total() - before)
        return out

    monkeypatch.setattr(Linear, "forward", counted)
    monkeypatch.setattr(
        item_run.ItemRun, "_queue_chunk", lambda self: chunks.append(1) or chunk(self)
    )
    spec = spec_of(Linear(), sift={"rule": "full"})
    with pretended_gpu() as gpu:
        worker = dataclasses.replace(spec, device="cuda").load("cuda")
        gpu.launches.clear()
        forwards.clear()
        worker.evaluate(item_of(spec, votes=100))
        around = (gpu.launches.total() - sum(forwards)) / len(chunks)
    assert 100 < around <= CHUNK_LAUNCHES


# --- measuring


def test_calibration_measures_on_the_gpu(monkeypatch):
    monkeypatch.setattr(calibration, "LARGEST_BATCH", {"cuda": 16})
    monkeypatch.setattr(calibration, "SMALLEST_BATCH", {"cuda": 8})
    monkeypatch.setattr(calibration._Trial, "rough_seconds", lambda self: 1e9)
    monkeypatch.setattr("diffcert_ray.engine.speed.ROUND_S", 0.0)
    config = load_config(
        {"dataset": {"first": 2}, "numerics": {"compile": False}, "noise_levels": {"levels": 3},
         "execution": {"dtypes": ["float32"], "memory_limit": 1.0}}
    )  # fmt: skip
    with pretended_gpu() as gpu:
        found = calibrate(config, weights_of(config), "cuda", nfe=1e12)
        assert gpu.launches.total() > 1000
    assert found.numerics.batch in (8, 16)
    assert "calibrated: batch" in found.said


def test_bench_measures_on_the_gpu(monkeypatch):
    monkeypatch.setattr(floor, "SIDE", {"cuda": 8})
    monkeypatch.setattr(floor, "COPIED_BYTES", {"cuda": 64})
    from diffcert_ray.commands.bench import _subject

    config = load_config(SMALL)
    schedule = Schedule(rounds=1, item_s=0.01, bare_s=0.01, search_s=0.0, largest_batch=16)
    with pretended_gpu() as gpu:
        speeds = floor.device_speeds("cuda", "tf32")
        measured = measure(_subject(config, "cuda"), speeds, schedule)
    assert measured.comparison is not None
    assert measured.comparison.engine_nfe_per_s > 0
    assert gpu.faults == []
