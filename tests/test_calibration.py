"""Calibration: what it leaves alone, what it chooses, and that a resume adopts the choice."""

import pytest
import torch
from torch import nn

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config, presets
from diffcert_ray.config.tables import NumericsConfig
from diffcert_ray.datasets import load_dataset
from diffcert_ray.engine.speed import Rate, smallest_good_batch
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.run import calibration
from diffcert_ray.run.calibration import (
    calibrate,
    is_wanted,
    memory_limit,
    open_keys,
    pays,
)
from diffcert_ray.run.certify import certify
from diffcert_ray.run.dtype_agreement import Agreement
from diffcert_ray.run.kind import kind_of
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.stored import open_run
from tests.worlds import settings, small_world

LONG = 1e12  # evaluations of a run that takes days


@pytest.fixture
def rates(monkeypatch):
    """Give batch sizes made-up rates; returns them, to be changed, and what was asked for."""
    made = {8: 500.0, 16: 900.0, 32: 980.0, 64: 1000.0, 128: None}
    asked: list = []

    def found(network, sizes, device, *, memory_limit):
        asked.append((list(sizes), memory_limit))
        return [Rate(b, made.get(b)) for b in sizes if b in made]

    monkeypatch.setattr("diffcert_ray.engine.speed.batch_rates", found)
    monkeypatch.setattr(calibration._Trial, "rough_seconds", lambda self: self._nfe / 1000.0)
    monkeypatch.setattr(calibration._Trial, "_network", lambda self, way: small_world()[0])
    return made, asked


def chosen(nfe: float = LONG, **tables):
    return calibrate(load_config(tables), {"denoiser": ""}, "cpu", nfe=nfe)


def test_a_short_run_keeps_the_defaults_and_says_so(rates):
    found = chosen(nfe=1000.0 * calibration.SHORT_S - 1)
    assert found.numerics == NumericsConfig()
    assert "would not pay for more" in found.said
    assert "compiled: no, run of about 15 min" in found.said
    assert rates[1] == []


def test_the_smallest_batch_that_is_nearly_the_fastest_is_chosen(rates):
    found = chosen()
    assert found.numerics.batch == 32  # 2 % slower than 64; 128 does not fit
    assert "128 out of memory" in found.said
    for short in (True, False):
        assert smallest_good_batch([Rate(8, 99.0), Rate(16, 100.0)], 5.0, short=short) == 8
        assert smallest_good_batch([Rate(8, 90.0), Rate(16, 100.0)], 5.0, short=short) == 16


def test_what_the_end_of_an_item_wastes_counts_against_large_batches():
    measured = [Rate(128, 2400.0), Rate(512, 2500.0), Rate(1024, None)]
    assert smallest_good_batch(measured, 5.0, short=False) == 128
    assert smallest_good_batch(measured, 600.0, short=False) == 512
    assert smallest_good_batch(measured, 20.0, short=True) == 512
    assert smallest_good_batch(measured, 20.0, short=False) == 128


def test_a_compiled_network_gets_the_batch_that_its_whole_last_batches_allow(rates, monkeypatch):
    made, _ = rates
    made.clear()
    made.update({128: 2400.0, 512: 2500.0})
    item = {"item_s": 20.0}
    assert chosen(execution=item, numerics={"compile": False}).numerics.batch == 512
    assert chosen(execution=item, numerics={"compile": True}).numerics.batch == 128


def test_workers_share_a_run(rates):
    config = load_config({})
    alone, together = (
        calibrate(config, {}, "cpu", nfe=1.5e6, workers=workers) for workers in (1, 2)
    )
    assert alone.numerics.batch == 32
    assert together.numerics.batch == NumericsConfig().batch


def test_what_the_configuration_gives_is_not_changed(rates):
    found = chosen(numerics={"batch": 16, "compile": False})
    assert found.numerics == NumericsConfig(batch=16, compile=False)
    assert rates[1][0][0] == [16]
    assert "compiled: no, as configured" in found.said
    assert open_keys(load_config({"numerics": {"batch": 16}})) == {
        "dtype", "channels_last", "compile"
    }  # fmt: skip
    given = {"batch": 16, "dtype": "float32", "channels_last": False, "compile": True}
    everything = load_config({"numerics": given})
    assert not is_wanted(everything, LONG, own_object=False)


def test_a_lower_precision_is_tried_only_where_it_is_allowed(rates, monkeypatch):
    tried: list = []
    monkeypatch.setattr(
        calibration._Trial,
        "_network",
        lambda self, way: tried.append(way.dtype) or small_world()[0],
    )
    monkeypatch.setattr(
        calibration,
        "agreements",
        lambda config, weights, device, dtypes, **_: [
            Agreement(dtype, 2000, 0) for dtype in dtypes if dtype != "float32"
        ],
    )
    chosen()
    assert set(tried) == {"float32"}
    chosen(execution={"dtypes": ["float32", "bfloat16"]})
    assert set(tried) == {"float32", "bfloat16"}


def test_the_faster_order_in_memory_is_chosen_unless_it_is_given(rates, monkeypatch):
    made, _ = rates

    def order(self, way):
        made.clear()
        made.update({32: 2000.0 if way.channels_last else 1000.0})
        return small_world()[0]

    monkeypatch.setattr(calibration._Trial, "_network", order)
    found = chosen()
    assert found.numerics.channels_last
    assert "batch 32, float32 channels_last" in found.said
    assert "float32: 32 1,000; float32 channels_last: 32 2,000" in found.said
    kept = chosen(numerics={"channels_last": False})
    assert not kept.numerics.channels_last
    assert "float32 channels_last" not in kept.said


def test_calibration_reads_the_network_as_a_worker_does(monkeypatch, tmp_path):
    """A state dict that needs its configuration's help; the order in memory is the tried one."""
    digits = load_denoiser("digits")
    torch.save(digits.state_dict(), tmp_path / "digits.pt")
    about = digits.configuration.model_dump(mode="json", exclude_unset=True)
    config = load_config({"model": {"checkpoint": str(tmp_path / "digits.pt"), "config": about},
                          "execution": {"calibrate": "always", "memory_limit": 0.1},
                          "numerics": {"compile": False}})  # fmt: skip
    tried = []

    def found(network, sizes, device, *, memory_limit):
        weight = network.model.enc["8x8_block0"].conv0.weight
        tried.append(weight.is_contiguous(memory_format=torch.channels_last))
        return [Rate(8, 1.0)]

    monkeypatch.setattr("diffcert_ray.engine.speed.batch_rates", found)
    monkeypatch.setattr(calibration._Trial, "rough_seconds", lambda self: LONG)
    calibrate(config, weights_of(config), "cpu", nfe=LONG)
    assert tried == [False, True]


def test_calibration_is_wanted_for_long_runs_of_checkpoints_only():
    auto = load_config({})
    assert is_wanted(auto, LONG, own_object=False)
    assert not is_wanted(auto, LONG, own_object=True)
    assert not is_wanted(auto, calibration.SMALL_NFE - 1, own_object=False)
    never, always = (load_config({"execution": {"calibrate": m}}) for m in ("never", "always"))
    assert not is_wanted(never, LONG, own_object=False)
    assert is_wanted(always, 1.0, own_object=True)
    direct = load_config({"method": {"name": "classify"}, "execution": {"calibrate": "always"}})
    assert not is_wanted(direct, LONG, own_object=False)


def test_shipped_quick_presets_are_not_even_looked_at():
    assert "digits-quick" in presets()
    config = load_config("digits-quick")
    data = load_dataset(config.dataset)
    nfe = kind_of(config).planned_nfe(config, plan_of(config, data), data.num_classes)
    assert 0 < nfe < calibration.SMALL_NFE


def test_planned_evaluations_are_exact_where_nothing_is_sifted():
    _, data = small_world()
    config = load_config(settings(sift={"rule": "full"}))
    assert kind_of(config).planned_nfe(config, plan_of(config, data), 4) == 6 * 80 * (24 * 4 + 1)
    plain = load_config(settings(method={"name": "dc"}, plain={"draws": 64},
                                 votes={"bound": "local"},
                                 noise_levels={"weights": "linear-s", "min": 1.0}))  # fmt: skip
    assert kind_of(plain).planned_nfe(plain, plan_of(plain, data), 4) == 6 * 64 * 24 * 4


def test_a_rule_that_drops_few_classes_plans_for_more_evaluations():
    _, data = small_world()
    full, exact, paired = (
        kind_of(config).planned_nfe(config, plan_of(config, data), 4)
        for rule in ("full", "exact", "paired-z")
        for config in [load_config(settings(sift={"rule": rule}))]
    )
    assert paired < exact < full


def test_a_short_run_that_is_to_be_compiled_is_said_to_be(rates):
    found = chosen(nfe=1.0, numerics={"compile": True})
    assert found.numerics.compile
    assert "compiled: yes, run of" in found.said


def test_compiling_must_clearly_save_more_than_it_takes():
    assert pays(run_s=3600.0, gain=1.6, compile_s=60.0)
    assert not pays(run_s=300.0, gain=1.6, compile_s=60.0)  # saves 112 s for 60
    assert not pays(run_s=1e9, gain=1.0, compile_s=60.0)


class Compilable(nn.Module):
    """A small network that tells whether it was compiled."""

    image_shape, num_classes, has_unconditional, s_range = (1, 4, 4), 3, True, (0.01, 50.0)
    error: Exception | None = None

    def forward(self, u, s, y=None):
        if self.error is not None:
            raise self.error
        return u


@pytest.fixture
def compiled(monkeypatch, rates):
    """Compiling is noted, not done."""
    networks: list = []
    monkeypatch.setattr(calibration._Trial, "_network", lambda self, way: Compilable())
    monkeypatch.setattr("diffcert_ray.denoisers.device.compile_denoiser", networks.append)
    return networks


def test_a_long_run_is_compiled_where_that_is_faster(compiled, monkeypatch):
    monkeypatch.setattr("diffcert_ray.engine.speed.Forward.rate", lambda self, s: 1600.0)
    found = chosen()
    assert found.numerics.compile
    assert len(compiled) == 2  # in both orders, of a run of hours
    assert "compiled: yes, 1.63 times as fast" in found.said
    monkeypatch.setattr("diffcert_ray.engine.speed.Forward.rate", lambda self, s: 900.0)
    assert not chosen().numerics.compile


def test_a_run_too_short_for_compiling_does_not_try_it(compiled, monkeypatch):
    monkeypatch.setattr(calibration, "COMPILE_S", 600.0)
    found = chosen(nfe=1000.0 * calibration.SHORT_S)  # saves 340 s
    assert found.numerics.batch == 32
    assert not found.numerics.compile
    assert "compiled: no, run of about 15 min would not pay for it" in found.said
    assert compiled == []
    chosen(nfe=1.0, execution={"calibrate": "always"})
    assert len(compiled) == 1


def test_a_machine_without_a_compiler_is_no_failure(compiled, monkeypatch):
    from diffcert_ray.denoisers.device import compilation_failures

    class Missing(compilation_failures()[-1]):
        def __init__(self) -> None:
            Exception.__init__(self, "no compiler")

    monkeypatch.setattr(Compilable, "error", Missing())
    found = chosen()
    assert not found.numerics.compile
    assert "compiled: no, it cannot be here (Missing)" in found.said


def test_memory_limit_is_as_configured_or_a_share_of_what_is_free(monkeypatch):
    assert memory_limit(load_config({"execution": {"memory_limit": 1.5}}), "cpu") == 1.5 * 2**30
    monkeypatch.setattr(calibration, "_free_host_bytes", lambda: 1000)
    assert memory_limit(load_config({"execution": {"actors": 2}}), "cpu") == 400
    kept = [400]  # by torch, of the way that was measured before
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000 - sum(kept), 2000))
    half = load_config({"execution": {"gpus_per_actor": 0.5}})
    assert memory_limit(half, "cuda") == 400


def test_the_choice_is_stored_and_a_resume_adopts_it(tmp_path, monkeypatch):
    world, data = small_world(images=2)
    tables = settings(execution={"calibrate": "always"}, votes={"n": 20})
    tables.pop("numerics")
    config, said = load_config(tables), []
    monkeypatch.setattr(
        "diffcert_ray.engine.speed.smallest_good_batch", lambda rates, item_s, *, short: 24
    )
    monkeypatch.setattr(
        "diffcert_ray.engine.speed.batch_rates",
        lambda network, sizes, device, *, memory_limit: [Rate(24, 1000.0)],
    )
    run = certify(config, tmp_path / "run", local=True, denoiser=world, dataset=data,
                  on_calibrated=said.append)  # fmt: skip
    assert run.outcome.complete
    assert open_run(tmp_path / "run").config.numerics.batch == 24
    assert len(said) == 1
    again = certify(config, tmp_path / "run", local=True, denoiser=world, dataset=data,
                    on_calibrated=said.append)  # fmt: skip
    assert again.outcome.complete
    assert len(said) == 1


def test_on_a_cluster_a_worker_is_calibrated_not_the_driver(tmp_path, monkeypatch):
    world, data = small_world(images=2)
    called = []

    def task(work, *, address, gpus, **limits):
        called.append((work.func, address, gpus, limits["work_s"]))
        raise KeyboardInterrupt  # nothing more is to happen here

    monkeypatch.setattr("diffcert_ray.pool.on_ray.one_worker.on_one_worker", task)
    for device, gpus in (("cpu", 0.0), ("cuda", 0.5)):
        execution = {"calibrate": "always", "device": device, "gpus_per_actor": 0.5}
        config = load_config(settings(execution=execution))
        with pytest.raises(KeyboardInterrupt):
            certify(config, tmp_path / "run", address="host:1", denoiser=world, dataset=data)
        assert called.pop() == (calibration.calibrate_for, "host:1", gpus, 1800.0)


def test_a_run_is_divided_by_the_places_that_a_cluster_has_for_workers(monkeypatch):
    found = {}
    monkeypatch.setattr(calibration, "calibrate", lambda *_, **given: found.update(given))
    for execution, places, workers in (
        ({}, 8, 8),
        ({"actors": 3}, 8, 3),
        ({"most_actors": 64}, 8, 64),
        ({"most_actors": 2}, 8, 8),
    ):
        config = load_config({"execution": execution})
        calibration.calibrate_for(config, {}, "cpu", places, nfe=1e9)
        assert found["workers"] == workers
