"""Korean syllables rendered from fonts by jobs/make_glyphs.py, 1,000 classes of 1 x 16 x 16.

The test part ships with the package: plain images by faces of whole families that no training image
is of (``shipped/GLYPHS-LICENCES.txt`` names them). A file is an .npz of `images` (uint8
[N, 16, 16], ink is 255), `labels` (whole numbers [N]) and `syllables` (the classes' names), and of
`faces` [N], `face_names` and `face_families`, which say by which face an image was rendered.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError

CLASSES: Final = 1000
SIDE: Final = 16
JOB: Final = "python jobs/make_glyphs.py FOLDER"


def read_glyphs(request: Request) -> Split:
    """The syllables, split "test" (in the package) or "train" (in dataset.path).

    image_id is the row in the split's file, whose order is none: the first N are a fair part.
    """
    request.check_split("test", "train")
    shipped = DataFiles(str(resources.files("diffcert_ray.datasets") / "shipped"))
    if request.split == "test":
        if request.path:
            raise DatasetError(
                f"dataset.path {request.path!r} means nothing to split 'test' of glyphs, which "
                "comes with the package: remove it"
            )
        values, labels, names = _contents(shipped, "glyphs-test.npz")
    else:
        values, labels, names = _contents(_training_files(request), "glyphs-train.npz")
        *_, expected = _contents(shipped, "glyphs-test.npz")
        if names != expected:
            raise DatasetError(
                f"{request.path}/glyphs-train.npz has other classes than the test part: make it "
                f"again with `{JOB}` of this version"
            )
    return split_of_bytes(request, values[:, None], labels, names)


def _training_files(request: Request) -> DataFiles:
    """The folder that the job wrote the training part into."""
    made = f"it is made from installed fonts by `{JOB}`"
    if not request.path:
        raise DatasetError(
            f"split 'train' of glyphs needs dataset.path: {made}; set dataset.path to that FOLDER"
        )
    files = request.files()
    if not files.exists("glyphs-train.npz"):
        raise DatasetError(
            f"dataset.path {request.path!r} has no file 'glyphs-train.npz': {made}; or correct the "
            "path (on every node that runs workers)"
        )
    return files


def _contents(
    files: DataFiles, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Images [N, 16, 16], classes [N] and the classes' names of a file, all checked."""
    where = f"{files.address}/{name}"
    try:
        with np.load(io.BytesIO(files.read(name)), allow_pickle=False) as arrays:
            images, labels, names = (arrays[key] for key in ("images", "labels", "syllables"))
        _check(images, labels, names)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, TypeError, zlib.error) as error:
        raise DatasetError(
            f"{where} is damaged, or not a file of jobs/make_glyphs.py ({error}): make it again"
        ) from None
    return images, labels.astype(np.int64), tuple(map(str, names))


def _check(images: NDArray[Any], labels: NDArray[Any], names: NDArray[Any]) -> None:
    """ValueError where the arrays are no images, classes and names."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"images are {images.dtype} {images.shape}, not bytes [N, {SIDE}, {SIDE}]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{labels.dtype} labels {labels.shape} for {len(images)} images")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"labels are not 0 to {CLASSES - 1}, of one image at least")
    if names.dtype.kind != "U" or names.shape != (CLASSES,) or len(set(names)) < CLASSES:
        raise ValueError(f"syllables are {names.dtype} {names.shape}, not {CLASSES} names")
