"""A worker: what identifies its networks and its numerics, and what it refuses to load."""

import dataclasses

import pytest
import torch

from diffcert_ray.config.loading import load_config
from diffcert_ray.denoisers.device import resolve_device, set_up_torch
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import CheckpointError, ConfigError, DatasetError
from diffcert_ray.tools.exact_worlds import GaussianClasses
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import settings, small_world


def test_weights_name_the_file_and_an_objects_parameters():
    config = load_config({})
    weights = weights_of(config)
    assert set(weights) == {"denoiser"}
    assert len(weights["denoiser"]) == 64
    world = small_world()[0]
    assert weights_of(config, world) == weights_of(config, small_world()[0])
    assert weights_of(config, world) != weights_of(config, small_world(seed=1)[0])


def test_an_objects_hash_stays_what_stored_runs_have():
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.weight, 0.5)
    torch.nn.init.constant_(module.bias, 0.25)
    for denoiser, sha256 in (
        (
            GaussianClasses(torch.arange(6, dtype=torch.float64).reshape(3, 1, 1, 2), 0.3),
            "d8e3186c985a37e93e065ece74bab34d19924f980ad2538b4e130a3c4e012d3a",
        ),
        (module, "0a48532a963178570cc365e2bf7a8d346cf18bf4bdeb83b1899874b2bc228655"),
    ):
        assert weights_of(load_config({}), denoiser) == {"denoiser": sha256}


def test_a_second_checkpoint_is_part_of_the_weights():
    config = load_config({"model": {"unconditional": "digits"}})
    assert set(weights_of(config)) == {"denoiser", "unconditional"}


def test_a_pinned_hash_of_another_file_is_refused():
    config = load_config({"model": {"sha256": "0" * 64}})
    with pytest.raises(ConfigError, match=r"model\.sha256 is 0{64}, but the file 'digits' has"):
        weights_of(config)


class Bare:
    """A denoiser that has nothing to be told by."""

    image_shape, num_classes, has_unconditional, s_range = (1, 2, 2), 3, True, (0.0, 9.0)


def test_an_object_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="Bare has no parameters"):
        weights_of(load_config({}), Bare())


def test_a_worker_with_another_file_than_the_drivers_is_refused():
    spec = WorkerSpec(load_config({}), {"denoiser": "0" * 64})
    with pytest.raises(CheckpointError, match="sha256"):
        spec.load("w")


def test_a_worker_with_another_dataset_than_the_drivers_is_refused():
    config, (world, data) = load_config(settings()), small_world()
    weights = weights_of(config, world)
    spec = WorkerSpec(config, weights, "cpu", world, data, fingerprint="another")
    with pytest.raises(DatasetError, match=r"fingerprint .* the one where the run was started"):
        spec.load("w")
    image_id = int(data.ids[0])
    spec = dataclasses.replace(spec, fingerprint=data.fingerprint, image_shas={image_id: "0" * 16})
    unit = Unit(0.25, image_id, "estimate", 0, 4)
    item = Item(0, 0.25, (Part(unit, 0, 4),))
    with pytest.raises(DatasetError, match=rf"image {image_id} has pixels \w+ on .* but 0{{16}}"):
        spec.load("w").evaluate(item)
    spec = dataclasses.replace(spec, image_shas={image_id: data.image_sha(image_id)})
    assert spec.load("w").evaluate(item).tallies


def test_cuda_that_is_not_there_is_refused_with_the_remedy():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r'finds no GPU.*execution\.device = "cpu"'):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"


def test_apndc_needs_an_unconditional_mode_or_a_second_checkpoint():
    from diffcert_ray.method.diffusion_base import base_classifier

    world, _ = small_world()
    world.has_unconditional = False
    config = load_config(settings())
    with pytest.raises(ConfigError, match=r"trained without label dropout.*model\.unconditional"):
        base_classifier(config, world, 0.25)
    base_classifier(config, world, 0.25, unconditional=small_world()[0])
    base_classifier(load_config(settings(method={"name": "epndc"})), world, 0.25)


def test_a_worker_computes_deterministically_without_writing_memory_twice():
    deterministic = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    try:
        torch.set_deterministic_debug_mode("default")
        deterministic.fill_uninitialized_memory = True
        set_up_torch()
        assert torch.get_deterministic_debug_mode() == 1  # warns where it cannot
        assert not deterministic.fill_uninitialized_memory
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic.fill_uninitialized_memory = before[1]


def test_a_spec_survives_being_sent():
    import pickle

    config = load_config(settings())
    spec = WorkerSpec(config, {"denoiser": "ab"}, "cpu", *small_world())
    again = pickle.loads(pickle.dumps(spec))
    assert again.config == spec.config
    assert dataclasses.asdict(again)["weights"] == {"denoiser": "ab"}
