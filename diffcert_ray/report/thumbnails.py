"""Small pictures of a dataset's images, many in one sprite, within a budget of bytes."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPRITE_SIDE = 16  # pictures along one side of a sprite
LARGEST_SIDE = 64  # pixels of a picture
BUDGET = 7 * 2**20  # bytes of all sprites; base64 adds a third
QUALITIES = (80, 60, 40, 25)


@dataclass(frozen=True)
class Sprites:
    """Pictures of some images, 16 x 16 of them in one.

    Args:
        height: of one picture, pixels.
        width: of one picture, pixels.
        factor: image pixels (along one side) that one picture pixel is the mean of.
        encoding: what was done to fit the budget, in words.
        data: data URIs; picture i is number i % 256 of sprite i // 256, row by row.
    """

    height: int
    width: int
    factor: int
    encoding: str
    data: tuple[str, ...]


def make_sprites(
    ids: Sequence[int], image: Callable[[int], NDArray[np.float32]], budget: int = BUDGET
) -> Sprites:
    """Pictures of images, the sharpest that fit the budget.

    Args:
        ids: of the images, at least one.
        image: image_id -> float32 [C, H, W] in [0, 1], all of one shape.
        budget: bytes of all sprites before base64.

    Returns:
        PNG where that fits, else WebP of falling quality, else smaller pictures.
    """
    _, height, width = image(ids[0]).shape
    factor = _factor(height, width, LARGEST_SIDE)
    while True:
        pictures = np.stack([_picture(image(i), factor) for i in ids])
        sheets = [_sheet(pictures[a : a + SPRITE_SIDE**2]) for a in range(0, len(ids), 256)]
        for quality in (None, *QUALITIES):
            encoded = _encode_within(sheets, quality, budget)
            if encoded is not None:
                return _sprites(encoded, pictures, factor, quality)
        if max(pictures.shape[1:3]) == 1:
            raise ValueError(f"{len(ids)} pictures do not fit {budget} bytes; give a larger budget")
        factor = _factor(height, width, max(pictures.shape[1:3]) // 2)


def _sprites(
    encoded: list[bytes], pictures: NDArray[np.uint8], factor: int, quality: int | None
) -> Sprites:
    kind = "png" if quality is None else "webp"
    words = "exact to 8 bits" if quality is None else f"WebP of quality {quality}"
    if factor > 1:
        words += f", means of {factor} x {factor} pixels"
    data = tuple(f"data:image/{kind};base64,{base64.b64encode(e).decode()}" for e in encoded)
    return Sprites(pictures.shape[1], pictures.shape[2], factor, words, data)


def _factor(height: int, width: int, largest: int) -> int:
    """The smallest divisor of both sides that makes them fit (or of neither: 1 stays 1)."""
    sides = max(height, width)
    fitting = [f for f in range(1, sides + 1) if height % f == width % f == 0]
    return next((f for f in fitting if sides // f <= max(largest, 1)), fitting[-1])


def _picture(pixels: NDArray[np.float32], factor: int) -> NDArray[np.uint8]:
    """[C, H, W] in [0, 1] -> [H / factor, W / factor, 3]."""
    channels, height, width = pixels.shape
    blocks = pixels.reshape(channels, height // factor, factor, width // factor, factor)
    small = np.clip(blocks.mean(axis=(2, 4)), 0.0, 1.0)
    colours = np.broadcast_to(small[:3] if channels >= 3 else small[:1], (3, *small.shape[1:]))
    picture: NDArray[np.uint8] = np.rint(colours * 255).astype(np.uint8).transpose(1, 2, 0)
    return picture


def _sheet(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to 256 pictures, 16 in a row."""
    _, height, width, _ = pictures.shape
    rows = -(-len(pictures) // SPRITE_SIDE)
    sheet = np.zeros((rows * height, SPRITE_SIDE * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, SPRITE_SIDE)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = picture
    return sheet


def _encode_within(
    sheets: Sequence[NDArray[np.uint8]], quality: int | None, budget: int
) -> list[bytes] | None:
    """All sheets, or None as soon as they are too large."""
    encoded: list[bytes] = []
    for sheet in sheets:
        encoded.append(_encode(sheet, quality))
        budget -= len(encoded[-1])
        if budget < 0:
            return None
    return encoded


def _encode(sheet: NDArray[np.uint8], quality: int | None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(sheet)
    if quality is None:
        picture.save(buffer, "PNG", compress_level=6)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
