"""Votes of a trained classifier: noise, perhaps one denoising step, logits, argmax.

The noise of a vote is that of the diffusion classifiers: same address, same purpose. Nothing that
a vote returns depends on the batch or the neighbours: batches have one shape, the last is padded.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET
from diffcert_ray.datasets.pixel_grid import to_grid
from diffcert_ray.engine.item_votes import CastVotes, Votes
from diffcert_ray.method.noise import NoiseSource, noisy_model_images
from diffcert_ray.method.trained_base import TrainedBase
from diffcert_ray.votes.units import Item


def cast_by_trained(base: TrainedBase, item: Item, image: Callable[[int], np.ndarray]) -> CastVotes:
    """Cast every vote of an item by the classifier at its sigma; none stays open."""
    votes = Votes.of(item)
    winner = _winners(base, votes, image)
    winner[(votes.target != ALL_CLASSES) & (winner != votes.target)] = NOT_TARGET
    padded = -len(winner) % base.batch * base.most_nfe
    return CastVotes(votes, winner, np.full_like(winner, base.most_nfe), padded)


def _winners(base: TrainedBase, votes: Votes, image: Callable[[int], np.ndarray]) -> np.ndarray:
    """Class of each vote, int64 [N]; the first of equal logits, -2 where they are not finite."""
    image_id, stream = votes.addresses()
    count = len(votes.vote)
    points = cache(lambda i: torch.from_numpy(to_grid(image(i))))
    winner = np.empty(count, np.int64)
    with torch.inference_mode():
        for start in range(0, count, base.batch):
            rows = np.arange(start, min(start + base.batch, count))
            padded = np.resize(rows, base.batch)
            clean = torch.stack([points(i) for i in image_id[padded].tolist()]).to(base.device)
            source = NoiseSource(base.seed, base.sigma, clean[0].numel())
            steps = source.steps(
                image_id[padded], stream[padded], votes.vote[padded], device=base.device
            )
            noisy = noisy_model_images(clean, steps.reshape(clean.shape))
            logits = base.logits(noisy)[: len(rows)].cpu().numpy()
            finite = np.isfinite(logits).all(axis=1)
            winner[rows] = np.where(finite, logits.argmax(axis=1), NOT_TARGET)
    return winner
