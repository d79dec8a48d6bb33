"""Training: it learns, repeats, and sees only what it is given."""

import dataclasses

import numpy as np
import pytest
import torch

from diffcert_ray.checkpoints.files import read_metadata
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.tools.training import (
    DIGITS_CONFIGURATION,
    Recipe,
    _draw,
    denoising_loss,
    train,
    train_digits,
)

TINY = EdmConfiguration(
    model_type="SongUNet", img_resolution=8, img_channels=1, label_dim=10, model_channels=8,
    channel_mult=(1,), num_blocks=1, has_unconditional=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return load_dataset({"name": "digits", "split": "train"})


def weights(denoiser):
    return torch.cat([parameter.flatten() for parameter in denoiser.parameters()])


def test_loss_is_the_weighted_error_of_the_denoiser():
    def halving(u, s, y):
        return u / 2

    u, eps = torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2, 2), 1.0)
    s = torch.tensor([0.5, 1.0])
    # errors ((0.5 + s) / 2 - 0.5)^2 = 0, 0.0625; lambda(1) = (1 + 0.25) / 0.25 = 5
    loss = denoising_loss(halving, u, torch.tensor([0, 1]), s, eps, 0.5)
    assert loss.item() == pytest.approx((0 + 5 * 0.0625) / 2)


def test_training_reduces_the_loss(digits):
    losses = []
    train(TINY, digits, Recipe(steps=60, batch=64, warmup_steps=5), lambda _, x: losses.append(x))
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_equal_seeds_give_equal_weights_and_other_seeds_others(digits):
    recipe = Recipe(steps=4, batch=16)
    first, again = (weights(train(TINY, digits, recipe)) for _ in range(2))
    other = weights(train(TINY, digits, dataclasses.replace(recipe, seed=1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_leaves_torchs_generator_alone(digits):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(TINY, digits, Recipe(steps=1, batch=4))
    assert torch.equal(torch.rand(3), expected)


def test_labels_are_dropped_at_the_stated_rate_and_never_changed(digits):
    torch.manual_seed(0)
    recipe = Recipe(batch=20_000, p_mean=0.2, p_std=0.7, label_dropout=0.15)
    images, labels = torch.tensor(digits.pixels), torch.tensor(digits.labels)
    u, y, s, _ = _draw(recipe, images, labels)
    # 4 standard deviations each, false alarm 6e-5 each (and the seed is fixed)
    assert (y == -1).float().mean().item() == pytest.approx(0.15, abs=4 * 0.0025)
    assert s.log().mean().item() == pytest.approx(0.2, abs=4 * 0.7 / 141)
    assert s.log().std().item() == pytest.approx(0.7, abs=4 * 0.7 / 200)
    kept = {(image.numpy().tobytes(), int(label)) for image, label in zip(u, y, strict=True)}
    known = {
        (image.tobytes(), int(label))
        for image, label in zip(digits.pixels, digits.labels, strict=True)
    }
    assert {pair for pair in kept if pair[1] >= 0} <= known


def test_digits_model_is_trained_on_the_train_split_alone(tmp_path, digits):
    path = train_digits(tmp_path / "model.safetensors", steps=2, batch=8)
    recipe = read_metadata(str(path))["recipe"]
    test = load_dataset({"name": "digits", "split": "test"})
    assert recipe["dataset"] == "digits train"
    assert recipe["dataset_fingerprint"] == digits.fingerprint != test.fingerprint
    assert (recipe["steps"], recipe["batch"], recipe["seed"]) == (2, 8, 0)
    assert recipe["torch"] == torch.__version__
    assert 0 < recipe["seconds"] < 600
    # The same weights come from a process that is given the train split and nothing else.
    expected = train(DIGITS_CONFIGURATION, digits, Recipe(steps=2, batch=8))
    assert torch.equal(weights(load_denoiser(str(path))), weights(expected))


def test_shipped_model_says_how_it_was_made(digits):
    recipe = read_metadata("digits")["recipe"]
    assert recipe["dataset_fingerprint"] == digits.fingerprint


def test_progress_is_reported_after_every_step(digits):
    steps = []
    train(TINY, digits, Recipe(steps=3, batch=4), lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3]


def test_network_that_does_not_fit_the_images_is_refused(digits):
    wrong = TINY.model_copy(update={"img_resolution": 16})
    with pytest.raises(ValueError, match="digits has images"):
        train(wrong, digits, Recipe(steps=1))


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}])
def test_training_without_steps_or_images_is_refused(change):
    with pytest.raises(ValueError, match="at least 1"):
        Recipe(**change)


def test_training_uses_one_thread_and_leaves_the_others_as_they_were(tmp_path):
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_digits(
            tmp_path / "m.safetensors",
            channels=8,
            steps=1,
            batch=8,
            on_progress=lambda step, loss: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
