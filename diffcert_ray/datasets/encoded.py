"""Encoded images: PNG, JPEG and their like, decoded to bytes [C, H, W] without resizing."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.errors import UndecodableError

# Formats with a decoder of plain pixels; others (EPS, for one) start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
MAX_PIXELS = 2**24  # larger than any image that a network here takes
_COLOUR_MODES = ("RGB", "L", "1", "P")
_GREY_MODES = ("L", "1")


def decode_image(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Pixels of an encoded image at the size that it is stored in.

    Args:
        data: the file's bytes.
        channels: 3, where grey and palette images are given as colours too; or 1, for grey images
            only.

    Returns:
        uint8 [channels, H, W].

    Raises:
        UndecodableError: why it cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableError(f"{image.width} x {image.height} pixels")
            modes = _COLOUR_MODES if channels == 3 else _GREY_MODES
            if image.mode not in modes:
                raise UndecodableError(
                    f"mode {image.mode}, where {channels} channels are read from "
                    f"{', '.join(modes)}; see dataset.image_shape"
                )
            values = np.asarray(image.convert("RGB" if channels == 3 else "L"))
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
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UndecodableError(str(error) or type(error).__name__) from None
    planes = values.transpose(2, 0, 1) if channels == 3 else values[None]
    return np.ascontiguousarray(planes)
