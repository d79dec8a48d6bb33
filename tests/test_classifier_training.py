"""Training of classifiers: from noisy images, repeatable to the bit, into a file that runs take."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffcert_ray.checkpoints.image_classifier import (
    METADATA_KEY,
    digits_convnet,
    load_classifier,
    network_of,
    shipped_classifiers,
)
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.training import load_classifier_training
from diffcert_ray.datasets import load_dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.certify import certify
from diffcert_ray.tools.training import train_classifier
from diffcert_ray.tools.training.classifier import classifier_learner
from diffcert_ray.tools.training.images import TrainingImages
from diffcert_ray.tools.training.learner import EagerStep
from tests.trainings import classifier_training, folder_of, stopping_after, stripes


def loaded(path, architecture, classes, shape):
    tables = {"checkpoint": str(path), "architecture": architecture}
    config = load_config({"method": {"name": "classify"}, "classifier": tables})
    return load_classifier(config, classes, shape)


def test_training_learns_from_images_with_the_noise_asked_for():
    data = load_dataset({"name": "digits", "split": "train"})
    settings = load_classifier_training("digits").training
    network, seen = digits_convnet(), []
    network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].std().item()))
    step = EagerStep(classifier_learner(network, settings, TrainingImages(data), "cpu"))
    losses = [step(2e-3, 0.0).item() for _ in range(60)]
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]
    # Variances add: that of the pixels, and that of the noise.
    expected = (data.pixels.var() + 0.25**2) ** 0.5
    assert sum(seen) / 60 == pytest.approx(expected, rel=0.02)


def test_the_digits_preset_is_the_shipped_classifier_s_recipe():
    (path,) = [path for name, path in shipped_classifiers().items() if name == "digits"]
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    settings = load_classifier_training("digits")
    asked = settings.training.model_dump()
    assert {key: asked[key] for key in about["recipe"]} == about["recipe"]
    assert len(about["recipe"]) >= 6
    assert settings.classifier.architecture == about["architecture"]
    data = load_dataset({"name": settings.dataset.name, "split": settings.dataset.split})
    assert data.fingerprint == about["dataset_fingerprint"]


@pytest.mark.parametrize("stop", [1, 7])
def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, stop):
    data, settings = stripes(), classifier_training("training.flip=true")
    train_classifier(settings, tmp_path / "whole", dataset=data)
    stopped = train_classifier(
        settings, tmp_path / "parts", dataset=data, should_stop=stopping_after(stop)
    )
    assert (stopped.model, stopped.step) == (None, stop)
    done = train_classifier(settings, tmp_path / "parts", dataset=data)
    whole, parts = load_file(tmp_path / "whole" / "model.safetensors"), load_file(done.model)
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())


def test_another_sigma_is_not_continued(tmp_path):
    data = stripes()
    train_classifier(classifier_training(), tmp_path, dataset=data, should_stop=stopping_after(2))
    with pytest.raises(ConfigError, match=r"training.sigma was 0.25 and is 0.5"):
        train_classifier(classifier_training("training.sigma=0.5"), tmp_path, dataset=data)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (3, 32, 32), (2, 12, 12)])
def test_the_small_network_takes_images_of_any_size(shape):
    network = network_of("small-convnet", 5, shape)
    assert network(torch.rand((2, *shape))).shape == (2, 5)


def test_the_digits_network_and_the_small_one_are_the_same_for_digits():
    states = [network_of(name, 10, (1, 8, 8)).state_dict() for name in
              ("small-convnet", "digits-convnet")]  # fmt: skip
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}


@pytest.mark.parametrize("method", ["classify", "denoise-classify"])
def test_a_folder_of_images_becomes_a_certificate_of_its_own_classifier(tmp_path, method):
    images = folder_of(stripes(30), tmp_path / "images")
    settings = classifier_training(
        "training.steps=60", f"dataset.path={images}", "dataset.image_shape=[1, 8, 8]"
    )
    trained = train_classifier(settings, tmp_path / "model")
    asked = {"name": "folder", "path": str(images), "split": "train", "first": 3}
    run = certify(
        {
            "dataset": asked | {"image_shape": [1, 8, 8]},
            "method": {"name": method},
            "classifier": {"checkpoint": str(trained.model), "architecture": "small-convnet"},
            "votes": {"n0": 10, "n": 100, "radii": [0.0]},
        },
        tmp_path / "run",
        local=True,
    )
    assert run.outcome.complete
    if method == "classify":
        assert run.certificates()["correct"].all()


@pytest.mark.slow
def test_a_network_of_torchvision_is_trained_and_loaded(tmp_path):
    settings = classifier_training(
        "classifier.architecture=squeezenet1_1", "training.steps=2", "training.batch=2"
    )
    data = stripes(side=32)
    with pytest.raises(ConfigError, match="cannot take images"):
        train_classifier(settings, tmp_path / "grey", dataset=data)
    coloured = dataclasses.replace(data, pixels=np.repeat(np.array(data.pixels), 3, axis=1))
    trained = train_classifier(settings, tmp_path / "colour", dataset=coloured)
    network = loaded(trained.model, "squeezenet1_1", 3, (3, 32, 32))
    assert network(torch.rand((2, 3, 32, 32))).shape == (2, 3)


def test_an_architecture_that_there_is_none_of_is_refused(tmp_path):
    settings = classifier_training("classifier.architecture=resnet1")
    with pytest.raises(ConfigError, match=r"'resnet1': give 'small-convnet'"):
        train_classifier(settings, tmp_path, dataset=stripes())
