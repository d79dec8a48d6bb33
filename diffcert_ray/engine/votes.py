"""Votes on one worker: an item in, its result out."""

import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from diffcert_ray.engine.item_run import ItemRun
from diffcert_ray.engine.item_votes import packed
from diffcert_ray.engine.watch import Watch, unwatched
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_classifier import class_logits
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.votes.units import Item, Result


def evaluate_item(
    base: BaseClassifier,
    item: Item,
    image: Callable[[int], np.ndarray],
    *,
    worker: str = "local",
    numerics: str = "",
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch = unwatched,
) -> Result:
    """Evaluate one item.

    Args:
        base: the base classifier at the item's sigma.
        item: what to evaluate.
        image: image_id -> float32 [C, H, W] in [0, 1].
        worker: name stored with the result.
        numerics: numerics kind of this worker.
        clock: seconds.
        watch: told what is being done, for measurements.

    Returns:
        The result; its counts depend on the item's votes only.

    Raises:
        ValueError: the item is about another sigma than the base classifier.
    """
    if item.sigma != base.sigma:
        raise ValueError(
            f"item {item.item_id} is at sigma {item.sigma}, the worker at {base.sigma}"
        )
    started = clock()
    run = ItemRun(base, item, image, watch)
    run.finish()
    return Result(
        item_id=item.item_id,
        tallies=run.votes.tallies(run.winner, run.nfe),
        open_votes=packed(run.votes, run.back),
        nfe=int(run.nfe.sum()),
        padded=run.padded,
        seconds=clock() - started,
        worker=worker,
        device=base.device,
        numerics=numerics,
    )


def evaluate_votes(
    base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, int]:
    """The class of every vote of an item, one by one.

    Args:
        base: the base classifier at the item's sigma.
        item: what to evaluate, without ``hand_back_levels``.
        image: image_id -> float32 [C, H, W] in [0, 1].

    Returns:
        int64 [N], classes in the order of the item's votes (-2: unresolved), and the evaluations.
    """
    run = ItemRun(base, item, image)
    run.finish()
    return run.winner, int(run.nfe.sum())


def shared_noise_logits(base: BaseClassifier, u: Tensor, draws: int, seed: int) -> Tensor:
    """Scores of clean inputs under noise that all inputs and classes share.

    Args:
        base: the base classifier; its sifting rule is not used.
        u: tensor [B, C, H, W], model space.
        draws: noise draws for each level, >= 1.
        seed: of the noise.

    Returns:
        Tensor [B, K], differentiable with respect to u.
    """
    levels = len(base.plan.s)
    source = NoiseSource(seed, base.sigma, int(np.prod(base.denoiser.image_shape)))
    draw, level = np.divmod(np.arange(draws * levels), levels)
    zero = np.zeros_like(draw)
    noise = source.normal(zero, zero, draw, "internal", level, device=u.device)
    eps = noise.reshape(draws, levels, *u.shape[1:]).to(u.dtype)
    return class_logits(base.denoiser, u, base.plan, eps, unconditional=base.unconditional)
