"""Pixels as bytes, and bytes as pixels: a quarter of their float32 size in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.errors import UndecodableError
from diffcert_ray.errors import DatasetError

if TYPE_CHECKING:
    from diffcert_ray.datasets.dataset import Pixels


def from_bytes(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels 0..255 as float32 in [0, 1]: x / 255, rounded once."""
    return values.astype(np.float32) / np.float32(255)


class BytePixels:
    """uint8 [N, C, H, W] that gives float32 images in [0, 1] by position."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = np.ascontiguousarray(values)
        self.values.setflags(write=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, position: int, /) -> NDArray[np.float32]:
        return from_bytes(self.values[position])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return from_bytes(self.values).astype(dtype or np.float32, copy=False)


def first_shape(pixels: Pixels, count: int) -> tuple[int, int, int]:
    """(C, H, W) of the first of ``count`` images that can be decoded.

    Raises:
        DatasetError: none can.
    """
    reason = "there are none"
    for position in range(count):
        try:
            channels, height, width = pixels[position].shape
        except UndecodableError as error:
            reason = str(error)
        else:
            return channels, height, width
    raise DatasetError(f"none of the {count} chosen images can be decoded; the last: {reason}")
