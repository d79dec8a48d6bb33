"""What is learned from: all images of a dataset on one device, drawn and varied there.

Shape letters: N images, B samples, C H W image.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.config.training_tables import TrainingImages as ImagesAsked
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.checked import check_images
from diffcert_ray.errors import CorruptImageError, DatasetError

_NAMES_SHOWN = 5


class TrainingImages:
    """All images of a dataset and their classes, on the device that trains.

    Args:
        data: the dataset; images that can be decoded only.
        device: "cpu" or "cuda".
        flip: mirror half of what is drawn.
        shift: shift what is drawn by up to so many pixels each way.

    Raises:
        DatasetError: no images, a class without images, images that are not square, a shift that is
            not less than an image.
    """

    def __init__(
        self, data: Dataset, device: str = "cpu", *, flip: bool = False, shift: int = 0
    ) -> None:
        _check(data, shift)
        values, labels = _packed(data), np.array(data.labels)
        self.sha256 = hashlib.sha256(values.tobytes() + labels.tobytes()).hexdigest()
        self.image_shape, self.num_classes = data.image_shape, data.num_classes
        self._values = torch.from_numpy(values).to(device)
        self._labels = torch.from_numpy(labels).to(device)
        self._device, self._flip, self._shift = device, flip, shift

    def __len__(self) -> int:
        return len(self._labels)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """So many images, drawn with replacement from the device's generator, and varied.

        Returns:
            Images, float32 [B, C, H, W] in [0, 1], and their classes, int64 [B].
        """
        rows = torch.randint(len(self), (batch,), device=self._device)
        x = self._values[rows]
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if self._flip:
            mirrored = torch.rand(batch, device=self._device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        if self._shift:
            x = _shifted(x, self._shift)
        return x, self._labels[rows]


def load_images(config: ImagesAsked) -> Dataset:
    """The images that a training learns from, each read once and found whole.

    Raises:
        DatasetError: an image cannot be decoded and is not to be left out, or a file is wrong.
    """
    chosen: dict[str, Any] = config.model_dump(exclude_none=True)
    skip = chosen.pop("on_corrupt") == "skip"
    data = load_dataset(chosen)
    corrupt = check_images(data, data.ids.tolist()).corrupt
    if not corrupt:
        return data
    if not skip:
        first = min(corrupt)
        raise CorruptImageError(
            f"{len(corrupt)} images of {data.name} {data.split} cannot be used, the first is image "
            f'{first}: {corrupt[first]}; or leave them out by dataset.on_corrupt = "skip"'
        )
    whole = [i for i in data.ids.tolist() if i not in corrupt]
    for selector in ("first", "every", "sample", "seed"):
        chosen.pop(selector, None)
    return load_dataset(chosen | {"ids": whole})


def _check(data: Dataset, shift: int) -> None:
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
    if empty:
        more = ", ..." if len(empty) > _NAMES_SHOWN else ""
        raise DatasetError(
            f"{named}: {len(empty)} of {data.num_classes} classes have no image among the "
            f"{len(data)} chosen: {', '.join(empty[:_NAMES_SHOWN])}{more}; choose images of every "
            "class (dataset.first takes the first ones only, dataset.sample draws), or correct "
            "dataset.num_classes and dataset.label_map"
        )


def _packed(data: Dataset) -> np.ndarray:
    """All images as uint8 [N, C, H, W] where that says the same (a quarter of the memory), else as
    float32.
    """  # noqa: D205
    packed = np.empty((len(data), *data.image_shape), np.uint8)
    for position, image_id in enumerate(data.ids.tolist()):
        image = data.image(image_id)
        levels = np.rint(image * 255).astype(np.uint8)
        if not np.array_equal(levels.astype(np.float32) / np.float32(255), image):
            return np.stack([data.image(i) for i in data.ids.tolist()])
        packed[position] = levels
    return packed


def _shifted(x: Tensor, most: int) -> Tensor:
    """Each image shifted on its own; pixels at the edge are repeated."""
    batch, _, height, width = x.shape
    by = torch.randint(-most, most + 1, (2, batch, 1), device=x.device)
    rows = (torch.arange(height, device=x.device) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + by[1]).clamp(0, width - 1)
    samples = torch.arange(batch, device=x.device)[:, None, None]
    # Indices of all axes but the channels': those come last, and go back to their place.
    return x[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
