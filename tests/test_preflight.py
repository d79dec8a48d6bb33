"""What is refused before the first evaluation, and the message that says why."""

import dataclasses

import numpy as np
import pytest

from diffcert_ray.certificates.reach import largest_radius
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.certify import certify
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.preflight import check_plan
from diffcert_ray.run.reachable import check_radii
from tests.worlds import settings


def refuse(world, dataset, match: str, **tables) -> None:
    config = load_config(settings(**tables))
    with pytest.raises(ConfigError, match=match):
        check_plan(config, plan_of(config, dataset), dataset, world[0])


def test_a_sound_plan_passes(world):
    config = load_config(settings())
    check_plan(config, plan_of(config, world[1]), world[1], world[0])


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        ({"weights": "reference"}, "noise_levels at sigma 0.25: .*reference"),
        ({"min": 0.1}, "noise_levels at sigma 0.25: .*0.5"),
    ],
)
def test_an_impossible_grid_is_refused_before_there_is_a_run_folder(world, tmp_path, grid, match):
    config = load_config(settings(noise_levels=grid))
    with pytest.raises(ConfigError, match=match):
        certify(config, tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range_are_named(world):
    labels = world[1].labels.copy()
    labels[2] = 4
    wrong = dataclasses.replace(world[1], labels=labels)
    refuse(world, wrong, r"labels of world go from \d to 4, but it has 4 classes")


def test_another_number_of_classes_than_the_networks_is_refused(world):
    wrong = dataclasses.replace(world[1], class_names=("a", "b", "c", "d", "e"))
    refuse(world, wrong, "dataset world has 5 classes, the network .* has 4")


def test_another_image_shape_than_the_networks_is_refused(world):
    wrong = dataclasses.replace(world[1], pixels=np.zeros((6, 3, 4, 4), np.float32))
    refuse(world, wrong, r"are \(3, 4, 4\) .* takes \(1, 4, 4\)")


def test_image_ids_beyond_the_noise_address_are_refused(world):
    wrong = dataclasses.replace(world[1], ids=world[1].ids + 2**32)
    refuse(world, wrong, "noise addresses hold 0 to 4294967295")


@pytest.mark.parametrize("bound", ["clopper-pearson", "two-class", "sequential"])
def test_radii_out_of_reach_name_the_n_that_would_do(world, bound):
    config = load_config(settings(votes={"bound": bound, "radii": [0.9]}))
    plan = plan_of(config, world[1])
    with pytest.raises(ConfigError, match=r"set votes.n to") as caught:
        check_radii(plan)
    needed = int(str(caught.value).split("set votes.n to ")[1].split()[0])
    off = {"slack": plan.slack(0.25), "taken_off": plan.taken_off()}
    assert largest_radius(needed, 0.25, 0.001, bound, **off) >= 0.9
    assert largest_radius(needed - 1, 0.25, 0.001, bound, **off) < 0.9


def test_a_radius_that_only_the_largest_sigma_reaches_is_allowed(world):
    config = load_config(settings(votes={"sigmas": [0.25, 1.0], "radii": [0.9], "n": 60}))
    check_radii(plan_of(config, world[1]))


@pytest.mark.parametrize("images", [(0, 0), (3, 2), (0, 7), (-1, 2)])
def test_an_image_range_outside_the_subset_is_refused(world, images):
    with pytest.raises(ConfigError, match="not a range of the 6 chosen images"):
        plan_of(load_config(settings()), world[1], images)
