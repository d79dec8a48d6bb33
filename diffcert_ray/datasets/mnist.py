"""MNIST and the datasets in its files: Fashion-MNIST, KMNIST and EMNIST. Nothing is downloaded.

Source: LeCun et al. 1998 (MNIST); Xiao et al. 2017, arXiv:1708.07747 (Fashion-MNIST); Clanuwat et
al. 2018, arXiv:1812.01718 (KMNIST); Cohen et al. 2017, arXiv:1702.05373 (EMNIST, whose images are
stored with rows and columns exchanged, and whose letters count from 1).
"""

from __future__ import annotations

import string
from typing import Final

import numpy as np

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.idx_files import read_idx
from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError, nearest

_DIGITS: Final = tuple(string.digits)
_LOWER_OF_47: Final = tuple("abdefghnqrt")  # the others are merged with their capitals
_NAMES: Final = {
    "mnist": _DIGITS,
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
EMNIST: Final = {
    "balanced": (*_DIGITS, *string.ascii_uppercase, *_LOWER_OF_47),
    "bymerge": (*_DIGITS, *string.ascii_uppercase, *_LOWER_OF_47),
    "byclass": (*_DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
    "letters": tuple(string.ascii_uppercase),
    "digits": _DIGITS,
    "mnist": _DIGITS,
}
_FOLDERS: Final = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
}
"""The folders that torchvision makes, by dataset."""


def read_mnist(request: Request) -> Split:
    """One of these datasets, split "test" or "train"; image_id is the row in its file.

    The path is the folder of the files (packed by gzip or not), or one that torchvision's folders
    are in. EMNIST's variant is one of its six parts; its images are turned upright, unless they are
    asked for as they are stored.

    Raises:
        DatasetError: no such files, damaged ones, or those of another dataset.
    """
    request.check_split("test", "train")
    files = request.files()
    emnist = request.name == "emnist"
    variant = _variant(request) if emnist else ""
    file = _found(request, files, variant, "images-idx3-ubyte")
    _check_is_not_another(request, file)
    images = read_idx(files, file, 3)
    stored = read_idx(files, _found(request, files, variant, "labels-idx1-ubyte"), 1)
    names = EMNIST[variant] if emnist else _NAMES[request.name]
    labels = stored.astype(np.int64) - (1 if variant == "letters" else 0)
    if len(labels) != len(images):
        raise DatasetError(
            f"{files.address} has {len(images)} images of {request.name} {request.split} and "
            f"{len(labels)} labels: they are of two datasets; fetch both again"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise DatasetError(
            f"{files.address} has labels {stored.min()} to {stored.max()}, which are not those of "
            f"the {len(names)} classes of {request.name} {variant}".rstrip()
            + ": its files are of another dataset, or damaged"
        )
    notes: tuple[str, ...] = ()
    if emnist and request.upright is not False:
        images = images.swapaxes(1, 2)
        notes = (
            "images are turned upright; their files hold rows and columns exchanged, and "
            "torchvision gives them so: set dataset.upright = false for a network that was "
            "trained on those",
        )
    return split_of_bytes(request, images[:, None], labels, names, notes)


def _variant(request: Request) -> str:
    if request.variant not in EMNIST:
        what = "is needed" if request.variant is None else f"{request.variant!r} is not known"
        raise DatasetError(
            f"dataset.variant {what}: the part of EMNIST{nearest(request.variant or '', EMNIST)}"
        )
    return request.variant


def _found(request: Request, files: DataFiles, variant: str, end: str) -> str:
    """The name of a file, in any of the places and spellings that it is known by."""
    part = {"test": "test", "train": "train"} if variant else {"test": "t10k", "train": "train"}
    start = f"emnist-{variant}-{part[request.split]}" if variant else part[request.split]
    known = f"{start}-{end}"
    folder = _FOLDERS[request.name]
    dotted = known.replace("-idx", ".idx")  # as some copies are named
    for place in ("", "raw/", f"{folder}/raw/", f"{folder}/", "gzip/", "raw/gzip/"):
        for name in (known, dotted):
            for ending in ("", ".gz"):
                if files.exists(f"{place}{name}{ending}"):
                    return f"{place}{name}{ending}"
    raise DatasetError(
        f"dataset.path {files.address!r} has neither {known} nor {known}.gz, nor a folder "
        f"{folder}/raw with one: give the folder of the files of {request.name}"
        + (f" ({variant})" if variant else "")
        + "; they are not downloaded"
    )


def _check_is_not_another(request: Request, file: str) -> None:
    """MNIST, Fashion-MNIST and KMNIST name their files alike: folders may tell which they are."""
    parts = f"{request.path}/{file}".replace("\\", "/").split("/")[:-1]
    told = [part.lower().replace("-", "").replace("_", "") for part in parts if part != "raw"]
    known = {name.replace("-", "") for name in _FOLDERS}
    if told and told[-1] in known - {request.name.replace("-", "")}:
        raise DatasetError(
            f"dataset.path {request.path!r} is the folder of {parts[len(told) - 1]}, and "
            f"dataset.name is {request.name!r}: their files have the same names; correct one of "
            "them"
        )
