"""Networks that do not denoise are refused before any vote, whoever loads them."""

from functools import partial

import pytest
import torch

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.identity import votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.engine.denoising_check import (
    LEVELS,
    DenoisingError,
    denoising_errors,
    refuse_poor,
)
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.from_config import lowest_visited
from diffcert_ray.run.certify import certify
from tests.worlds import settings, small_world

WRONG = {"preconditioning": "vp"}


class Wrong:
    """A world whose estimates are off by a multiple of the noise."""

    def __init__(self, world, off):
        self._world, self._off = world, off
        self.image_shape, self.num_classes = world.image_shape, world.num_classes
        self.has_unconditional, self.s_range = True, world.s_range
        self.state_dict = world.state_dict
        self.sizes = []

    def __call__(self, u, s, y=None):
        self.sizes.append(len(u))
        return self._world(u, s, y) + self._off * s[:, None, None, None]


def test_shipped_networks_denoise_and_wrongly_described_ones_do_not():
    data = load_dataset(load_config("digits").dataset)
    found = {
        name: denoising_errors(load_denoiser("digits", said), data, batch=7, whole=False,
                               device="cpu")
        for name, said in (("right", {}), ("wrong", WRONG))
    }  # fmt: skip
    assert [f.level for f in found["right"]] == list(LEVELS)
    assert all(f.error < f.level for f in found["right"])
    assert all(f.error > f.level for f in found["wrong"])


def test_certify_refuses_a_network_that_does_not_denoise_before_any_vote(tmp_path):
    tables = {"model": {"config": WRONG}, "dataset": {"first": 2}, "votes": {"n": 20, "n0": 10}}
    with pytest.raises(ConfigError, match=r"model.checkpoint does not denoise.*preconditioning"):
        certify(tables | {"votes": tables["votes"] | {"radii": [0]}}, tmp_path / "run", local=True)
    assert not list((tmp_path / "run" / "units").glob("*"))


@pytest.mark.parametrize("off", [1.5, float("nan")])
def test_own_object_is_tried_too_and_the_key_turns_it_off(tmp_path, off):
    world, data = small_world()
    given = {"denoiser": Wrong(world, off), "dataset": data, "local": True}
    with pytest.raises(ConfigError, match=r"check_denoising = false"):
        certify(settings(), tmp_path / "a", **given)
    if off == 1.5:
        run = certify(settings(model={"check_denoising": False}), tmp_path / "b", **given)
        assert len(run.certificates()) == len(data)
    good = Wrong(world, 0.0)
    certify(settings(), tmp_path / "c", denoiser=good, dataset=data, local=True)


def test_a_network_that_is_poor_at_one_level_of_many_is_let_through():
    """Its certificates are smaller, not wrong; at most levels it would be a wrong network."""
    found = [DenoisingError(0.2, 0.21), DenoisingError(0.5, 0.3), DenoisingError(1.0, 0.4)]
    refuse_poor(found, "model.checkpoint", "own")
    refuse_poor([*found, DenoisingError(2.0, 2.0)], "model.checkpoint", "own")  # half of them
    poor = [found[0], DenoisingError(0.5, 0.5), found[2]]
    with pytest.raises(ConfigError, match=r"level 0\.2 .* at 2 of 3 levels"):
        refuse_poor(poor, "model.checkpoint", "own")
    with pytest.raises(ConfigError, match="1 of 1 levels"):
        refuse_poor([DenoisingError(0.5, float("nan"))], "model.checkpoint", "own")


def test_levels_below_those_that_votes_visit_are_not_looked_at():
    world, data = small_world()
    errors = partial(denoising_errors, world, data, batch=64, whole=False, device="cpu")
    assert [f.level for f in errors(lowest=0.5)] == [0.5, 1.0, 2.0]
    assert [f.level for f in errors(lowest=1.5)] == [2.0]
    assert lowest_visited(load_config("digits")) == 0.5  # 2 sigma
    assert lowest_visited(load_config("digits", ["votes.sigmas=[0.5,0.1]"])) == 0.2
    assert lowest_visited(load_config("digits", ["noise_levels.min=0.7"])) == 0.5  # the first step
    assert lowest_visited(load_config("digits-local")) == 1.0  # dc: its own grid


def test_compiled_networks_see_whole_batches_only():
    world, data = small_world()
    own = Wrong(world, 0.0)
    denoising_errors(own, data, batch=6, whole=True, device="cpu")
    assert own.sizes == [6, 6, 6]  # 4 images at 4 levels
    own.sizes.clear()
    denoising_errors(own, data, batch=128, whole=False, device="cpu")
    assert own.sizes == [16]


def test_step_without_a_class_is_tried_without_one():
    world, data = small_world()
    config = load_config(settings(method={"name": "denoise-classify"}))
    seen = []

    class Spy(Wrong):
        def __call__(self, u, s, y=None):
            seen.append(y)
            return super().__call__(u, s, y)

    own = Spy(world, 0.0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    spec = WorkerSpec(config, weights_of(config, own, network), "cpu", own, data, network)
    worker = spec.load("w", tried=False)
    seen.clear()
    worker.check_denoising()
    assert all(bool((y == -1).all()) for y in seen)


def test_votes_do_not_depend_on_the_key():
    on, off = load_config({}), load_config({"model": {"check_denoising": False}})
    assert votes_identity(on, {}) == votes_identity(off, {})
