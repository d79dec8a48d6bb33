"""MedMNIST v2, the 2D sets with one class an image: NAME.npz, or NAME_64.npz to NAME_224.npz.

Source: Yang et al. 2023, "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D
biomedical image classification"; the names of classes are those of its distribution.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.pixel_scale import check_published
from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError, nearest

_ORGANS: Final = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
_SIZES: Final = ("", "_64", "_128", "_224")
_NO_CLASS: Final = {
    "chestmnist": "its images have any number of 14 findings each, and not one class",
    **dict.fromkeys(
        (
            "organmnist3d",
            "nodulemnist3d",
            "adrenalmnist3d",
            "fracturemnist3d",
            "vesselmnist3d",
            "synapsemnist3d",
        ),
        "its images are volumes",
    ),
}


def read_medmnist(request: Request) -> Split:
    """A set of MedMNIST, split "test", "val" or "train"; image_id is the row; in memory as bytes.

    The path is its .npz file, or the folder of such files, where the variant says which: the set,
    with its size where that is not 28, as in "pathmnist_64".

    Raises:
        DatasetError: no such file, a damaged one, or a set without one class an image.
    """
    request.check_split("test", "val", "train")
    files, name, variant = _file(request)
    where = f"{files.address}/{name}" if name else files.address
    images, labels = _arrays(files, name, request.split, where)
    check_published(images, where)
    classes = CLASSES[variant]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or len(images) == 0:
        raise DatasetError(
            f"{where} has images of shape {images.shape}, not [N, H, W] or [N, H, W, 3]: it is no "
            "2D set"
        )
    if labels.shape not in ((len(images), 1), (len(images),)) or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{where} has {labels.dtype} labels of shape {labels.shape} for {len(images)} images: "
            "one whole number for each is meant"
        )
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= len(classes):
        raise DatasetError(
            f"{where} has labels {numbers.min()} to {numbers.max()}, but {variant} has "
            f"{len(classes)} classes: it is of another set, or damaged"
        )
    return split_of_bytes(request, images.transpose(0, 3, 1, 2), numbers, classes)


def _file(request: Request) -> tuple[DataFiles, str, str]:
    """Where the file is: the files, its name in them, and the set."""
    files = request.files()
    last = files.address.rstrip("/").rsplit("/", 1)[-1]
    if last.endswith(".npz"):
        told = last.removesuffix(".npz").lower()
        known = _set_of(told) is not None
        variant = _checked(request.variant or (told if known else None), last)
        if known and _set_of(told) != variant:
            raise DatasetError(
                f"dataset.path {request.path!r} is {told}, and dataset.variant "
                f"{request.variant!r}: correct one of them"
            )
        return files, "", variant
    variant = _checked(request.variant, last)
    asked = str(request.variant).lower()
    if not files.exists(f"{asked}.npz"):
        raise DatasetError(
            f"dataset.path {files.address!r} has no file '{asked}.npz': put it there, or correct "
            "dataset.variant; it is not downloaded"
        )
    return files, f"{asked}.npz", variant


def _checked(variant: str | None, last: str) -> str:
    """The set that a variant names; DatasetError says which there are."""
    if variant is None:
        raise DatasetError(
            f"dataset.variant is needed: which set of MedMNIST {last!r} holds{nearest('', CLASSES)}"
        )
    found = _set_of(variant.lower())
    if found in _NO_CLASS:
        raise DatasetError(f"{variant} of MedMNIST cannot be certified: {_NO_CLASS[found]}")
    if found is None:
        raise DatasetError(f"dataset.variant {variant!r} is not known{nearest(variant, CLASSES)}")
    return found


def _set_of(variant: str) -> str | None:
    for size in _SIZES:
        name = variant.removesuffix(size) if size else variant
        if name in CLASSES or name in _NO_CLASS:
            return name
    return None


def _arrays(
    files: DataFiles, name: str, split: str, where: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with np.load(io.BytesIO(files.read(name)), allow_pickle=False) as arrays:
            return arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except (
        zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, TypeError, zlib.error
    ) as error:  # fmt: skip
        raise DatasetError(
            f"{where} is damaged, or no file of MedMNIST ({error}): fetch it again"
        ) from None
