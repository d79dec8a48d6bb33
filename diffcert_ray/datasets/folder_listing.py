"""What lies in a folder with one sub-folder for each class.

The list is that of torchvision's ImageFolder, less what is none of the data; what was left out of
it is counted.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator

from diffcert_ray.datasets.stray_files import is_stray
from diffcert_ray.errors import DatasetError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
_SHOWN_KINDS = 6


def counted(kinds: Counter[str]) -> list[str]:
    """The most frequent kinds of files, with their numbers."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return [f"{number} {kind}" for kind, number in ordered[:_SHOWN_KINDS]]


@dataclasses.dataclass(frozen=True)
class FolderListing:
    """Classes and image files of a folder.

    Attributes:
        images: paths relative to the folder, by sorted name of their class.
        unread: number of other files by their ending, stray ones left out.
        outside: number of image files beside the classes' folders.
    """

    images: dict[str, list[str]]
    unread: Counter[str]
    outside: int

    def notes(self, folder: str) -> list[str]:
        """What a reader should know of what was left out, in sentences."""
        said = []
        if self.unread:
            kinds = counted(self.unread)
            more = len(self.unread) - len(kinds)
            said.append(
                f"{sum(self.unread.values())} files in the class folders of {folder} are not read "
                f"and count for nothing ({', '.join(kinds)}{', ...' if more > 0 else ''}): only "
                f"{' '.join(ENDINGS)} are; convert them if they are images"
            )
        if self.outside:
            said.append(
                f"{self.outside} images in {folder} lie beside the class folders, in none of them, "
                "and count for nothing"
            )
        return said


def list_folder(folder: str) -> FolderListing:
    """List a folder that exists.

    Raises:
        DatasetError: it has no sub-folder, one is without images, or they are splits.
    """
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not is_stray(e.name))
    classes = [name for name, is_folder in found if is_folder]
    if not classes:
        raise DatasetError(
            f"dataset.path: there is no class folder in {folder!r}: images lie in one sub-folder "
            "for each class"
        )
    if len(classes) > 1 and all(name.lower() in _SPLITS for name in classes):
        raise DatasetError(
            f"the sub-folders of {folder!r} are {', '.join(classes)}, which are splits and no "
            f'classes: set dataset.split to one of them, as in "{classes[-1]}"'
        )
    images: dict[str, list[str]] = {}
    unread: Counter[str] = Counter()
    for name in classes:
        images[name] = []
        for file in _files(folder, name):
            ending = os.path.splitext(file)[1].lower()
            if ending in ENDINGS:
                images[name].append(file)
            else:
                unread[ending or "without an ending"] += 1
    _check_each_has_images(folder, images, unread)
    _check_no_wrapper(folder, images)
    outside = sum(not is_folder and name.lower().endswith(ENDINGS) for name, is_folder in found)
    return FolderListing(images, unread, outside)


def _files(folder: str, name: str) -> Iterator[str]:
    """Files below a class folder, relative to the folder, in torchvision's order."""
    below = []
    for root, folders, files in os.walk(os.path.join(folder, name), followlinks=True):
        folders[:] = [f for f in folders if not is_stray(f)]
        below.append((root, sorted(f for f in files if not is_stray(f))))
    for root, files in sorted(below):
        for file in files:
            yield os.path.relpath(os.path.join(root, file), folder)


def _check_each_has_images(folder: str, images: dict[str, list[str]], unread: Counter[str]) -> None:
    empty = [name for name, files in images.items() if not files]
    if empty:
        others = ", ".join(counted(unread))
        raise DatasetError(
            f"dataset.path: {len(empty)} of {len(images)} class folders in {folder!r} have no "
            f"image that is read ({', '.join(ENDINGS)}): {', '.join(map(repr, empty[:5]))}"
            f"{', ...' if len(empty) > 5 else ''}"
            + (f"; other files in the class folders: {others}" if others else "")
            + "; put images there, convert them, or remove the folders that are no classes"
        )


def _check_no_wrapper(folder: str, images: dict[str, list[str]]) -> None:
    """Refuse one class whose images lie in several folders: an archive's own folder, mostly."""
    if len(images) > 1:
        return
    ((name, files),) = images.items()
    inner = {file.replace(os.sep, "/").split("/")[1] for file in files if file.count(os.sep) > 1}
    if len(inner) > 1 and all(file.count(os.sep) > 1 for file in files):
        raise DatasetError(
            f"{folder!r} has the one sub-folder {name!r}, whose images lie in {len(inner)} folders "
            f"({', '.join(sorted(inner)[:3])}, ...): if these are the classes or splits, set "
            f"dataset.path to {os.path.join(folder, name)!r} (dataset.split to one of its "
            'sub-folders, or to "all")'
        )
