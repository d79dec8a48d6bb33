"""Training of a head in steps: what goes on elsewhere ends with the head that it would have had."""

import numpy as np
import pytest
import torch

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.dataset import all_images
from diffcert_ray.tools import head_training
from diffcert_ray.tools.head_training import HeadRecipe, HeadTraining, train_head
from diffcert_ray.tuning import heads
from diffcert_ray.tuning.heads import advanced

DATA = load_dataset({"name": "digits", "split": "train", "first": 48})
NETWORK = load_denoiser("digits")
RECIPE = HeadRecipe(copies=4, epochs=2, batch=16, hidden=8, seed=3)


def arguments(recipe: HeadRecipe = RECIPE) -> tuple:
    images, labels = torch.from_numpy(all_images(DATA)), torch.from_numpy(np.array(DATA.labels))
    return NETWORK, images, labels, 0.25, 10, recipe


@pytest.fixture
def small_pools(monkeypatch):
    """Pools that end within a copy of the images: 192 noisy images are four of them."""
    monkeypatch.setattr(head_training, "POOL_ROWS", 56)
    monkeypatch.setattr(heads, "STEP_S", 0.0)


def test_a_training_in_steps_gives_the_head_of_one_without(small_pools):
    whole = train_head(*arguments())
    state, done = None, []
    for _ in range(4):
        step = advanced(HeadTraining(*arguments(), state))
        state = step.state
        done.append(step.done)
    assert done == [56, 112, 168, 192]
    assert step.finished
    continued = HeadTraining(*arguments(), state).head
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


def test_every_image_is_learned_from_once_in_each_copy(small_pools):
    training = HeadTraining(*arguments())
    rows = torch.cat([training._rows(pool) for pool in range(4)])
    for copy in rows.split(48):
        assert sorted(copy.tolist()) == list(range(48))


def test_a_head_learns_and_its_loss_falls(small_pools):
    losses = []
    recipe = HeadRecipe(copies=20, epochs=4, batch=16, hidden=32)
    train_head(*arguments(recipe), lambda done, total, loss: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]
