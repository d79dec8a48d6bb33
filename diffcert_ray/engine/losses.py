"""Losses of the plain diffusion classifier on one worker, in fixed-shape batches.

The classifier projects its input on the box and clips the denoiser's output to it, so that every
single-draw loss ||h - x'||^2 / D lies in [0, 1] in pixel units. Noise has an address (image, draw,
level) and serves every class; batches have one shape, and sums follow the order of the draws: a
unit's sums depend neither on the item nor on the batch that it was evaluated in.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import NO_SMOOTHING, STREAM_NAMES
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import Coming, sent
from diffcert_ray.method.diffusion_classifier import row_losses, to_model_image
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.plain.units import LossItem, LossResult, UnitLosses

CHUNK_BATCHES = 8  # batches that noise is made for at a time
ESTIMATE = STREAM_NAMES.index("estimate")


def evaluate_loss_item(
    denoiser: Denoiser,
    item: LossItem,
    image: Callable[[int], np.ndarray],
    *,
    s: np.ndarray,
    seed: int,
    batch: int,
    device: str = "cpu",
) -> LossResult:
    """Evaluate one item; arguments as of `draw_losses`.

    Returns:
        The result, with a unit's share of the seconds by its share of the evaluations.
    """
    started = time.perf_counter()
    units, classes = item.units, denoiser.num_classes
    draws = [np.arange(unit.start, unit.stop, dtype=np.int64) for unit in units]
    image_id = np.repeat([unit.image_id for unit in units], [len(d) for d in draws])
    losses = draw_losses(
        denoiser, image, image_id, np.concatenate(draws), s=s, seed=seed, batch=batch, device=device
    )
    seconds, tallies, first = time.perf_counter() - started, [], 0
    for unit in units:
        part = losses[first : first + unit.draws]
        first += unit.draws
        share = seconds * unit.draws / len(losses)
        sums, squares = part.sum(axis=0), (part * part).sum(axis=0)
        tallies.append(UnitLosses(unit, sums, squares, unit.draws * len(s) * classes, share))
    return LossResult(
        item_id=item.item_id,
        tallies=tuple(tallies),
        nfe=losses.size,
        padded=-losses.size % batch,
        seconds=seconds,
        device=device,
    )


def draw_losses(
    denoiser: Denoiser,
    image: Callable[[int], np.ndarray],
    image_id: np.ndarray,
    draw: np.ndarray,
    *,
    s: np.ndarray,
    seed: int,
    batch: int,
    device: str = "cpu",
) -> np.ndarray:
    """Single-draw losses of every level and class.

    Args:
        denoiser: class-conditional, on ``device``.
        image: image_id -> float32 [C, H, W], pixel units; projected on [0, 1] here.
        image_id: int64 [N], image of each draw.
        draw: int64 [N], index of each draw.
        s: float64 [T], noise levels, model space.
        seed: of all noise.
        batch: rows of every batch.
        device: where the denoiser lives.

    Returns:
        float64 [N, T, K] in [0, 1], pixel units; they depend on their address and image only.

    Source: paper arXiv:2402.02316, diffusion classifier; projection, clipping and shared noise as
        in `diffcert_ray.certificates.lipschitz`.
    """
    shape, classes, levels = denoiser.image_shape, denoiser.num_classes, len(s)
    source = NoiseSource(seed, NO_SMOOTHING, int(np.prod(shape)))
    ids, which = np.unique(image_id, return_inverse=True)
    clean = projected(np.stack([image(int(i)) for i in ids]), device)
    table = sent(s.astype(np.float32), device)
    rows = len(draw) * levels * classes
    out = []
    with torch.inference_mode():
        for low in range(0, rows, CHUNK_BATCHES * batch):
            high = min(low + CHUNK_BATCHES * batch, rows)
            pair = np.arange(low // classes, -(-high // classes))  # (draw, level), one noise each
            at, level = np.divmod(pair, levels)
            noise = source.normal(
                image_id[at], np.full_like(at, ESTIMATE), draw[at], level, device=device
            )
            for start in range(low, high, batch):
                count = min(batch, high - start)
                row = np.resize(np.arange(start, start + count), batch)
                eps = noise[sent(row // classes - pair[0], device)].reshape(batch, *shape)
                u = clean[sent(which.reshape(-1)[row // (classes * levels)], device)]
                row_s = table[sent(row // classes % levels, device)]
                y = sent(row % classes, device)
                out.append(pixel_losses(denoiser, u, row_s, y, eps)[:count])
    return Coming(torch.cat(out)).array().reshape(len(draw), levels, classes)


def projected(pixels: np.ndarray, device: str = "cpu") -> Tensor:
    """Images [B, C, H, W] in pixel units, projected on [0, 1] and mapped to model space."""
    return to_model_image(sent(pixels, device).clamp(0.0, 1.0))


def pixel_losses(denoiser: Denoiser, u: Tensor, s: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """Loss of each row, in pixel units: ||h(u + s eps; s, y) - u||^2 / (4 D), h clipped to the box.

    Args:
        denoiser: class-conditional.
        u: images [B, C, H, W], model space, inside [-1, 1].
        s: noise levels [B], model space.
        y: classes [B].
        eps: standard normal noise [B, C, H, W].

    Returns:
        float64 [B] in [0, 1], differentiable. A pixel that is no number counts as grey: the bounds
        hold for any h into the box.
    """
    z = u + s.reshape(-1, 1, 1, 1) * eps
    h = torch.nan_to_num(denoiser(z, s, y), nan=0.0).clamp(-1.0, 1.0)
    return row_losses(h, u) / 4.0


def pair_losses(
    denoiser: Denoiser, x: Tensor, a: Tensor, b: Tensor, eps: Tensor, s: Tensor
) -> Tensor:
    """Losses of two classes at each image for given noise, differentiable in x.

    Args:
        denoiser: class-conditional.
        x: images [B, C, H, W], pixel units; projected on [0, 1] here.
        a: class [B].
        b: another class [B].
        eps: standard normal noise [M, T, C, H, W], shared by images and classes.
        s: noise levels [T], model space.

    Returns:
        float64 [M, T, 2, B] in [0, 1], pixel units: of class a, then of class b.
    """
    size = (len(eps), len(s), 2, len(x))
    u = to_model_image(x.clamp(0.0, 1.0)).expand(*size, *x.shape[1:]).flatten(0, 3)
    noise = eps[:, :, None, None].expand(*size, *x.shape[1:]).flatten(0, 3)
    row_s = s[:, None, None].expand(size).flatten()
    y = torch.stack([a, b]).expand(size).flatten()
    return pixel_losses(denoiser, u, row_s, y, noise).reshape(size)


def score_gaps(losses: Tensor, weights: Tensor) -> Tensor:
    """How far class a is ahead of class b: sum_t w_t (l_{t,b} - l_{t,a}).

    Args:
        losses: [M, T, 2, B] of `pair_losses`.
        weights: weights [T], summing to 1.

    Returns:
        float64 [M, B] of each draw, in [-1, 1].
    """
    return (weights.double()[:, None] * (losses[:, :, 1] - losses[:, :, 0])).sum(dim=1)
