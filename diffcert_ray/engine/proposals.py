"""What a head says of the denoising rows among the rows that a network evaluates.

A row's log probabilities depend neither on its batch nor on its neighbours: activations are pooled
in the network's batches, and the head sees batches of one shape, the last one padded.
"""

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import sent
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom


class Proposals:
    """A head behind a network.

    Args:
        network: whose activations the head was trained on.
        head: on the same device.
        batch: rows of every batch.
        device: where they live.
    """

    def __init__(self, network: Denoiser, head: ShortlistHead, batch: int, device: str) -> None:
        self._call, self._head = with_bottom(network), head
        self._batch, self._device = batch, device

    def evaluate(
        self, z: Tensor, s: Tensor, y: Tensor | None, asking: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Evaluate one batch of the network.

        Args:
            z: as `Denoiser.__call__`, like s and y.
            s: noise levels.
            y: classes.
            asking: the batch's rows that the head is to look at, int64 [n].

        Returns:
            The estimates [B, C, H, W], and what the head looks at [n, features].
        """
        estimate, bottom = self._call(z, s, y)
        if not len(asking):
            return estimate, estimate.new_empty((0, self._head.features))
        return estimate, self._head.pooled(estimate, bottom)[sent(asking, self._device)]

    def log_p(self, features: Tensor) -> Tensor:
        """Log probabilities of the classes, float64 [n, K], of features [n, features]."""
        count, found = len(features), []
        for start in range(0, count, self._batch):
            group = np.arange(start, min(start + self._batch, count))
            rows = sent(np.resize(group, self._batch), self._device)
            found.append(self._head(features[rows])[: len(group)])
        return torch.cat(found).double()
