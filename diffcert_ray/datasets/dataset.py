"""A dataset as the rest of the program sees it: ids, labels, and pixels by id.

Shape letters: N images, C H W image.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.pixels import BytePixels, Pixels, UndecodableError, pixels_sha
from diffcert_ray.errors import CorruptImageError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one split, or a chosen part of it.

    Attributes:
        name: what `load_dataset` knows it by.
        split: which part of the published data it was chosen from.
        ids: stable image ids, int64 [N]; their order is the order of positions.
        labels: class of each, int64 [N], 0 <= label < num_classes.
        pixels: [N, C, H, W], float32 in [0, 1] once indexed.
        class_names: one name per class.
        fingerprint: sha256 in hex over what identifies the whole split and its labels, the same
            for every part of it: the pixels of a split held in memory; names, sizes and footers of
            the files of one that is read by parts.
    """

    name: str
    split: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    pixels: Pixels
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return (channels, height, width)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def in_memory(self) -> bool:
        """Whether every pixel has been read: no image of it can turn out to be corrupt."""
        return isinstance(self.pixels, np.ndarray | BytePixels)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, image_id: int) -> int:
        """Where an image stands in `ids`.

        Args:
            image_id: its stable id.

        Returns:
            The position, 0 <= position < N.

        Raises:
            ValueError: no such image in this part of the dataset.
        """
        positions = np.flatnonzero(self.ids == image_id)
        if positions.size == 0:
            raise ValueError(
                f"image_id {image_id} is not among the {len(self)} chosen images of {self.name} "
                f"{self.split}: take one from `ids`"
            )
        return int(positions[0])

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image's pixels.

        Args:
            image_id: its stable id.

        Returns:
            float32 [C, H, W] in [0, 1].

        Raises:
            ValueError: no such image in this part of the dataset.
            CorruptImageError: the stored image cannot be decoded.
        """
        position = self.position(image_id)
        try:
            pixels: NDArray[np.float32] = self.pixels[position]
        except UndecodableError as error:
            raise CorruptImageError(
                f"image {image_id} of {self.name} {self.split} is corrupt ({error}): repair it, "
                'choose others, or set dataset.on_corrupt = "skip" to leave it uncertified'
            ) from None
        return pixels

    def image_sha(self, image_id: int) -> str:
        """The first 16 hex digits of the sha256 of one image's pixels (little-endian float32).

        Args:
            image_id: its stable id.

        Returns:
            16 hex digits, kept with results so that another image under this id is noticed.

        Raises:
            ValueError: no such image in this part of the dataset, or it is corrupt.
        """
        return pixels_sha(self.image(image_id))


def labels_of(data: Dataset) -> dict[int, int]:
    """The label of each image_id of a dataset."""
    return dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))


def about(data: Dataset) -> dict[str, Any]:
    """What run.toml says about a dataset."""
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "num_classes": data.num_classes,
        "image_shape": list(data.image_shape),
        "images": len(data),
    }
