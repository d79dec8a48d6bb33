"""The probe batch: numerics kinds, and the smaller batches that give the same bits."""

import pytest
import torch

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.engine.networks import DiffusionNetworks
from diffcert_ray.engine.numerics_kind import kind_of_logits, numerics_kind, short_batches
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import Worker, WorkerSpec
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import settings, small_world


class Positional:
    """A denoiser whose rows depend a little on where in the batch they stand."""

    image_shape, num_classes, has_unconditional, s_range = (1, 2, 2), 3, True, (0.0, 9.0)

    def __call__(self, u, s, y=None):
        return u * (1 + 1e-6 * torch.arange(len(u))[:, None, None, None])


class Coupled(Positional):
    """A denoiser that normalises over its batch, as batch normalisation in training does."""

    def __call__(self, u, s, y=None):
        return u / u.std()


def test_numerics_kind_is_the_same_for_the_same_network_and_differs_for_another():
    world, other = small_world()[0], small_world(seed=1)[0]
    kind = numerics_kind(world, 32, "cpu")
    assert kind == numerics_kind(small_world()[0], 32, "cpu")
    assert kind != numerics_kind(other, 32, "cpu")
    assert not kind.endswith("positional")


def test_numerics_kind_of_the_shipped_network_does_not_depend_on_the_thread_count():
    network = load_denoiser("digits")
    threads = torch.get_num_threads()
    try:
        kinds = set()
        for count in (1, 2):
            torch.set_num_threads(count)
            kinds.add(numerics_kind(network, 128, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert len(kinds) == 1


def test_a_network_whose_rows_depend_on_their_position_gets_a_kind_of_its_own(caplog):
    assert numerics_kind(Positional(), 8, "cpu").endswith("-positional")
    assert "depend on their position" in caplog.text


def test_a_network_whose_rows_depend_on_each_other_or_on_chance_is_refused():
    for batch in (2, 7, 64):
        with pytest.raises(ValueError, match=r"depends on the other images.*evaluation mode"):
            numerics_kind(Coupled(), batch, "cpu")

    def hidden(z, s):  # one huge row, one without a number
        out = torch.cat([z.mean().expand(len(z), 1), z.flatten(1)], 1) * 0.01
        return torch.where(s[:, None] > 2.9, torch.where(s[:, None] > 2.95, 1e6, torch.nan), out)

    with pytest.raises(ValueError, match="depends on the other images"):
        kind_of_logits(hidden, (1, 2, 2), 64, "cpu")
    torch.manual_seed(0)
    dropout = torch.nn.Dropout(0.1)
    with pytest.raises(ValueError, match="or on chance"):
        kind_of_logits(lambda z, s: dropout(z.flatten(1)), (1, 2, 2), 16, "cpu")


def test_a_second_network_is_part_of_the_kind():
    world, data = small_world()
    config = load_config(settings())
    kinds = [
        Worker("w", config, DiffusionNetworks(config, world, second, "cpu"), data).numerics
        for second in (None, small_world(seed=1)[0], small_world(seed=2)[0], Positional())
    ]
    assert len(set(kinds)) == 4
    assert [kind.endswith("-positional") for kind in kinds] == [False, False, False, True]


def test_an_own_network_in_training_mode_is_evaluated_in_a_copy_that_is_not():
    class Own(torch.nn.Module):
        image_shape, num_classes, has_unconditional, s_range = (1, 2, 2), 3, True, (0.0, 9.0)

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.5))

        def forward(self, u, s, y=None):
            return self.layers(u)

    own, data = Own(), small_world()[1]
    config = load_config(settings())
    worker = WorkerSpec(config, weights_of(config, own), "cpu", own, data).load("test")
    assert own.training
    assert not any(module.training for module in worker.networks.denoiser.modules())
    own.eval()
    worker = WorkerSpec(config, weights_of(config, own), "cpu", own, data).load("test")
    assert worker.networks.denoiser is own  # nothing to change: no copy


class Changing(Positional):
    """A denoiser that computes otherwise where a batch has fewer than 16 rows, or exactly 64."""

    def __call__(self, u, s, y=None):
        return u + (len(u) < 16 or len(u) == 64)


class ChangingAbove(Positional):
    """A denoiser that computes the upper noise levels otherwise in batches of 16 or fewer rows."""

    def __call__(self, u, s, y=None):
        return u + ((s > 2.5) & (len(u) <= 16))[:, None, None, None]


def test_short_batches_end_at_the_first_size_with_other_bits():
    assert short_batches(Changing(), 48, "cpu") == (24,)
    assert short_batches(Changing(), 32, "cpu") == (16,)
    assert short_batches(Changing(), 128, "cpu") == ()
    assert short_batches(Changing(), 512, "cpu") == (256, 128)
    assert short_batches(ChangingAbove(), 128, "cpu") == (64, 32)
    assert short_batches(small_world()[0], 8, "cpu") == (4, 2, 1)
    assert short_batches(small_world()[0], 8, "cuda") == ()


def test_short_batches_of_the_shipped_network_cast_the_same_votes():
    config = load_config({"numerics": {"batch": 128}, "dataset": {"first": 2}})
    spec, sizes = WorkerSpec(config, weights_of(config)), set()
    found = []
    for short in (True, False):
        loaded = spec.load("test")
        allowed = loaded.base(1.0).short_batches  # none on a processor where all have other bits
        if not short:
            loaded.networks.short_batches = ()
            loaded._base.cache_clear()
        loaded.networks.denoiser.register_forward_pre_hook(
            lambda _, inputs: sizes.add(len(inputs[0]))
        )
        unit = Unit(1.0, int(loaded.dataset.ids[0]), "estimate", 0, 40)
        found.append(loaded.cast_votes(Item(0, 1.0, (Part(unit, 0, 40),))))
        assert sizes <= {128, *allowed}
        assert (len(sizes) > 1) == bool(short and allowed)
        sizes.clear()
    assert found[0].tallies == found[1].tallies
    assert len(found[0].tallies[0].counts) > 1
    assert found[0].padded < found[1].padded or not allowed


def test_short_batches_are_for_float32_only():
    for dtype, some in (("float32", True), ("bfloat16", False)):
        config = load_config({"numerics": {"batch": 128, "dtype": dtype}, "dataset": {"first": 2}})
        worker = WorkerSpec(config, weights_of(config)).load("test")
        assert bool(worker.base(1.0).short_batches) == some


def test_a_compiled_network_has_one_batch_only(monkeypatch):
    monkeypatch.setattr("diffcert_ray.engine.worker.compile_denoiser", lambda network, bottom: None)
    config = load_config({"numerics": {"batch": 128, "compile": True}, "dataset": {"first": 2}})
    assert WorkerSpec(config, weights_of(config)).load("test").base(1.0).short_batches == ()
