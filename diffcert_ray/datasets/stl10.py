"""STL-10, binary version: test_X.bin and test_y.bin, 96 x 96 colours of 10 classes.

Source: Coates, Ng and Lee 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature
Learning"; planes are stored column after column, and labels count from 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError

SIDE: Final = 96
CLASSES: Final = (
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
)


def read_stl10(request: Request) -> Split:
    """STL-10, split "test" or "train"; image_id is the row in the file; in memory as bytes.

    The path is the folder stl10_binary, or the one that it is in.

    Raises:
        DatasetError: no such files, or damaged ones.
    """
    request.check_split("test", "train")
    files = request.files()
    name = f"{request.split}_X.bin"
    folders = [place for place in ("", "stl10_binary/") if files.exists(f"{place}{name}")]
    if not folders:
        raise DatasetError(
            f"dataset.path {files.address!r} has no file {name!r}: give the unpacked folder "
            "stl10_binary (its labels are in a file of their own), or the one that it is in"
        )
    where = f"{files.address}/{folders[0]}{name}"
    data = np.frombuffer(files.read(f"{folders[0]}{name}"), np.uint8)
    stored = np.frombuffer(files.read(f"{folders[0]}{request.split}_y.bin"), np.uint8)
    record = 3 * SIDE * SIDE
    if len(data) == 0 or len(data) != len(stored) * record:
        raise DatasetError(
            f"{where} has {len(data)} bytes, and {len(stored)} labels lie beside it, which is not "
            f"{record} bytes for each: it is cut short or of another dataset; fetch it again"
        )
    if stored.min() < 1 or stored.max() > len(CLASSES):
        raise DatasetError(
            f"{where} has labels {stored.min()} to {stored.max()}, not 1 to {len(CLASSES)}: it is "
            "damaged or was changed; fetch it again"
        )
    images = data.reshape(-1, 3, SIDE, SIDE).swapaxes(2, 3)
    return split_of_bytes(request, images, stored.astype(np.int64) - 1, CLASSES)
