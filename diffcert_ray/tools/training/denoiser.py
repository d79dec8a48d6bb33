"""Training of class-conditional denoisers, as the shipped one for the digits.

Shape letters: B samples, C H W image.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcert_ray.checkpoints.load import save_denoiser
from diffcert_ray.config.training_tables import DenoiserSteps, DenoiserTraining
from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.datasets import Dataset
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import resolve_device
from diffcert_ray.denoisers.edm import EdmDenoiser
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
from diffcert_ray.tools.training.networks import configuration_of, fresh_denoiser

HELD_OUT_SEED = 1


def denoising_loss(
    denoiser: Denoiser, u: Tensor, y: Tensor, s: Tensor, eps: Tensor, sigma_data: float
) -> Tensor:
    """The weighted denoising error lambda(s) ||D(u + s eps; s, y) - u||^2 / (C H W), averaged.

    Args:
        denoiser: what is trained.
        u: clean images, model space, [B, C, H, W].
        y: class of each or -1, int64 [B].
        s: noise level of each, model space, [B].
        eps: standard normal noise [B, C, H, W].
        sigma_data: standard deviation of the data that lambda assumes.

    Returns:
        The mean over the batch, a scalar.

    Source: Karras et al. 2022 (arXiv:2206.00364), equations 2 and 8, lambda in table 1.
    """
    error = denoiser(u + s[:, None, None, None] * eps, s, y) - u
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return (weight * error.square().mean(dim=(1, 2, 3))).mean()


def train_denoiser(
    config: DenoiserTraining,
    folder: str | Path,
    *,
    dataset: Dataset | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Trained:
    """Train a denoiser into a folder, or continue the training that was begun there.

    On one machine a training that was stopped ends with the bits of one that was not: on the CPU,
    and on a GPU as far as torch has kernels that repeat.

    Args:
        config: dataset, network, training.
        folder: gets model.safetensors, state.safetensors, loss.csv.
        dataset: what to learn from, in place of the configured one.
        on_progress: called with each row of the curve of losses.
        should_stop: asked before each step; the state is stored before the return.

    Returns:
        How this start ended; its model is the moving average of the weights.

    Raises:
        ConfigError: the network cannot be built for these images, or the folder holds another
            training.
        DatasetError: images that cannot be learned from.
        TrainingError: a loss is not finite; the last state stays.
    """
    settings = config.training
    device = resolve_device(settings.device, "training.device")
    with held_folder(folder) as path:
        data = load_images(config.dataset, dataset)
        images = TrainingImages(data, device, flip=settings.flip, shift=settings.shift)
        held_out = held_out_images(config.validation, images, device)
        configuration = configuration_of(config, images.image_shape, images.num_classes)
        about = {"config": config.model_dump(mode="json"), "device": device}
        about["images"] = images.sha256
        with set_for_training(device, settings.threads):
            learner = denoiser_learner(configuration, settings, images, device, held_out)
            loop = Loop(
                learner,
                settings,
                path,
                about,
                lambda step: min(settings.ema_decay, (step + 1) / (step + 10)),
                on_progress,
                should_stop,
            )
            complete = loop.run()
        model = path / MODEL
        if complete:
            assert isinstance(learner.average, EdmDenoiser)
            save_denoiser(model, learner.average, recipe(config, data, loop))
        curve = tuple(loop.curve)
        return Trained(model if complete else None, loop.step, loop.seconds, curve)


def denoiser_learner(
    configuration: EdmConfiguration,
    settings: DenoiserSteps,
    images: TrainingImages,
    device: str,
    held_out: TrainingImages | None = None,
) -> Learner:
    """A fresh denoiser and what trains it; its weights are drawn on the CPU, from the seed."""
    torch.manual_seed(settings.seed)
    denoiser = fresh_denoiser(configuration).train().to(device)
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    recorded = settings.cuda_graph and device == "cuda"
    rate = settings.learning_rate
    optimiser = torch.optim.Adam(
        denoiser.parameters(),
        lr=torch.tensor(rate, device=device) if recorded else rate,
        fused=True,
        capturable=recorded,
    )

    def batch_loss() -> Tensor:
        drawn = draw(settings, images, device)
        return denoising_loss(denoiser, *drawn, configuration.sigma_data)

    def held_out_loss() -> float:
        assert held_out is not None
        return loss_of_all(average, settings, held_out, configuration.sigma_data)

    return Learner(
        denoiser, average, optimiser, batch_loss, None if held_out is None else held_out_loss
    )


@torch.no_grad()
def loss_of_all(
    denoiser: Denoiser, settings: DenoiserSteps, images: TrainingImages, sigma_data: float
) -> float:
    """The denoising loss of all images with their classes, under noise that is always the same."""
    generator, total = torch.Generator().manual_seed(HELD_OUT_SEED), 0.0
    for x, y in images.batches(settings.batch):
        s = (settings.p_mean + settings.p_std * torch.randn(len(x), generator=generator)).exp()
        eps = torch.randn(x.shape, generator=generator)
        noise = s.to(x.device), eps.to(x.device)
        total += len(x) * denoising_loss(denoiser, x * 2 - 1, y, *noise, sigma_data).item()
    return total / len(images)


def draw(
    settings: DenoiserSteps, images: TrainingImages, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One batch (u, y, s, eps) of `denoising_loss`, from the device's generator."""
    x, y = images.draw(settings.batch)
    u = x * 2 - 1
    dropped = torch.rand(settings.batch, device=device) < settings.label_dropout
    y = torch.where(dropped, NO_CLASS, y)
    s = (settings.p_mean + settings.p_std * torch.randn(settings.batch, device=device)).exp()
    return u, y, s, torch.randn(u.shape, device=device)


def recipe(config: Any, data: Dataset, loop: Loop) -> dict[str, Any]:
    """What a file says of how its network was trained."""
    tables = config.model_dump(mode="json", exclude_none=True)
    tables["dataset"].pop("path", None)  # a path of the machine says nothing elsewhere
    return {
        **tables["training"],
        "trained_on": tables["dataset"],
        "dataset": f"{data.name} {data.split}",
        "dataset_fingerprint": data.fingerprint,
        "images": len(data),
        "images_sha256": loop.about["images"],
        "device": loop.about["device"],
        "torch": torch.__version__,
        "seconds": round(loop.seconds, 1),
        "held_out_loss": loop.last_held_out(),
    }
