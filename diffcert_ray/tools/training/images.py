"""What is learned from: all images of a dataset on one device, drawn and varied there.

Shape letters: N images, B samples, C H W image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcert_ray.config.selectors import SELECTORS
from diffcert_ray.config.training_tables import HeldOutImages
from diffcert_ray.config.training_tables import TrainingImages as ImagesAsked
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.checked import check_images
from diffcert_ray.datasets.dataset import read_image
from diffcert_ray.datasets.pixels import from_bytes
from diffcert_ray.errors import CorruptImageError, DatasetError

_log = logging.getLogger(__name__)
_NAMES_SHOWN = 5


class TrainingImages:
    """All images of a dataset and their classes, on the device that trains.

    Args:
        data: the dataset; images that can be decoded only.
        device: "cpu" or "cuda".
        flip: mirror half of what is drawn.
        shift: shift what is drawn by up to so many pixels each way.
        all_classes: refuse a class without images.

    Raises:
        DatasetError: no images, a class without images, images that are not square, a shift that is
            not less than an image.
    """

    def __init__(
        self,
        data: Dataset,
        device: str = "cpu",
        *,
        flip: bool = False,
        shift: int = 0,
        all_classes: bool = True,
    ) -> None:
        _check(data, shift, all_classes=all_classes)
        values, labels = _packed(data), np.array(data.labels)
        self.sha256 = hashlib.sha256(values.tobytes() + labels.tobytes()).hexdigest()
        self.image_shape, self.num_classes = data.image_shape, data.num_classes
        self._values = torch.from_numpy(values).to(device)
        self._labels = torch.from_numpy(labels).to(device)
        self._device, self._flip, self._shift = device, flip, shift

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in their order and as they are: float32 [B, C, H, W] and int64 [B]."""
        for start in range(0, len(self), size):
            x = self._values[start : start + size]
            yield _floats(x), self._labels[start : start + size]

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """So many images, drawn with replacement from the device's generator, and varied.

        Returns:
            Images, float32 [B, C, H, W] in [0, 1], and their classes, int64 [B].
        """
        rows = torch.randint(len(self), (batch,), device=self._device)
        x = _floats(self._values[rows])
        if self._flip:
            mirrored = torch.rand(batch, device=self._device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self._shift:
            x = _shifted(x, self._shift)
        return x, self._labels[rows]


def held_out_images(
    asked: HeldOutImages | None, images: TrainingImages, device: str
) -> TrainingImages | None:
    """The images that are not learned from; DatasetError if they are of other shape or classes."""
    if asked is None:
        return None
    data = load_images(asked, key="validation")
    found, wanted = (data.image_shape, data.num_classes), (images.image_shape, images.num_classes)
    if found != wanted:
        raise DatasetError(
            f"[validation] has images {found[0]} of {found[1]} classes, [dataset] {wanted[0]} of "
            f"{wanted[1]}: give images of one size and the same classes (label_map, num_classes)"
        )
    return TrainingImages(data, device, all_classes=False)


def load_images(asked: ImagesAsked, given: Dataset | None = None, key: str = "dataset") -> Dataset:
    """The images that a training learns from, each read once and found whole.

    Args:
        asked: the table that names them.
        given: an object in place of what it names.
        key: of the table, for messages.

    Raises:
        DatasetError: an image cannot be decoded and is not to be left out, or a file is wrong.
        PixelsError: pixels that are not in [0, 1].
    """
    chosen: dict[str, Any] = asked.model_dump(exclude_none=True)
    skip = chosen.pop("on_corrupt") == "skip" and given is None
    data = load_dataset(chosen) if given is None else given
    for note in data.notes:
        _log.warning("%s %s: %s", data.name, data.split, note)
    corrupt = check_images(data, data.ids.tolist()).corrupt
    if not corrupt:
        return data
    if not skip:
        first = min(corrupt)
        raise CorruptImageError(
            f"{len(corrupt)} images of {data.name} {data.split} cannot be used, the first is image "
            f'{first}: {corrupt[first]}; or leave them out by {key}.on_corrupt = "skip"'
        )
    _log.warning("left_out images=%d of=%d reason=corrupt", len(corrupt), len(data))
    whole = [i for i in data.ids.tolist() if i not in corrupt]
    for selector in (*SELECTORS, "seed"):
        chosen.pop(selector, None)
    return load_dataset(chosen | {"ids": whole})


def _check(data: Dataset, shift: int, *, all_classes: bool) -> None:
    named = f"dataset {data.name} {data.split}"
    if len(data) == 0:
        raise DatasetError(f"{named} has no images to learn from: choose some")
    _, height, width = data.image_shape
    if height != width:
        raise DatasetError(
            f"{named} has images of {height} x {width} pixels (height x width), and the networks "
            "take square ones: crop or pad them to squares"
        )
    if shift >= width:
        raise DatasetError(
            f"training.shift is {shift}, but images are {width} pixels wide: shift by less"
        )
    counts = np.bincount(data.labels, minlength=data.num_classes)
    empty = [f"{k} ({data.class_names[k]})" for k in np.flatnonzero(counts == 0)]
    if empty and all_classes:
        more = ", ..." if len(empty) > _NAMES_SHOWN else ""
        raise DatasetError(
            f"{named}: {len(empty)} of {data.num_classes} classes have no image among the "
            f"{len(data)} chosen: {', '.join(empty[:_NAMES_SHOWN])}{more}; choose images of every "
            "class (dataset.first takes the first ones only, dataset.sample draws), or correct "
            "dataset.num_classes and dataset.label_map"
        )


def _packed(data: Dataset) -> NDArray[np.uint8] | NDArray[np.float32]:
    """All images, as uint8 where that says the same in a quarter of the memory, else as float32."""
    packed = np.empty((len(data), *data.image_shape), np.uint8)
    for position in range(len(data)):
        image = read_image(data, position)
        packed[position] = np.rint(image * 255)
        if not np.array_equal(from_bytes(packed[position]), image):
            return np.stack([read_image(data, i) for i in range(len(data))])
    return packed


def _floats(values: Tensor) -> Tensor:
    """Pixels in [0, 1] as float32."""
    return values.float() / 255 if values.dtype == torch.uint8 else values


def _shifted(x: Tensor, most: int) -> Tensor:
    """Each image shifted on its own; pixels at the edge are repeated."""
    batch, _, height, width = x.shape
    by = torch.randint(-most, most + 1, (2, batch, 1), device=x.device)
    rows = (torch.arange(height, device=x.device) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + by[1]).clamp(0, width - 1)
    samples = torch.arange(batch, device=x.device)[:, None, None]
    # Indices of all axes but the channels': those come last, and go back to their place.
    return x[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
