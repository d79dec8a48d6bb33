"""Encoded images as pixels: upright, in their full depth, transparent ones over a background only.

Shape letters: C H W image.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.deep_images import deep_levels
from diffcert_ray.datasets.pixels import UndecodableError, from_bytes
from diffcert_ray.errors import DatasetError

# Formats with a decoder of plain pixels; others (EPS, for one) start programs.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
MAX_PIXELS: Final = 2**24  # larger than any image that a network here takes
_COLOUR_MODES: Final = ("RGB", "L", "1", "P")
_GREY_MODES: Final = ("L", "1")
_TRANSPARENT: Final = {
    "RGBA": "RGBA",
    "LA": "LA",
    "PA": "RGBA",
    "P": "RGBA",
    "RGB": "RGBA",
    "L": "LA",
}
"""What an image that may have transparent pixels is read as, by its mode."""
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {  # what EXIF's orientation says, as flips of [H, W, ...]
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: v.swapaxes(0, 1)[:, ::-1],
    7: lambda v: v.swapaxes(0, 1)[::-1, ::-1],
    8: lambda v: v.swapaxes(0, 1)[::-1],
}
BACKGROUNDS: Final = {"white": 1.0, "black": 0.0}

Background = str | Sequence[float] | None


def check_background(background: object) -> None:
    """Refuse what is no background.

    Raises:
        DatasetError: it is neither a name of BACKGROUNDS nor numbers in [0, 1], one a channel.
    """
    if background is None or (isinstance(background, str) and background in BACKGROUNDS):
        return
    numbers = background if isinstance(background, list | tuple) else ()
    if len(numbers) in (1, 3) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in numbers
    ):
        return
    raise DatasetError(
        f'dataset.background is {background!r}: give "white", "black", or a number in [0, 1] for '
        "each channel"
    )


def decode_pixels(data: bytes, channels: int, background: Background = None) -> NDArray[np.float32]:
    """Pixels of an encoded image, float32 [channels, H, W] in [0, 1]; see ``decode_image``."""
    values = decode_image(data, channels, background)
    return from_bytes(values) if values.dtype == np.uint8 else values


def decode_image(data: bytes, channels: int, background: Background = None) -> NDArray[Any]:
    """An encoded image at the size that it is stored in, turned as its EXIF orientation says.

    Args:
        data: the file's bytes.
        channels: 3, where grey and palette images are given as colours too; or 1, for grey images
            only.
        background: what is seen through transparent pixels: "white", "black", or one number for
            each channel, pixel units; None refuses images that have some.

    Returns:
        [channels, H, W], uint8; of images with more than 8 bits float32 in [0, 1].

    Raises:
        UndecodableError: why it cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        deep = deep_levels(data, MAX_PIXELS)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_is_one(image)
            if deep is None:
                values = _values(image, channels)
            else:
                levels, largest = deep
                values = _turned(image, levels.astype(np.float32) / np.float32(largest))
        values = _over(values, background)
    except UndecodableError:
        raise
    except UnidentifiedImageError:
        raise UndecodableError(f"its {len(data)} bytes are no {', '.join(FORMATS)} file") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        ZeroDivisionError,
        OverflowError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UndecodableError(str(error) or type(error).__name__) from None
    if values.shape[2] != channels:
        if channels == 1:
            raise UndecodableError("it has colours, where one channel is read")
        values = np.repeat(values, 3, axis=2)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _values(image: Any, channels: int) -> NDArray[Any]:
    """An opened image as [H, W, C] of 1 to 4 channels: uint8, or float32 where it is deeper."""
    bits = _bits(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        if "transparency" in image.info:
            raise UndecodableError("a transparent grey of 16 bits, which is not read: convert it")
        values = np.asarray(image).astype(np.float32)[..., None] / np.float32(2**bits - 1)
        return np.ascontiguousarray(_turned(image, values))
    if bits > 8:
        raise UndecodableError(
            f"{bits} bits a channel in a {image.format} file, of which 8 would be read: store it "
            "as PNG"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        seen = image.convert(_TRANSPARENT.get(image.mode, "RGBA"))
        if channels == 1 and seen.mode != "LA":
            raise _unread(image.mode, channels)
    elif image.mode in (_COLOUR_MODES if channels == 3 else _GREY_MODES):
        seen = image.convert("RGB" if channels == 3 else "L")
    else:
        raise _unread(image.mode, channels)
    values = np.asarray(seen)
    return _turned(image, values if values.ndim == 3 else values[..., None])


def _check_is_one(image: Any) -> None:
    """Read an opened image, which must be one, and of a size that can be."""
    if image.width * image.height > MAX_PIXELS:
        raise UndecodableError(f"{image.width} x {image.height} pixels")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's preview beside its picture
        raise UndecodableError(f"it has {frames} frames or pages: store each as an image")
    image.load()


def _unread(mode: str, channels: int) -> UndecodableError:
    modes = ", ".join(_COLOUR_MODES if channels == 3 else _GREY_MODES)
    return UndecodableError(
        f"mode {mode}, where {channels} channels are read from {modes}; see dataset.image_shape, "
        "or convert it"
    )


def _bits(image: Any) -> int:
    """Bits of a channel in the file, where they may be more than 8."""
    if image.format == "TIFF":
        stated = image.tag_v2.get(258, (8,))
        return int(max(stated if isinstance(stated, tuple) else (stated,)))
    return 16 if image.mode.startswith("I") else 8


def _turned(image: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Upright, as the EXIF data say; Pillow has turned TIFF itself, and then says nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return values  # damaged EXIF data say nothing of the pixels
    return _UPRIGHT[orientation](values) if orientation in _UPRIGHT else values


def _over(values: NDArray[Any], background: Background) -> NDArray[Any]:
    """[H, W, 1 or 3] of an image that may have an alpha channel, over the background."""
    if values.shape[2] in (1, 3):
        return values
    colours, alpha = values[..., :-1], values[..., -1:]
    largest = 255 if values.dtype == np.uint8 else 1
    if alpha.min(initial=largest) == largest:
        return colours
    if background is None:
        raise UndecodableError(
            "it has transparent pixels, and nothing says what is behind them: set "
            'dataset.background = "white", "black" or a number in [0, 1] for each channel'
        )
    behind = _colour(background, colours.shape[2])
    if values.dtype != np.uint8:
        return (colours * alpha + behind * (1 - alpha)).astype(np.float32)
    share = alpha.astype(np.float64) / 255
    return np.rint(colours * share + 255 * behind * (1 - share)).astype(np.uint8)


def _colour(background: str | Sequence[float], channels: int) -> NDArray[np.float32]:
    if isinstance(background, str):
        return np.full(channels, BACKGROUNDS[background], np.float32)
    if len(background) not in (1, channels):
        raise UndecodableError(
            f"dataset.background has {len(background)} numbers, the image {channels} channels"
        )
    return np.broadcast_to(np.asarray(background, np.float32), (channels,))
