"""Votes of a trained classifier on one worker: noise, perhaps one denoising step, logits, argmax.

The noise of a vote is that of the diffusion classifiers: same address, same purpose. Nothing that
a vote returns depends on the batch or the neighbours: batches have one shape, the last is padded.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.checkpoints.image_classifier import ImageClassifier
from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET, to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.engine.item_votes import Votes
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.diffusion_classifier import to_model_image
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.votes.units import Item, Result


@dataclass(frozen=True)
class DirectClassifier:
    """Everything that decides one vote of ``classify`` or ``denoise-classify`` at one sigma.

    Args:
        classifier: logits of images in pixel units.
        denoiser: for the one denoising step; None for ``classify``.
        sigma: smoothing noise, pixel units.
        seed: of all noise.
        batch: rows of every batch.
        device: where the networks live.

    Raises:
        ConfigError: the denoiser has no unconditional mode, or is not made for this noise.
    """

    classifier: ImageClassifier
    denoiser: Denoiser | None
    sigma: float
    seed: int
    batch: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.denoiser is None:
            return
        if not self.denoiser.has_unconditional:
            raise ConfigError(
                'method "denoise-classify" needs one unconditional denoising step, but the network '
                "was trained without label dropout; set model.unconditional to an unconditional "
                'checkpoint, or method.name = "classify"'
            )
        low, high = self.denoiser.s_range
        if not low <= to_model_space(self.sigma) <= high:
            raise ConfigError(
                f"sigma {self.sigma} is noise level {to_model_space(self.sigma)} in model space, "
                f"the denoiser is made for {low:g} to {high:g}: choose another sigma or network"
            )

    @property
    def nfe_per_vote(self) -> int:
        """Network evaluations of a vote: the classifier's, and the denoiser's if there is one."""
        return 1 if self.denoiser is None else 2

    def logits(self, u: Tensor, s: Tensor | None = None) -> Tensor:
        """Logits [B, K] of noisy images [B, C, H, W] in model space.

        The estimate of the denoising step is clipped to [-1, 1], where images lie.

        Args:
            u: noisy images.
            s: noise level of each, model space [B]; by default 2 sigma for all.

        Source: Carlini et al. 2023 (arXiv:2206.10550), algorithm 1 (denoise once, then classify).
        """
        if self.denoiser is not None:
            if s is None:
                s = torch.full((len(u),), to_model_space(self.sigma), device=u.device)
            u = self.denoiser(u, s, None).clamp(-1.0, 1.0)
        return self.classifier((u + 1.0) / 2.0)


def evaluate_classifier_item(
    base: DirectClassifier,
    item: Item,
    image: Callable[[int], np.ndarray],
    *,
    worker: str = "local",
    numerics: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Evaluate one item; arguments, result and errors as ``evaluate.evaluate_item``.

    Args:
        base: the classifier at the item's sigma.
        item: what to evaluate.
        image: image_id -> float32 [C, H, W] in [0, 1].
        worker: name of the worker.
        numerics: its numerics kind.
        clock: wall time, s.
    """
    if item.sigma != base.sigma:
        raise ValueError(
            f"item {item.item_id} is at sigma {item.sigma}, the worker at {base.sigma}"
        )
    started = clock()
    votes = Votes.of(item)
    winner = _winners(base, votes, image)
    about = (votes.target != ALL_CLASSES) & (winner != votes.target)
    winner[about] = NOT_TARGET
    return Result(
        item_id=item.item_id,
        tallies=votes.tallies(winner, np.full_like(winner, base.nfe_per_vote)),
        open_votes=None,
        nfe=len(winner) * base.nfe_per_vote,
        padded=-len(winner) % base.batch * base.nfe_per_vote,
        seconds=clock() - started,
        worker=worker,
        device=base.device,
        numerics=numerics,
    )


def evaluate_classifier_votes(
    base: DirectClassifier, item: Item, image: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, int]:
    """The class of every vote of an item, one by one, as ``evaluate.evaluate_votes``.

    Args:
        base: the classifier at the item's sigma.
        item: what to evaluate.
        image: image_id -> float32 [C, H, W] in [0, 1].
    """
    winner = _winners(base, Votes.of(item), image)
    return winner, len(winner) * base.nfe_per_vote


def _winners(
    base: DirectClassifier, votes: Votes, image: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Class of each vote, int64 [N]; the first of equal logits, -2 where they are not finite."""
    image_id, stream = votes.addresses()
    s_tau, count = to_model_space(base.sigma), len(votes.vote)
    pixels = cache(lambda i: torch.from_numpy(np.array(image(i), np.float32)))
    winner = np.empty(count, np.int64)
    with torch.inference_mode():
        for start in range(0, count, base.batch):
            rows = np.arange(start, min(start + base.batch, count))
            padded = np.resize(rows, base.batch)
            clean = torch.stack([pixels(i) for i in image_id[padded].tolist()]).to(base.device)
            noise = NoiseSource(base.seed, base.sigma, clean[0].numel())
            delta = noise.normal(
                image_id[padded],
                stream[padded],
                votes.vote[padded],
                "smoothing",
                device=base.device,
            )
            noisy = to_model_image(clean) + s_tau * delta.reshape(clean.shape)
            logits = base.logits(noisy)[: len(rows)].cpu().numpy()
            finite = np.isfinite(logits).all(axis=1)
            winner[rows] = np.where(finite, logits.argmax(axis=1), NOT_TARGET)
    return winner
