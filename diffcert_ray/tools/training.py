"""Training of small class-conditional denoisers, as the shipped one for the digits.

Shape letters: B samples, C H W image.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcert_ray.checkpoints.load import save_denoiser
from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.dataset import all_images
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.edm import EdmDenoiser

OnProgress = Callable[[int, float], None]
"""on_progress(steps done, loss of the last one)."""

DIGITS_CONFIGURATION = EdmConfiguration(
    model_type="SongUNet",
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    s_range=(0.02, 20.0),
    has_unconditional=True,
)
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpmpp": {},
    "ncsnpp": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {"model_type": "DhariwalUNet", "num_heads": 1},
}
"""What each family changes in DIGITS_CONFIGURATION: Karras et al. 2022, table 7."""


def digits_configuration(network: str = "ddpmpp", channels: int = 16) -> EdmConfiguration:
    """The configuration of a network for the digits.

    Args:
        network: "ddpmpp" (the shipped model's), "ncsnpp" or "adm".
        channels: of the first level, >= 1; the second level has twice as many.

    Raises:
        ValueError: another network, or no channel.
    """
    if network not in NETWORKS or channels < 1:
        raise ValueError(
            f"network {network!r} with {channels} channels: give one of {', '.join(NETWORKS)} and "
            "at least 1 channel"
        )
    changes = NETWORKS[network] | {"model_channels": channels}
    return EdmConfiguration.model_validate(DIGITS_CONFIGURATION.model_dump() | changes)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained.

    Attributes:
        steps: steps of Adam.
        batch: images per step, drawn with replacement.
        seed: of the first weights and of everything drawn while training.
        learning_rate: its peak, reached by a linear warm-up and left by a half cosine to zero.
        warmup_steps: steps of the warm-up.
        p_mean: mean of ln s, s the noise level in model space.
        p_std: standard deviation of ln s.
        label_dropout: probability of training an image without its class.
        ema_decay: decay per step of the moving average of the weights, which is what is kept.
    """

    steps: int = 5000
    batch: int = 256
    seed: int = 0
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    p_mean: float = 0.0
    p_std: float = 0.8
    label_dropout: float = 0.15
    ema_decay: float = 0.998

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(
                f"steps is {self.steps} and batch {self.batch}: both must be at least 1"
            )


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


def train(
    configuration: EdmConfiguration,
    dataset: Dataset,
    recipe: Recipe,
    on_progress: OnProgress | None = None,
) -> EdmDenoiser:
    """Train a denoiser on all images of a dataset; equal seeds give equal weights on one machine.

    Returns:
        The moving average of the weights, in evaluation mode.

    Raises:
        ValueError: the dataset's images or classes do not fit the network.
    """
    _check_fits(configuration, dataset)
    images = torch.tensor(all_images(dataset)) * 2 - 1
    labels = torch.tensor(dataset.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        denoiser = EdmDenoiser(configuration).train()
        average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        optimiser = torch.optim.Adam(denoiser.parameters(), lr=recipe.learning_rate, fused=True)
        for step in range(recipe.steps):
            optimiser.param_groups[0]["lr"] = _learning_rate(recipe, step)
            loss = denoising_loss(
                denoiser, *_draw(recipe, images, labels), configuration.sigma_data
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            _move(average, denoiser, min(recipe.ema_decay, (step + 1) / (step + 10)))
            if on_progress is not None:
                on_progress(step + 1, loss.item())
    return average


def train_digits(
    output: str | Path,
    *,
    network: str = "ddpmpp",
    channels: int = 16,
    steps: int = Recipe.steps,
    batch: int = Recipe.batch,
    seed: int = Recipe.seed,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train the demo model on the digits' training split and write it as a .safetensors file.

    The recipe, torch's version, the dataset's fingerprint and the seconds taken stand in the file
    under "recipe".

    Raises:
        ValueError: network, channels, steps, batch or output is not usable.
    """
    recipe, configuration = Recipe(steps, batch, seed), digits_configuration(network, channels)
    dataset = load_dataset({"name": "digits", "split": "train"})
    started, threads = time.monotonic(), torch.get_num_threads()
    # Images of 8x8 are too small to share: beside other work two threads were 9 times slower.
    torch.set_num_threads(1)
    try:
        denoiser = train(configuration, dataset, recipe, on_progress)
    finally:
        torch.set_num_threads(threads)
    save_denoiser(
        output,
        denoiser,
        {
            **dataclasses.asdict(recipe),
            "dataset": f"{dataset.name} {dataset.split}",
            "dataset_fingerprint": dataset.fingerprint,
            "torch": torch.__version__,
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return Path(output)


def _check_fits(configuration: EdmConfiguration, dataset: Dataset) -> None:
    wanted = (configuration.image_shape, configuration.label_dim)
    given = (dataset.image_shape, dataset.num_classes)
    if wanted != given:
        raise ValueError(
            f"the network takes images {wanted[0]} of {wanted[1]} classes but {dataset.name} has "
            f"images {given[0]} of {given[1]} classes: change the configuration"
        )


def _learning_rate(recipe: Recipe, step: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * (1 + math.cos(math.pi * step / recipe.steps)) / 2


def _draw(recipe: Recipe, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One batch (u, y, s, eps) from torch's generator, which `train` has seeded."""
    rows = torch.randint(len(images), (recipe.batch,))
    u, y = images[rows], labels[rows]
    y = torch.where(torch.rand(recipe.batch) < recipe.label_dropout, NO_CLASS, y)
    s = (recipe.p_mean + recipe.p_std * torch.randn(recipe.batch)).exp()
    return u, y, s, torch.randn(u.shape)


@torch.no_grad()
def _move(average: EdmDenoiser, denoiser: EdmDenoiser, decay: float) -> None:
    """Move the average of the weights toward the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)
