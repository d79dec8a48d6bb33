"""Training of the digits classifier: it learns from noisy images and repeats."""

import pytest
import torch
from typer.testing import CliRunner

from diffcert_ray.checkpoints.image_classifier import digits_convnet, load_classifier
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.tools.classifier_training import ClassifierRecipe, train_classifier


def test_training_learns_from_noisy_images():
    data, losses = load_dataset({"name": "digits", "split": "train"}), []
    recipe = ClassifierRecipe(steps=60, batch=64)
    torch.manual_seed(0)
    seen = []
    network = digits_convnet()
    network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].std().item()))
    train_classifier(network, data, recipe, lambda _, loss: losses.append(loss))
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]
    # Variances add: that of the pixels, and that of the noise.
    expected = (data.pixels.var() + 0.25**2) ** 0.5
    assert sum(seen) / 60 == pytest.approx(expected, rel=0.02)


def test_the_command_writes_a_file_that_repeats_and_loads(tmp_path):
    runner, states = CliRunner(), []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        arguments = ["--steps", "3", "--batch", "8", "--seed", "5", "--output", str(path)]
        found = runner.invoke(app, ["train", "digits-classifier", *arguments])
        assert found.exit_code == 0, found.output
        tables = {"checkpoint": str(path), "architecture": "digits-convnet"}
        config = load_config({"method": {"name": "classify"}, "classifier": tables})
        states.append(load_classifier(config, 10, (1, 8, 8)))
    x = torch.rand((4, 1, 8, 8))
    assert torch.equal(states[0](x), states[1](x))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"sigma": -0.1}])
def test_a_recipe_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        ClassifierRecipe(**wrong)


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path):
    from diffcert_ray.tools.classifier_training import train_digits_classifier

    with pytest.raises(ValueError, match=r"name a \.safetensors file in a folder"):
        train_digits_classifier(tmp_path / "net.pt")
