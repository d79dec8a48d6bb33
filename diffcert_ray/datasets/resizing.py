"""Images resized and cropped as they are read, antialiased: the ball is in the space after it.

Sizes and places are those of torchvision's Resize and CenterCrop; the filters are Pillow's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.decoding import MAX_PIXELS
from diffcert_ray.datasets.pixel_scale import as_pixels
from diffcert_ray.datasets.pixels import Pixels, UndecodableError, first_shape, from_bytes
from diffcert_ray.errors import DatasetError

FILTERS: Final = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "area": "BOX"}
DEFAULT: Final = "bicubic"
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Resizing:
    """What is done to every image.

    Args:
        resize: (height, width); or the shorter side, and the other keeps its proportion; or None.
        crop: height and width of the part from the middle that is kept, or None.
        interpolation: one of FILTERS; it is widened where an image is made smaller.
    """

    resize: int | Size | None
    crop: Size | None
    interpolation: str

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """What becomes of (C, H, W); UndecodableError where an image is smaller than the crop."""
        channels, height, width = shape
        height, width = self._resized(height, width)
        if not 0 < height * width <= MAX_PIXELS:
            raise UndecodableError(f"it would be {height} x {width} after dataset.resize")
        if self.crop is None:
            return channels, height, width
        if height < self.crop[0] or width < self.crop[1]:
            raise UndecodableError(
                f"it is {height} x {width}, smaller than dataset.crop = {list(self.crop)}: set "
                "dataset.resize, or crop less"
            )
        return channels, *self.crop

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [C, H, W] in [0, 1] from the same; images of 8 bits stay so."""
        _, wanted_height, wanted_width = self.shape(pixels.shape)
        size = self._resized(*pixels.shape[1:])
        if size != pixels.shape[1:]:
            levels = np.rint(pixels * 255).astype(np.uint8)
            of_8_bits = np.array_equal(from_bytes(levels), pixels)
            planes = [self._plane(p, size) for p in (levels if of_8_bits else pixels)]
            found = np.stack(planes)
            pixels = from_bytes(found) if of_8_bits else np.clip(found, 0, 1, dtype=np.float32)
        top = round((pixels.shape[1] - wanted_height) / 2)
        left = round((pixels.shape[2] - wanted_width) / 2)
        kept = pixels[:, top : top + wanted_height, left : left + wanted_width]
        return np.ascontiguousarray(kept)

    def identity(self, fingerprint: str) -> str:
        """The fingerprint of a dataset whose images are so read, from that of the files."""
        said = f"{fingerprint} resize {self.resize} {self.interpolation} crop {self.crop}"
        return hashlib.sha256(said.encode()).hexdigest()

    def _resized(self, height: int, width: int) -> Size:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def _plane(self, plane: NDArray[Any], size: Size) -> NDArray[Any]:
        from PIL import Image

        by = Image.Resampling[FILTERS[self.interpolation]]
        return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), by))


class ResizedPixels:
    """Images of other pixels, resized when asked for.

    Args:
        pixels: as they are stored; each is held to [0, 1] first.
        count: how many they are.
        resizing: what is done to them.
    """

    def __init__(self, pixels: Pixels, count: int, resizing: Resizing) -> None:
        self._pixels, self._count, self._resizing = pixels, count, resizing

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (self._count, *first_shape(_Shapes(self._pixels, self._resizing), self._count))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int, /) -> NDArray[np.float32]:
        return self._resizing(as_pixels(self._pixels[position]))


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Empty images of the shapes that images get: no scale need be right for that."""

    pixels: Pixels
    resizing: Resizing

    @property
    def shape(self) -> tuple[int, ...]:
        """Not known."""
        raise NotImplementedError

    def __getitem__(self, position: int, /) -> NDArray[Any]:
        return np.empty(self.resizing.shape(self.pixels[position].shape), np.uint8)


def asked_resizing(chosen: dict[str, Any]) -> Resizing | None:
    """What a specification asks for, or None.

    Raises:
        DatasetError: sizes that are none, or an interpolation of nothing.
    """
    resize, crop, by = (chosen.get(key) for key in ("resize", "crop", "interpolation"))
    if resize is None and by is not None:
        raise DatasetError(
            f"dataset.interpolation = {by!r} without dataset.resize: set it, or leave it out"
        )
    if resize is None and crop is None:
        return None
    if by is not None and by not in FILTERS:
        raise DatasetError(f"dataset.interpolation {by!r} is not one of {', '.join(FILTERS)}")
    side = resize if isinstance(resize, int) else None
    return Resizing(
        _size("resize", resize)[0] if side is not None else resize and _size("resize", resize),
        None if crop is None else _size("crop", crop),
        by or DEFAULT,
    )


def _size(key: str, given: Any) -> Size:
    sides = (given, given) if isinstance(given, int) else given
    whole = isinstance(sides, list | tuple) and len(sides) == 2
    if not whole or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
        raise DatasetError(
            f"dataset.{key} is {given!r}: give one side in pixels, or [height, width]"
        )
    if sides[0] * sides[1] > MAX_PIXELS:
        raise DatasetError(
            f"dataset.{key} is {given!r}, larger than any image that is read ({MAX_PIXELS} pixels)"
        )
    return int(sides[0]), int(sides[1])
