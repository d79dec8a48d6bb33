"""Tiny ImageNet: 200 classes of 64 x 64 images, with the validation labels in a text file.

Source: Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge" (tiny-imagenet-200).
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

import numpy as np

from diffcert_ray.datasets.class_order import mapping_shown
from diffcert_ray.datasets.image_folder import FolderPixels
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.datasets.stray_files import is_stray
from diffcert_ray.errors import DatasetError

_ENDINGS: Final = (".jpeg", ".jpg", ".png")
_ANNOTATIONS: Final = "val_annotations.txt"


def read_tiny_imagenet(request: Request) -> Split:
    """Tiny ImageNet, split "val" or "train"; image_id is the row in the sorted list of its files.

    The path is the local folder tiny-imagenet-200, or the one that it is in. Classes are the sorted
    WordNet ids. Validation images are listed by their annotations, or by class folders, into which
    many people move them.

    Raises:
        DatasetError: a split without labels, no such files, or annotations that do not fit.
    """
    files = request.files()
    if not files.is_local:
        raise DatasetError(
            f"dataset.path {files.address!r}: Tiny ImageNet is read from a local path; for object "
            "stores write its images as Parquet"
        )
    if request.split == "test":
        raise DatasetError(
            "split 'test' of tiny-imagenet has no labels: set dataset.split = \"val\", which "
            'results are reported on, or "train"'
        )
    request.check_split("val", "train")
    root = _root(os.path.expanduser(files.address.removeprefix("file://")))
    ids = _classes(root)
    listed = _annotated(root) if request.split == "val" else None
    if listed is None:
        listed = _in_class_folders(os.path.join(root, request.split), ids)
    listed.sort()
    unknown = sorted({wordnet_id for _, wordnet_id in listed} - set(ids))
    if unknown or not listed:
        raise DatasetError(
            f"{root} has no images of split {request.split!r}"
            if not listed
            else f"{root}: images are of {unknown[0]!r}, which is no class of wnids.txt"
        )
    number = {wordnet_id: k for k, wordnet_id in enumerate(ids)}
    paths = [os.path.join(root, file) for file, _ in listed]
    labels = np.array([number[wordnet_id] for _, wordnet_id in listed], dtype=np.int64)
    digest = hashlib.sha256(f"tiny-imagenet {request.split} {','.join(ids)}".encode())
    digest.update(request.background_identity)
    for (file, wordnet_id), path in zip(listed, paths, strict=True):
        digest.update(f"\n{file.replace(os.sep, '/')} {wordnet_id} ".encode())
        digest.update(str(os.path.getsize(path)).encode())

    def pixels(positions: Ints) -> FolderPixels:
        return FolderPixels([paths[i] for i in positions], None, request.background)

    return Split(
        ids=np.arange(len(paths), dtype=np.int64),
        labels=labels.__getitem__,
        pixels=pixels,
        class_names=ids,
        fingerprint=digest.hexdigest(),
        notes=(
            f"classes are the sorted WordNet ids, not the order of wnids.txt: {mapping_shown(ids)}",
        ),
        names_said="the WordNet ids",
    )


def _root(folder: str) -> str:
    for root in (folder, os.path.join(folder, "tiny-imagenet-200")):
        if os.path.isdir(os.path.join(root, "val")) or os.path.isdir(os.path.join(root, "train")):
            return root
    raise DatasetError(
        f"dataset.path {folder!r} has no folder val or train: give the unpacked folder "
        "tiny-imagenet-200, or the one that it is in"
    )


def _classes(root: str) -> tuple[str, ...]:
    """Sorted WordNet ids: of wnids.txt, or the folders of the training part."""
    try:
        with open(os.path.join(root, "wnids.txt"), encoding="utf-8-sig") as file:
            found = set(file.read().split())
    except FileNotFoundError:
        found = set()
        for split in ("train", "val"):
            if os.path.isdir(os.path.join(root, split)):
                found = _folders(os.path.join(root, split)) - {"images"}
            if found:
                break
    if not found:
        raise DatasetError(f"{root} has neither wnids.txt nor class folders: unpack it again")
    return tuple(sorted(found))


def _annotated(root: str) -> list[tuple[str, str]] | None:
    """(file, WordNet id) of validation images in one folder; None where class folders have them."""
    folder = os.path.join(root, "val")
    flat = os.path.join(folder, "images")
    names = _images(flat) if os.path.isdir(flat) else []
    if not names:
        return None
    try:
        with open(os.path.join(folder, _ANNOTATIONS), encoding="utf-8-sig") as file:
            rows = [line.split() for line in file if line.strip()]
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} has images, but no {_ANNOTATIONS} with their classes: unpack it again"
        ) from None
    if any(len(row) < 2 for row in rows):
        raise DatasetError(f"{folder}/{_ANNOTATIONS} is no table of FILE WORDNET_ID lines")
    wordnet_id = {row[0]: row[1] for row in rows}
    missing = [name for name in names if name not in wordnet_id]
    lost = sorted(set(wordnet_id) - set(names))
    if missing or lost:
        what = f"does not name {missing[0]}" if missing else f"names {lost[0]}, which is not there"
        raise DatasetError(f"{folder}/{_ANNOTATIONS} {what}: unpack it again")
    return [(os.path.join("val", "images", name), wordnet_id[name]) for name in names]


def _in_class_folders(folder: str, ids: tuple[str, ...]) -> list[tuple[str, str]]:
    """(file, WordNet id) of images in CLASS/images or in CLASS, relative to the root."""
    split, found = os.path.basename(folder), []
    for wordnet_id in sorted(_folders(folder) - {"images"}) if os.path.isdir(folder) else ():
        for inner in (os.path.join(wordnet_id, "images"), wordnet_id):
            if os.path.isdir(os.path.join(folder, inner)):
                names = _images(os.path.join(folder, inner))
                found += [(os.path.join(split, inner, name), wordnet_id) for name in names]
    without = sorted(set(ids) - {wordnet_id for _, wordnet_id in found})
    if found and without:
        raise DatasetError(
            f"{folder} has no images of {len(without)} of {len(ids)} classes, first {without[0]}: "
            "unpack it again"
        )
    return found


def _folders(folder: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {e.name for e in entries if e.is_dir() and not is_stray(e.name)}


def _images(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_file() and not is_stray(e.name)]
    return sorted(name for name in names if name.lower().endswith(_ENDINGS))
