"""Votes of a trained classifier: noise, perhaps one denoising step, logits, argmax.

The noise of a vote is that of the diffusion classifiers: same address, same purpose. Nothing that
a vote returns depends on the batch or the neighbours: batches have one shape, the last is padded.
The host waits for the device once in a chunk, for its logits, as in `item_run`.
"""

from collections import deque
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET
from diffcert_ray.datasets.pixel_grid import to_grid
from diffcert_ray.denoisers.device import Coming, sent
from diffcert_ray.engine.item_run import AHEAD, CHUNK_BATCHES
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
    image_id = votes.addresses()[0]
    points = cache(lambda i: to_grid(image(i)))
    under_way: deque[Coming] = deque()
    winners: list[np.ndarray] = []
    with torch.inference_mode():
        for first in range(0, len(image_id), CHUNK_BATCHES * base.batch):
            chunk = slice(first, first + CHUNK_BATCHES * base.batch)
            ids, which = np.unique(image_id[chunk], return_inverse=True)
            clean = sent(np.stack([points(int(i)) for i in ids]), base.device)
            under_way.append(Coming(_logits(base, votes, chunk, clean, which.reshape(-1))))
            while len(under_way) > AHEAD[torch.device(base.device).type]:
                winners.append(_classes(under_way.popleft()))
        winners += [_classes(coming) for coming in under_way]
    return np.concatenate(winners) if winners else np.empty(0, np.int64)


def _logits(
    base: TrainedBase, votes: Votes, chunk: slice, clean: Tensor, which: np.ndarray
) -> Tensor:
    """Logits [n, K] of a chunk of votes; ``clean`` has their images, ``which`` says whose."""
    (image_id, stream), vote = votes.addresses(), votes.vote
    source = NoiseSource(base.seed, base.sigma, clean[0].numel())
    logits = []
    for start in range(0, len(which), base.batch):
        rows = np.arange(start, min(start + base.batch, len(which)))
        padded = np.resize(rows, base.batch)
        address = (part[chunk][padded] for part in (image_id, stream, vote))
        seen = clean[sent(which[padded], base.device)]
        steps = source.steps(*address, device=base.device).reshape(seen.shape)
        logits.append(base.logits(noisy_model_images(seen, steps))[: len(rows)])
    return torch.cat(logits)


def _classes(coming: Coming) -> np.ndarray:
    logits = coming.array()
    finite = np.isfinite(logits).all(axis=1)
    return np.where(finite, logits.argmax(axis=1), NOT_TARGET)
