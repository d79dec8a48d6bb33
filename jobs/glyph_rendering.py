"""From a syllable and a font to an image of 16 x 16: the pure part of jobs/make_glyphs.py.

A glyph is drawn large; its ink is slanted, turned, stretched, scaled and centred in one affine
step; strokes are made thicker or thinner; and squares of 8 x 8 are averaged. The darkest pixel of
an image is full ink.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont

SIDE = 16
FINE = 8  # fine pixels to a pixel's side, before they are averaged
DRAWN = 144  # font size that glyphs are drawn at
KS_X_1001 = 2350  # modern syllables in that standard
EDGE = 2.5  # blur, in fine pixels, that moves edges of strokes
LEAST_INK = (
    0.7  # strokes that are made thinner keep that much of their ink, or are left as they were
)
MOST_INK = 0.45  # strokes that are made thicker cover no more than this of the image, or likewise


@dataclasses.dataclass(frozen=True)
class Shape:
    """How an image of a glyph differs from the plain one; the defaults are the plain one.

    Attributes:
        size: of the longer side of the ink, pixels.
        right, down: where the middle of the ink is, pixels from the middle of the image.
        turn, slant: degrees.
        wider: width over height, beside the font's own.
        thicker: how far the edges of strokes move outwards, pixels.
    """

    size: float = 15.5
    right: float = 0.0
    down: float = 0.0
    turn: float = 0.0
    slant: float = 0.0
    wider: float = 1.0
    thicker: float = 0.0


def common_syllables(count: int) -> tuple[str, ...]:
    """Syllables spread evenly over the 2,350 modern ones of KS X 1001, in that standard's order.

    Args:
        count: 1 to 2,350; of number i the position in the standard is floor(2350 i / count).
    """
    if not 1 <= count <= KS_X_1001:
        raise ValueError(f"{count} syllables: KS X 1001 has {KS_X_1001}, take 1 to {KS_X_1001}")
    places = [i * KS_X_1001 // count for i in range(count)]
    # The standard's rows of 94 are rows of the encoding EUC-KR, from 0xB0A1 on.
    return tuple(bytes([0xB0 + p // 94, 0xA1 + p % 94]).decode("euc_kr") for p in places)


def draw(font: ImageFont.FreeTypeFont, syllable: str) -> Image.Image:
    """The ink of a syllable, large and cropped, mode "L"; ValueError where the font has none."""
    mask = font.getmask(syllable, mode="L")
    drawn = Image.frombytes("L", mask.size, bytes(mask))
    box = drawn.getbbox()
    if box is None:
        raise ValueError(f"{' '.join(map(str, font.getname()))} draws nothing for {syllable}")
    return drawn.crop(box)


def missing(font: ImageFont.FreeTypeFont, syllables: Iterable[str]) -> list[str]:
    """The syllables that a font does not have: drawn not at all, or as what it cannot have."""
    small = font.font_variant(size=SIDE)
    absent = bytes(small.getmask("\ue0fd"))
    masks = {syllable: small.getmask(syllable) for syllable in syllables}
    return [s for s, mask in masks.items() if mask.getbbox() is None or bytes(mask) == absent]


def image_of(ink: Image.Image, shape: Shape = Shape()) -> NDArray[np.uint8]:
    """An image of cropped ink.

    Args:
        ink: mode "L", 255 is ink, from ``draw``.
        shape: see there.

    Returns:
        uint8 [16, 16], 0 is background, 255 the darkest pixel.
    """
    fine = _placed(ink, shape)
    if shape.thicker:
        fine = _thicker(fine, shape.thicker * FINE)
    mean = np.asarray(fine, np.float64).reshape(SIDE, FINE, SIDE, FINE).mean(axis=(1, 3))
    return np.rint(mean * (255 / mean.max())).astype(np.uint8)


def varied(random: np.random.Generator) -> Shape:
    """A shape drawn at random, for a training image."""
    return Shape(
        size=random.uniform(14.3, 16.0),
        right=random.uniform(-0.5, 0.5),
        down=random.uniform(-0.5, 0.5),
        turn=random.normal(0, 1.5),
        slant=random.normal(0, 2.5),
        wider=math.exp(random.normal(0, 0.07)),
        thicker=random.uniform(-0.12, 0.25),
    )


def _placed(ink: Image.Image, shape: Shape) -> Image.Image:
    """The ink in a fine image of SIDE * FINE pixels a side, slanted, turned, scaled and centred."""
    turn, slant = math.radians(shape.turn), math.radians(shape.slant)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    stretch = np.diag([math.sqrt(shape.wider), 1 / math.sqrt(shape.wider)])
    linear = rotation @ np.array([[1, -math.tan(slant)], [0, 1]]) @ stretch
    reached = _outline(np.asarray(ink)) @ linear.T
    low, high = reached.min(axis=0), reached.max(axis=0)
    linear *= (scale := shape.size * FINE / (high - low).max())
    middle = (np.array([shape.right, shape.down]) + SIDE / 2) * FINE
    # Pillow asks, for every pixel of the result, where in the ink it comes from.
    inverse = np.linalg.inv(linear)
    origin = inverse @ (scale * (low + high) / 2 - middle)
    return ink.transform(
        (SIDE * FINE, SIDE * FINE),
        Image.Transform.AFFINE,
        (*inverse[0], origin[0], *inverse[1], origin[1]),
        resample=Image.Resampling.BICUBIC,
    )


def _outline(ink: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Corners (x, y) of the ink's rows [n, 2]: enough for its extent after a linear map."""
    inked = ink > 127
    rows = np.flatnonzero(inked.any(axis=1))
    first = inked[rows].argmax(axis=1)
    last = inked.shape[1] - inked[rows, ::-1].argmax(axis=1)
    corners = [(x, y) for ends in (first, last) for x in (ends,) for y in (rows, rows + 1)]
    return np.concatenate([np.stack(corner, axis=1) for corner in corners]).astype(np.float64)


def _thicker(fine: Image.Image, by: float) -> Image.Image:
    """The same with the edges of strokes moved outwards, or inwards where that leaves enough."""
    before = np.asarray(fine, np.float64) / 255
    blurred = np.asarray(fine.filter(ImageFilter.GaussianBlur(EDGE)), np.float64) / 255
    # A straight edge, blurred, has this value at a distance ``by`` outside of it.
    level = statistics.NormalDist().cdf(-by / EDGE)
    after = np.clip((blurred - level) * (math.sqrt(2 * math.pi) * EDGE) + 0.5, 0, 1)
    if by < 0 and after.sum() < LEAST_INK * before.sum():
        return fine
    if by > 0 and after.mean() > MOST_INK:
        return fine
    return Image.fromarray(np.rint(after * 255).astype(np.uint8))
