"""Whether the networks of a run denoise: tried on some of its images before any vote.

A network that was loaded with the wrong number of heads, time scale or preconditioning computes
something, and its votes would certify that. Its estimate of a noisy image is then often farther
from the image than the noisy image itself.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.datasets import Dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import sent
from diffcert_ray.errors import ConfigError, CorruptImageError, PixelsError
from diffcert_ray.method.noise import NoiseSource

LEVELS = (0.2, 0.5, 1.0, 2.0)
"""Noise levels in model space, where a network that denoises at all does so."""
IMAGES = 4
_TRIES = 16  # images that are read at most, where some are corrupt
_SEED = 0x0D1FFCE8


class DenoisingError(NamedTuple):
    """How far estimates are from the images at one noise level, both root mean squares."""

    level: float  # s, model space: the noise's own error
    error: float  # of the estimates, model space


def refuse_poor(found: Sequence[DenoisingError], role: str, images: str) -> None:
    """Refuse a network whose estimates are at most levels no nearer than the noisy images are.

    Not at any level: one that is poor at an end of its range certifies less, and no more is wrong.

    Args:
        found: of `denoising_errors`.
        role: where the configuration names the network, such as "model.checkpoint".
        images: the dataset's name.

    Raises:
        ConfigError: the error is not below the noise's own at most levels; it says what to look at.
    """
    bad = [f for f in found if not f.error < f.level]
    if 2 * len(bad) <= len(found):
        return
    worst = max(bad, key=lambda f: f.error / f.level if np.isfinite(f.error) else np.inf)
    raise ConfigError(
        f"the network of {role} does not denoise: for noise of level {worst.level:g} in model "
        f"space its estimates of images of {images} are off by {worst.error:.3g} (root mean "
        f"square), by no less than the noise, at {len(bad)} of {len(found)} levels. Look at how it "
        "was described (preconditioning; of OpenAI's flags num_heads or num_head_channels, "
        "use_new_attention_order, noise_schedule, diffusion_steps, rescale_timesteps, "
        "predict_xstart), whether it was trained on such images at this scale of pixels, and "
        "whether its classes are the dataset's; for a network that is not meant to denoise, as "
        "with random weights, set model.check_denoising = false"
    )


def denoising_errors(
    denoiser: Denoiser,
    dataset: Dataset,
    *,
    batch: int,
    whole: bool,
    device: str,
    classes: bool = True,
    lowest: float = 0.0,
) -> list[DenoisingError]:
    """The errors at the levels that a network is made for.

    Args:
        denoiser: on ``device``.
        dataset: whose images are noised; none where they have another shape than the network's.
        batch: rows of a call at most.
        whole: every call has ``batch`` rows exactly, as a compiled network needs.
        device: where the images are to be.
        classes: the network is told the images' classes; else none.
        lowest: level that votes visit: a network may be poor below it.
    """
    if tuple(dataset.image_shape) != tuple(denoiser.image_shape):
        return []
    images, labels = _some_images(dataset)
    if not len(images):
        return []
    low, high = denoiser.s_range
    low = min(max(low, lowest), high)
    levels = [s for s in LEVELS if low <= s <= high] or [float(np.sqrt(low * high))]
    rows = len(images) * len(levels)
    which, level = np.arange(rows) % len(images), np.arange(rows) // len(images)
    clean = sent((2.0 * images[which] - 1.0).astype(np.float32), device)
    s = sent(np.array(levels, dtype=np.float32)[level], device)
    told = labels[which] % denoiser.num_classes if denoiser.num_classes and classes else None
    y = sent(np.full(rows, NO_CLASS, dtype=np.int64) if told is None else told, device)
    zero = np.zeros(rows, dtype=np.int64)
    source = NoiseSource(_SEED, 0.0, int(np.prod(dataset.image_shape)))
    noise = source.normal(np.arange(rows), zero, zero, device=device).reshape(clean.shape)
    noisy = clean + s[:, None, None, None] * noise.float()
    estimates = _evaluated(denoiser, noisy, s, y, batch if whole else min(batch, rows))
    squares = ((estimates - clean) ** 2).flatten(1).mean(1).double().cpu().numpy()
    return [
        DenoisingError(value, float(np.sqrt(squares[level == i].mean())))
        for i, value in enumerate(levels)
    ]


def _evaluated(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor], u: Tensor, s: Tensor, y: Tensor, size: int
) -> Tensor:
    """Estimates of all rows, by calls of ``size`` rows; the last one has some rows again."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(u), size):
            rows = torch.arange(start, start + size, device=u.device) % len(u)
            parts.append(denoiser(u[rows], s[rows], y[rows]).float())
    return torch.cat(parts)[: len(u)]


def _some_images(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, C, H, W] in [0, 1] and labels [n] of a few that can be read, spread over all."""
    step = max(1, len(dataset.ids) // IMAGES)
    order = np.argsort(np.arange(len(dataset.ids)) % step, kind="stable")
    images, labels = [], []
    for position in order[:_TRIES]:
        try:
            images.append(dataset.image(int(dataset.ids[position])))
        except (CorruptImageError, PixelsError):  # named where they are read for votes
            continue
        labels.append(int(dataset.labels[position]))
        if len(images) == IMAGES:
            break
    return np.array(images, dtype=np.float32), np.array(labels, dtype=np.int64)
