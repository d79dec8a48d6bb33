"""Rows that wait for a batch, first in, first out."""

from collections import deque

import numpy as np


class RowQueue:
    """Rows of (lane, entry, class), taken in the order in which they were put."""

    def __init__(self) -> None:
        self._blocks: deque[np.ndarray] = deque()
        self.rows = 0

    def put(self, lane: np.ndarray, entry: np.ndarray, klass: np.ndarray) -> None:
        """Add rows at the end: three int64 [n]."""
        self._blocks.append(np.stack([lane, entry, klass]))
        self.rows += len(lane)

    def take(self, count: int) -> np.ndarray:
        """The first ``count`` rows, or all if there are fewer: int64 [3, n]."""
        taken, missing = [], min(count, self.rows)
        self.rows -= missing
        while missing:
            block = self._blocks.popleft()
            if block.shape[1] > missing:
                self._blocks.appendleft(block[:, missing:])
            taken.append(block[:, :missing])
            missing -= taken[-1].shape[1]
        return np.concatenate(taken, axis=1)
