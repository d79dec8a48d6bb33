"""Images of more than 8 bits a channel that Pillow would cut to 8: PNG with colours, and PPM.

Source: W3C, "Portable Network Graphics (PNG) Specification"; netpbm's ppm(5) and pgm(5).
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {2: 3, 4: 2, 6: 4}  # by colour type; 0, grey, is left to Pillow
_BETWEEN: Final = rb"(?:\s|#[^\n]*\n)+"
_PNM_HEADER = re.compile(
    _BETWEEN.join((rb"(P[2356])", rb"(\d+)", rb"(\d+)", rb"(\d+)")) + rb"[\s#]"
)


def deep_levels(data: bytes, most_pixels: int) -> tuple[NDArray[np.uint16], int] | None:
    """The levels of such an image.

    Args:
        data: the file's bytes.
        most_pixels: larger images are refused.

    Returns:
        uint16 [H, W, C] (two channels are grey and alpha, four colours and alpha) and the largest
        level that the file can hold; None for any other image.

    Raises:
        ValueError: it is such an image, and damaged, too large or interlaced.
    """
    if data.startswith(_SIGNATURE) and len(data) > 29 and data[12:16] == b"IHDR":
        if data[24] == 16 and data[25] in _CHANNELS:
            return _png(data, most_pixels), 65535
    elif (header := _PNM_HEADER.match(data[:4096])) and int(header[4]) > 255:
        return _pnm(data, header, most_pixels), int(header[4])
    return None


def _pnm(data: bytes, header: re.Match[bytes], most_pixels: int) -> NDArray[np.uint16]:
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] in b"P6 P3" else 1
    if not 0 < width * height <= most_pixels or int(header[4]) > 65535:
        raise ValueError(f"{width} x {height} pixels of levels up to {int(header[4])}")
    count = width * height * channels
    if header[1] in b"P2 P3":  # numbers as text
        words = re.sub(rb"#[^\n]*", b"", data[header.end() - 1 :]).split()[:count]
        levels = np.array([min(int(word), 65536) for word in words], dtype=np.int64)
    else:
        most = (len(data) - header.end()) // 2
        levels = np.frombuffer(data, ">u2", min(count, most), header.end())
    if len(levels) < count:
        raise ValueError("its end is missing")
    if levels.min(initial=0) < 0 or levels.max(initial=0) > int(header[4]):
        raise ValueError("a level is larger than its header says")
    return levels.astype(np.uint16).reshape(height, width, channels)


def _png(data: bytes, most_pixels: int) -> NDArray[np.uint16]:
    width, height = struct.unpack(">II", data[16:24])
    if not 0 < width * height <= most_pixels:
        raise ValueError(f"{width} x {height} pixels")
    if data[28]:
        raise ValueError("16 bits a channel and interlaced, which is not read: store it plainly")
    channels = _CHANNELS[data[25]]
    row = width * channels * 2
    packed = zlib.decompressobj()
    lines = packed.decompress(_pixel_chunks(data), height * (row + 1))
    if len(lines) < height * (row + 1):
        raise ValueError("its end is missing")
    decoded = _unfiltered(lines, height, row, channels * 2)
    return decoded.view(">u2").astype(np.uint16).reshape(height, width, channels)


def _pixel_chunks(data: bytes) -> bytes:
    """The compressed pixels, of chunks whose checksums are right."""
    found, at = [], len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4 or zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
            raise ValueError(f"a damaged chunk {kind!r}")
        if kind == b"tRNS":
            raise ValueError("a transparent colour in 16 bits, which is not read: store an alpha")
        if kind == b"IDAT":
            found.append(content)
        at += 12 + length
        if kind == b"IEND":
            return b"".join(found)
    raise ValueError("its end is missing")


def _unfiltered(lines: bytes, height: int, row: int, step: int) -> NDArray[np.uint8]:
    """Rows [height, row] of bytes; each was stored as differences from the bytes before it."""
    out = np.zeros((height, row), np.uint8)
    above = np.zeros(row, np.uint8)
    for y in range(height):
        kind = lines[y * (row + 1)]
        stored = np.frombuffer(lines, np.uint8, row, y * (row + 1) + 1)
        if kind == 0:
            out[y] = stored
        elif kind == 1:  # from the left
            out[y] = stored.reshape(-1, step).cumsum(axis=0, dtype=np.uint8).ravel()
        elif kind == 2:  # from above
            out[y] = stored + above
        elif kind in (3, 4):
            out[y] = _sequential(kind, stored.tolist(), above.tolist(), step)
        else:
            raise ValueError(f"a row of the unknown kind {kind}")
        above = out[y]
    return out


def _sequential(kind: int, stored: list[int], above: list[int], step: int) -> list[int]:
    """A row that was predicted from left and above: their mean (3), or Paeth's choice (4)."""
    done = [0] * step
    before = [0] * step + above
    for k, value in enumerate(stored):
        left, up, corner = done[k], above[k], before[k]
        if kind == 3:
            guess = (left + up) // 2
        else:
            estimate = left + up - corner
            guess = min((left, up, corner), key=lambda near: abs(estimate - near))
        done.append((value + guess) & 255)
    return done[step:]
