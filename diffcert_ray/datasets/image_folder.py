"""A folder of images with one sub-folder for each class, as torchvision lists it."""

from __future__ import annotations

import functools
import hashlib
import os

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.pixels import decode_image, first_shape, from_bytes
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.errors import DatasetError


class FolderPixels:
    """Images that are read from their files when asked for.

    Args:
        paths: a file for each position.
        image_shape: (C, H, W), or None: three channels at the size of the first readable image.
    """

    def __init__(self, paths: list[str], image_shape: tuple[int, int, int] | None) -> None:
        self._paths, self._asked = paths, image_shape

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self._paths), *(self._asked or first_shape(self, len(self))))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int, /) -> NDArray[np.float32]:
        with open(self._paths[position], "rb") as file:
            data = file.read()
        return from_bytes(decode_image(data, self._asked[0] if self._asked else 3))


def read_image_folder(request: Request) -> Split:
    """An image folder; image_id is the row in torchvision's listing of it.

    Classes are the sorted names of the sub-folders. Nothing is resized. The fingerprint rests on
    the files' names and sizes: their pixels are hashed when they are read. The path is a local
    folder; the split is a sub-folder of it that holds the classes' folders, or "all" for the path
    itself.
    """
    from torchvision.datasets import ImageFolder

    files = request.files()
    if not files.is_local:
        raise DatasetError(
            f"dataset.path {files.address!r}: an image folder is read from a local path; for "
            "object stores write the images as Parquet"
        )
    root = os.path.expanduser(files.address.removeprefix("file://"))
    folder = root if request.split == "all" else os.path.join(root, request.split)
    if not os.path.isdir(folder):
        raise DatasetError(
            f"there is no folder {folder!r}: set dataset.split to a sub-folder of dataset.path, "
            'or to "all" if dataset.path itself holds the classes'
        )
    try:
        listing = ImageFolder(folder)
    except FileNotFoundError as error:
        raise DatasetError(f"dataset.path: {error}") from None
    paths = [path for path, _ in listing.samples]
    labels = np.array([label for _, label in listing.samples], dtype=np.int64)

    def pixels(positions: Ints) -> FolderPixels:
        return FolderPixels([paths[i] for i in positions], request.image_shape)

    return Split(
        ids=np.arange(len(paths), dtype=np.int64),
        labels=labels.__getitem__,
        pixels=pixels,
        class_names=tuple(listing.classes),
        fingerprint=_fingerprint(request, folder, paths),
    )


def _fingerprint(request: Request, folder: str, paths: list[str]) -> str:
    digest = hashlib.sha256(f"folder {request.split} {request.image_shape}".encode())
    for path in paths:
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        digest.update(f"\n{name} {os.path.getsize(path)}".encode())
    return digest.hexdigest()
