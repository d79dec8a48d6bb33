"""Images, noise and the denoising step at one resolution, the classifier at another."""

import numpy as np
import pytest
import torch

from diffcert_ray import certify
from diffcert_ray.checkpoints.load import save_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.pixel_grid import to_grid
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.errors import CheckpointError, ConfigError
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.noise import NoiseSource, noisy_model_images
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.tools.exact_worlds import gaussian_world
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import settings

SIGMA, VOTES = 0.25, 24
SMALL = gaussian_world(5, 16, 0.3, 0.25, seed=1, image_shape=(1, 4, 4))
LARGE = gaussian_world(3, 64, 0.3, 0.25, seed=2, image_shape=(1, 8, 8))
PIXELS = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)


def configuration(method: str = "apndc", **model: object):
    return load_config(
        settings(
            sift={"rule": "full"},
            method={"name": method},
            model=model,
            noise_levels={"levels": 6},
            votes={"sigmas": [SIGMA], "seed": 5},
        )
    )


def test_votes_are_those_of_noise_at_the_stored_resolution_and_a_resized_estimate():
    base = base_classifier(
        configuration(resize="area"),
        SMALL,
        SIGMA,
        unconditional=ResizedDenoiser(LARGE, SMALL.image_shape, "area"),
    )
    assert base.smoothed_shape == (1, 8, 8)
    unit = Unit(SIGMA, 7, "estimate", 0, VOTES)
    item = Item(0, SIGMA, (Part(unit, 0, VOTES),))
    votes, nfe = evaluate_votes(base, item, lambda _: PIXELS)
    assert nfe == VOTES * (1 + 6 * 5)
    # The same by hand: each noise from its own address, blocks of 2 x 2 averaged.
    vote = np.arange(VOTES)
    same = np.full(VOTES, 7), np.ones(VOTES, np.int64), vote
    steps = NoiseSource(5, SIGMA, 64).steps(*same).reshape(-1, 1, 8, 8)
    noisy = noisy_model_images(torch.from_numpy(to_grid(PIXELS)), steps)
    clean = LARGE(noisy, torch.full((VOTES,), 0.5), None)
    clean = clean.reshape(-1, 1, 4, 2, 4, 2).mean(dim=(3, 5))
    losses = torch.zeros(VOTES, 5, dtype=torch.float64)
    for level, (s, weight) in enumerate(zip(base.plan.s, base.plan.weights, strict=True)):
        at = NoiseSource(5, SIGMA, 16).normal(*same, np.full(VOTES, level))
        z = clean + float(s) * at.reshape(-1, 1, 4, 4)
        for y in range(5):
            out = SMALL(z, torch.full((VOTES,), float(s)), torch.full((VOTES,), y))
            losses[:, y] += weight * (out - clean).square().mean(dim=(1, 2, 3)).double()
    assert len(set(votes.tolist())) > 1
    assert votes.tolist() == losses.argmin(dim=1).tolist()


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_every_way_of_resizing_keeps_a_constant_image(resize):
    class Constant:
        image_shape, num_classes, has_unconditional, s_range = (1, 8, 8), 0, True, (0.0, 9.0)

        def __call__(self, u, s, y=None):
            return torch.full_like(u, 0.25)

    resized = ResizedDenoiser(Constant(), (1, 4, 4), resize)
    out = resized(torch.zeros(2, 1, 8, 8), torch.ones(2))
    torch.testing.assert_close(out, torch.full((2, 1, 4, 4), 0.25))


def test_networks_of_two_resolutions_without_resize_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"set model\.resize"):
        base_classifier(configuration(), SMALL, SIGMA, unconditional=LARGE)


def test_a_method_that_classifies_the_noisy_image_cannot_be_resized():
    resized = ResizedDenoiser(LARGE, SMALL.image_shape, "area")
    with pytest.raises(ConfigError, match=r"only method\.name"):
        base_classifier(
            configuration("apndc-posterior", resize="area"), SMALL, SIGMA, unconditional=resized
        )


def test_other_channels_are_refused():
    with pytest.raises(CheckpointError, match="same number of channels"):
        ResizedDenoiser(LARGE, (3, 4, 4), "area")


def network(path, size: int, classes: int) -> str:
    made = EdmConfiguration(
        model_type="SongUNet",
        img_resolution=size,
        img_channels=1,
        label_dim=classes,
        model_channels=4,
        channel_mult=(1,),
        num_blocks=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_denoiser(path, EdmDenoiser(made), {})
    return str(path)


def tables(folder) -> dict:
    return {
        "dataset": {"name": "digits", "first": 2},
        "model": {
            "checkpoint": network(folder / "small.safetensors", 4, 10),
            "unconditional": network(folder / "large.safetensors", 8, 0),
            "resize": "area",
            "check_denoising": False,  # random weights
        },
        "noise_levels": {"levels": 3},
        "votes": {"sigmas": [SIGMA], "n0": 2, "n": 12, "radii": [0.0]},
        "numerics": {"batch": 16},
    }


def test_a_run_says_at_which_resolution_its_radii_are(tmp_path):
    run = certify(tables(tmp_path), tmp_path / "run", local=True)
    assert len(run.certificates()) == 2
    assert run.document.votes_identity["model.resize"] == "area"
    assert run.document.dataset["image_shape"] == [1, 8, 8]


def test_resize_without_its_network_and_images_of_a_third_resolution_are_refused(tmp_path):
    made = tables(tmp_path)
    lonely = made | {"model": made["model"] | {"unconditional": None}}
    with pytest.raises(ConfigError, match=r"resizes what model\.unconditional denoised"):
        certify(lonely, tmp_path / "run", local=True)
    model = made["model"] | {"unconditional": network(tmp_path / "third.safetensors", 16, 0)}
    with pytest.raises(ConfigError, match=r"\(1, 8, 8\).*\(1, 16, 16\)"):
        certify(made | {"model": model}, tmp_path / "run", local=True)
    assert load_dataset("digits").image_shape == (1, 8, 8)


def test_every_table_says_in_which_space_its_radii_are(tmp_path):
    run = certify(tables(tmp_path), tmp_path / "run", local=True)
    (series,) = series_of_run(run)
    assert series.title.endswith("l2 of 1x8x8 images")
