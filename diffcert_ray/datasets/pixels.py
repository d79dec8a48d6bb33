"""Pixels of a dataset: by position, as bytes or encoded files, in [0, 1], and their hash.

Shape letters: N images, C H W image.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.errors import DatasetError


class UndecodableError(ValueError):
    """Why an image cannot be decoded, said by a reader that knows nothing of image ids."""


class Pixels(Protocol):
    """Pixels by position: an array [N, C, H, W], or what reads them when asked.

    ``read_image`` of a dataset checks what they give.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        ...

    def __getitem__(self, position: int, /) -> NDArray[Any]:
        """[C, H, W], floats in [0, 1] or uint8."""
        ...


def from_bytes(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels 0..255 as float32 in [0, 1]: x / 255, rounded once."""
    return values.astype(np.float32) / np.float32(255)


class BytePixels:
    """uint8 [N, C, H, W] that gives float32 images in [0, 1] by position."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = frozen(values)

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
    """(C, H, W) of the first of ``count`` images that can be decoded; DatasetError if none can."""
    reason = "there are none"
    for position in range(count):
        try:
            channels, height, width = pixels[position].shape
        except UndecodableError as error:
            reason = str(error)
        else:
            return channels, height, width
    raise DatasetError(f"none of the {count} chosen images can be decoded; the last: {reason}")


def pixels_sha(pixels: NDArray[np.float32]) -> str:
    """The first 16 hex digits of the sha256 of pixels as little-endian float32."""
    return hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest()[:16]


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array, contiguous and protected against being changed by accident."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array
