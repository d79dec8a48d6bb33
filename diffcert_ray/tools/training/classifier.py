"""Training of noise-trained classifiers, as the small one that ships for the digits.

Shape letters: B samples, C H W image, K classes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from diffcert_ray.checkpoints.image_classifier import METADATA_KEY, network_of
from diffcert_ray.config.training_tables import ClassifierSteps, ClassifierTraining
from diffcert_ray.datasets import Dataset
from diffcert_ray.denoisers.device import resolve_device
from diffcert_ray.errors import ConfigError
from diffcert_ray.tools.training.denoiser import HELD_OUT_SEED, recipe
from diffcert_ray.tools.training.folder import MODEL, held_folder
from diffcert_ray.tools.training.images import TrainingImages, held_out_images, load_images
from diffcert_ray.tools.training.learner import Learner
from diffcert_ray.tools.training.loop import (
    Loop,
    OnProgress,
    ShouldStop,
    Trained,
    set_for_training,
)
from diffcert_ray.tools.training.state import publish


def train_classifier(
    config: ClassifierTraining,
    folder: str | Path,
    *,
    dataset: Dataset | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Trained:
    """Train a classifier on noisy images, into a folder; it continues as `train_denoiser` does.

    Args:
        config: dataset, classifier, training.
        folder: gets model.safetensors, state.safetensors, loss.csv.
        dataset: what to learn from, in place of the configured one.
        on_progress: called with each row of the curve of losses.
        should_stop: asked before each step; the state is stored before the return.

    Returns:
        How this start ended.

    Raises:
        ConfigError: no such architecture, it cannot take these images, or the folder holds another
            training.
        DatasetError: images that cannot be learned from.
        TrainingError: a loss is not finite; the last state stays.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.3: cross-entropy on
    Gaussian-noised images.
    """
    settings = config.training
    device = resolve_device(settings.device, "training.device")
    with held_folder(folder) as path:
        data = load_images(config.dataset, dataset)
        images = TrainingImages(data, device, flip=settings.flip, shift=settings.shift)
        held_out = held_out_images(config.validation, images, device)
        about = {"config": config.model_dump(mode="json"), "device": device}
        about["images"] = images.sha256
        with set_for_training(device, settings.threads):
            torch.manual_seed(settings.seed)
            network = network_of(
                config.classifier.architecture, images.num_classes, images.image_shape
            )
            _check_takes(network, config.classifier.architecture, images)
            learner = classifier_learner(network, settings, images, device, held_out)
            loop = Loop(learner, settings, path, about, lambda step: 0.0, on_progress, should_stop)
            complete = loop.run()
        model = path / MODEL
        if complete:
            _save(model, network, config, recipe(config, data, loop))
        curve = tuple(loop.curve)
        return Trained(model if complete else None, loop.step, loop.seconds, curve)


def classifier_learner(
    network: nn.Module,
    settings: ClassifierSteps,
    images: TrainingImages,
    device: str,
    held_out: TrainingImages | None = None,
) -> Learner:
    """What trains a classifier; all that is drawn follows from the seed anew."""
    torch.manual_seed(settings.seed)
    network.train().to(device)
    on_gpu = device == "cuda"
    recorded = settings.cuda_graph and on_gpu
    rate = settings.learning_rate
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=torch.tensor(rate, device=device) if recorded else rate,
        weight_decay=settings.weight_decay,
        fused=True if on_gpu else None,
        capturable=recorded,
    )

    def batch_loss() -> Tensor:
        x, y = images.draw(settings.batch)
        noise = torch.randn(x.shape, device=device)
        return F.cross_entropy(network(x + settings.sigma * noise), y)

    def held_out_loss() -> float:
        assert held_out is not None
        return loss_of_all(network, settings, held_out)

    return Learner(
        network, None, optimiser, batch_loss, None if held_out is None else held_out_loss
    )


@torch.no_grad()
def loss_of_all(network: nn.Module, settings: ClassifierSteps, images: TrainingImages) -> float:
    """The cross-entropy of all images, under noise that is always the same."""
    generator, total = torch.Generator().manual_seed(HELD_OUT_SEED), 0.0
    network.eval()
    for x, y in images.batches(settings.batch):
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        logits = network(x + settings.sigma * noise)
        total += F.cross_entropy(logits, y, reduction="sum").item()
    network.train()
    return total / len(images)


def _check_takes(network: nn.Module, architecture: str, images: TrainingImages) -> None:
    """Raise ConfigError unless a network maps these images to logits [B, K], while training."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = copy.deepcopy(network).train()(torch.zeros((2, *images.image_shape)))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"classifier.architecture = {architecture!r} cannot take images {images.image_shape} "
            f"(channels, height, width): {error}; choose one made for them, as small-convnet"
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (2, images.num_classes):
        raise ConfigError(
            f"classifier.architecture = {architecture!r} returns more than one logit a class "
            f"while it is trained: choose another, as small-convnet ({images.num_classes} classes)"
        )


def _save(path: Path, network: nn.Module, config: ClassifierTraining, made: dict[str, Any]) -> None:
    about: dict[str, Any] = {"architecture": config.classifier.architecture, "recipe": made}
    about |= {key: made[key] for key in ("dataset", "dataset_fingerprint", "torch", "seconds")}
    state = network.eval().state_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    publish(path, save(tensors, metadata={METADATA_KEY: json.dumps(about)}))
