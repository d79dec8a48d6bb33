"""What networks compute in, and what is said where their batches do not fit."""

import dataclasses
import threading

import pytest
import torch
import torch.nn.functional as F

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.identity import canonical_hash, votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.engine import worker as worker_module
from diffcert_ray.engine.compile_once import first_alone
from diffcert_ray.engine.networks import DiffusionNetworks
from diffcert_ray.engine.too_large import evaluated
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import PoolError
from diffcert_ray.plain.units import LossItem, LossUnit
from diffcert_ray.run.certify import certify
from diffcert_ray.run.loop import LEAST_BATCHES, _Speed
from diffcert_ray.tools.scales import random_network
from tests.pretended_gpu import NAME, pretended_gpu
from tests.worlds import settings, small_world, world_items, world_spec


def spec_of(dtype: str, device: str = "cpu") -> WorkerSpec:
    config = load_config(
        {"numerics": {"dtype": dtype, "batch": 8}, "noise_levels": {"levels": 3},
         "dataset": {"first": 1}}
    )  # fmt: skip
    return WorkerSpec(config, weights_of(config), device)


@pytest.fixture
def tf32_as_before():
    conv, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, matmul.allow_tf32
    yield lambda: (conv.allow_tf32, matmul.allow_tf32)
    conv.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("tf32", True)])
def test_a_gpu_worker_rounds_factors_where_the_run_says_so_only(dtype, allowed, tf32_as_before):
    with pretended_gpu():
        loaded = spec_of(dtype, "cuda").load("w")
        assert tf32_as_before() == (allowed, allowed)
    assert {p.dtype for p in loaded.networks.denoiser.parameters()} == {torch.float32}


def test_tf32_is_float32_on_a_cpu_but_another_run():
    by_dtype = {dtype: spec_of(dtype) for dtype in ("float32", "tf32")}
    kinds = {spec.load("w").numerics for spec in by_dtype.values()}
    assert len(kinds) == 1
    ids = {canonical_hash(votes_identity(s.config, s.weights)) for s in by_dtype.values()}
    assert len(ids) == 2


# --- attention


@pytest.fixture
def operands(monkeypatch):
    """Strides of what attention is given, filled by every call of a network."""
    seen: list = []
    attention = F.scaled_dot_product_attention

    def noted(q, k, v):
        seen.extend(t.stride() for t in (q, k, v))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return seen


@pytest.mark.parametrize("order", ["interleaved", "head", "parts"])
def test_operands_of_attention_are_contiguous_on_a_gpu_and_give_the_cpu_s_numbers(order, operands):
    network = random_network("digits", "cpu")
    for block in network.modules():
        if hasattr(block, "_attend"):
            block.style = dataclasses.replace(block.style, qkv_order=order)
    u, s = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    expected = network(u, s)
    on_cpu = list(operands)
    operands.clear()
    with pretended_gpu():
        found = network.to("cuda")(u.to("cuda"), s.to("cuda")).cpu()
    assert len(on_cpu) == len(operands) > 0
    assert {stride[-1] for stride in operands} == {1}
    assert 1 not in {stride[-1] for stride in on_cpu}  # whose bits old runs have
    assert torch.allclose(found, expected, atol=1e-5)


# --- batches that do not fit


def full_above(batch: int, inner):
    def evaluate(base, *args, **given):
        if base.batch > batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")
        return inner(base, *args, **given)

    return evaluate


def test_a_batch_that_does_not_fit_is_answered_with_the_one_that_does(monkeypatch):
    spec = world_spec()  # batches of 32
    loaded, (item, *_) = spec.load("w"), world_items()
    expected = loaded.evaluate(item)
    monkeypatch.setattr(worker_module, "evaluate_item", full_above(8, worker_module.evaluate_item))
    with pytest.raises(PoolError) as caught:
        loaded.evaluate(item)
    message = str(caught.value)
    assert "numerics.batch = 32 rows does not fit into the memory of cpu" in message
    assert (
        "(CUDA out of memory. Tried to allocate 2 GiB.): set numerics.batch = 8, which" in message
    )
    assert "--run" in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # whose frames would hold the memory
    fits = spec.config.model_copy(
        update={"numerics": spec.config.numerics.model_copy(update={"batch": 8})}
    )
    again = dataclasses.replace(spec, config=fits).load("w").evaluate(item)
    assert again.tallies == expected.tallies


def test_a_run_whose_batch_does_not_fit_ends_with_the_batch_to_set(monkeypatch, tmp_path, world):
    monkeypatch.setattr(worker_module, "evaluate_item", full_above(16, worker_module.evaluate_item))
    with pytest.raises(PoolError, match=r"set numerics\.batch = 16, which fits"):
        certify(settings(), tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])


def test_draws_that_do_not_fit_are_answered_alike(monkeypatch):
    world, data = small_world()
    config = load_config(
        settings(method={"name": "dc"}, votes={"bound": "local"},
                 noise_levels={"weights": "linear-s", "min": 1.0, "levels": 2})
    )  # fmt: skip
    loaded = WorkerSpec(config, weights_of(config, world), "cpu", world, data).load("w")
    inner = worker_module.evaluate_loss_item

    def evaluate(*args, batch, **given):
        if batch > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return inner(*args, batch=batch, **given)

    monkeypatch.setattr(worker_module, "evaluate_loss_item", evaluate)
    with pytest.raises(PoolError, match=r"set numerics\.batch = 4, which fits"):
        loaded.evaluate(LossItem(0, (LossUnit(int(data.ids[0]), 0, 2),)))


def test_a_worker_that_cannot_even_load_says_that_it_is_the_batch(monkeypatch):
    def full(self, image_shape):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusionNetworks, "numerics_kind", full)
    with pytest.raises(PoolError, match=r"set numerics\.batch = 16, or less"):
        world_spec().load("w")


def test_nothing_fits_where_one_row_does_not_and_other_errors_stay_as_they_are():
    def always_full(batch):
        raise MemoryError("not enough memory")

    with pytest.raises(PoolError, match="take a smaller network, or a device with more memory"):
        evaluated(always_full, 64, "cpu")

    def broken(batch):
        raise RuntimeError("expected scalar type Float")

    with pytest.raises(RuntimeError, match="expected scalar type Float"):
        evaluated(broken, 64, "cpu")
    tried = []

    def compiled(batch):
        tried.append(batch)
        raise MemoryError("out of memory")

    with pretended_gpu(), pytest.raises(PoolError, match=rf"{NAME}.*numerics\.batch = 32, or less"):
        evaluated(compiled, 64, "cuda", smaller=False)
    assert tried == [64]


# --- compiling once on a node


def test_the_first_compiles_alone_and_the_others_wait_for_it(tmp_path):
    entered, leave, told = threading.Event(), threading.Event(), []

    def first():
        with first_alone("network", tmp_path) as alone:
            told.append(alone)
            entered.set()
            leave.wait(60)

    def second():
        with first_alone("network", tmp_path) as alone:
            told.append(alone)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    with first_alone("another network", tmp_path) as alone:
        assert alone  # waits for nobody
    assert told == [True]
    leave.set()
    for thread in threads:
        thread.join(60)
    assert told == [True, False]


def test_after_a_failure_the_next_one_compiles(tmp_path):
    with pytest.raises(ValueError, match="no compiler"), first_alone("network", tmp_path):
        raise ValueError("no compiler")
    with first_alone("network", tmp_path) as alone:
        assert alone


# --- items of slow networks


def test_an_item_of_a_slow_network_takes_longer_so_that_few_rows_only_fill_batches():
    def item_nfe(rate: float, batch: int) -> float:
        speed = _Speed(5.0, batch)
        speed._rate, speed._longest_nfe = rate, 1e9
        return speed.item_nfe

    assert item_nfe(10_000, 512) == 50_000  # 98 batches in 5 s
    assert item_nfe(3_000, 512) == LEAST_BATCHES * 512  # 5.5 s in place of 5
    assert item_nfe(400, 512) == 4_000  # 10 s, and no longer
    assert item_nfe(400, 0) == 2_000


def test_networks_of_the_shipped_models_keep_their_attention_s_bits_on_a_cpu(operands):
    load_denoiser("digits")(torch.ones(1, 1, 8, 8), torch.ones(1))
    assert 1 not in {stride[-1] for stride in operands}
