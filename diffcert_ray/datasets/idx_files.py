"""IDX files, packed by gzip or not: the format of MNIST and of those that took it over.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits": two zero bytes, the
type (8: unsigned bytes), the number of dimensions, each as four bytes (big-endian), the values.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.errors import DatasetError

_GZIP: Final = b"\x1f\x8b"
_BYTES: Final = 8
_MOST_BYTES: Final = 2**31


def read_idx(files: DataFiles, name: str, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in a file.

    Args:
        files: where it is.
        name: its name there.
        dimensions: how many it must have: 3 of images [N, H, W], 1 of labels [N].

    Raises:
        DatasetError: it is no such file, or it is damaged.
    """
    where = f"{files.address}/{name}"
    data = files.read(name)
    try:
        start = 4 + 4 * dimensions
        with _unpacked(data) as file:
            header = file.read(start)
            if len(header) < start or header[:2] != b"\0\0":
                raise ValueError("it does not begin as IDX files do")
            if header[2] != _BYTES or header[3] != dimensions:
                raise ValueError(
                    f"it holds type {header[2]} of {header[3]} dimensions, not bytes ({_BYTES}) "
                    f"of {dimensions}"
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            if not 0 < size <= _MOST_BYTES:
                raise ValueError(f"it says that it has the shape {shape}")
            values = file.read(size + 1)
        if len(values) != size:
            more = "more" if len(values) > size else f"only {len(values)}"
            raise ValueError(f"it should hold {size} bytes, of shape {shape}, and holds {more}")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{where} is damaged, or no IDX file of {'images' if dimensions == 3 else 'labels'} "
            f"({error}): fetch it again"
        ) from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def _unpacked(data: bytes) -> io.BufferedIOBase:
    return gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(_GZIP) else io.BytesIO(data)
