"""A folder of images with one sub-folder for each class, as torchvision lists it."""

from __future__ import annotations

import functools
import hashlib
import json
import os

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.class_order import mapping_shown, ordered_classes
from diffcert_ray.datasets.decoding import Background, decode_pixels
from diffcert_ray.datasets.folder_listing import list_folder
from diffcert_ray.datasets.pixels import UndecodableError, first_shape
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.errors import DatasetError


class FolderPixels:
    """Images that are read from their files when asked for.

    Args:
        paths: a file for each position.
        image_shape: (C, H, W), or None: three channels at the size of the first readable image.
        background: of transparent pixels, see ``decode_image``.
    """

    def __init__(
        self,
        paths: list[str],
        image_shape: tuple[int, int, int] | None,
        background: Background = None,
    ) -> None:
        self._paths, self._asked, self._background = paths, image_shape, background

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self._paths), *(self._asked or first_shape(self, len(self))))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int, /) -> NDArray[np.float32]:
        with open(self._paths[position], "rb") as file:
            data = file.read()
        try:
            channels = self._asked[0] if self._asked else 3
            return decode_pixels(data, channels, self._background)
        except UndecodableError as error:
            raise UndecodableError(f"{self._paths[position]}: {error}") from None


def read_image_folder(request: Request) -> Split:
    """An image folder; image_id is the row in torchvision's listing of it, without stray files.

    Classes are the sub-folders, by sorted name or by the number in it (class_order). Nothing is
    resized. The fingerprint rests on the files' names and sizes: their pixels are hashed when they
    are read. The path is a local folder; the split is a sub-folder of it that holds the classes'
    folders, or "all" for the path itself.

    Raises:
        DatasetError: no such folder, a class without images, or an order that must be said.
    """
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
    listing = list_folder(folder)
    where = f"the class folders in {folder!r}"
    names, moved = ordered_classes(listing.images, request.class_order, where)
    number = {name: k for k, name in enumerate(names)}
    files_of = [(name, file) for name, of_class in listing.images.items() for file in of_class]
    paths = [os.path.join(folder, file) for _, file in files_of]
    labels = np.array([number[name] for name, _ in files_of], dtype=np.int64)

    def pixels(positions: Ints) -> FolderPixels:
        chosen = [paths[i] for i in positions]
        return FolderPixels(chosen, request.image_shape, request.background)

    return Split(
        ids=np.arange(len(paths), dtype=np.int64),
        labels=labels.__getitem__,
        pixels=pixels,
        class_names=names,
        fingerprint=_fingerprint(request, folder, paths, names if moved else ()),
        notes=tuple(listing.notes(folder)),
        mapping=f"{where}: {mapping_shown(names)}",
        names_said=where,
    )


def _fingerprint(request: Request, folder: str, paths: list[str], moved: tuple[str, ...]) -> str:
    digest = hashlib.sha256(f"folder {request.split} {request.image_shape}".encode())
    digest.update(request.background_identity)
    for path in paths:
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        digest.update(f"\n{name} {os.path.getsize(path)}".encode())
    if moved:  # classes in another order than their names
        digest.update(f"\n{json.dumps(moved)}".encode())
    return digest.hexdigest()
