"""A dataset as the rest of the program sees it: ids, labels, and pixels by id.

Shape letters: N images, C H W image.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.pixel_scale import ScaleError, as_pixels, check_levels
from diffcert_ray.datasets.pixels import BytePixels, Pixels, UndecodableError, pixels_sha
from diffcert_ray.errors import CorruptImageError, DatasetError, PixelsError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one split, or a chosen part of it.

    Attributes:
        name: what `load_dataset` knows it by.
        split: which part of the published data it was chosen from.
        ids: stable image ids, int64 [N]; their order is the order of positions.
        labels: class of each, int64 [N], 0 <= label < num_classes.
        pixels: [N, C, H, W], floats in [0, 1], or uint8, which stand for x / 255; an array, or an
            object with this shape that gives an image by position.
        class_names: one name per class.
        fingerprint: sha256 in hex over what identifies the whole split and its labels, the same
            for every part of it: the pixels of a split held in memory; names, sizes and footers of
            the files of one that is read by parts.
        notes: sentences about how files were read that one may not expect: files that were not.
        mapping: the numbers of classes that files know by name only, in a line; else "".

    Raises:
        PixelsError: uint8 that are all 0 and 1, which may mean either scale.
        DatasetError: an array of another shape; ids, labels and pixels that are not as many; an id
            twice.
    """

    name: str
    split: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    pixels: Pixels
    class_names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    mapping: str = ""

    def __post_init__(self) -> None:
        given = self.pixels
        counts = [len(self.ids), len(self.labels)]
        if isinstance(given, np.ndarray):
            if given.ndim != 4:
                raise DatasetError(
                    f"dataset {self.name} {self.split} has pixels of shape {given.shape}, not "
                    "[N, C, H, W]: give grey images [N, H, W] as x[:, None]"
                )
            counts.append(len(given))
            if given.dtype == np.uint8:
                try:
                    check_levels(given)
                except ScaleError as error:
                    raise PixelsError(f"dataset {self.name} {self.split} has {error}") from None
                object.__setattr__(self, "pixels", BytePixels(given.view()))
        if len(set(counts)) > 1:
            raise DatasetError(
                f"dataset {self.name} {self.split} has {len(self.ids)} ids, {len(self.labels)} "
                f"labels and pixels {given.shape}: give each image its id and label"
            )
        if len(np.unique(self.ids)) < len(self.ids):
            values, times = np.unique(self.ids, return_counts=True)
            raise DatasetError(
                f"dataset {self.name} {self.split} has id {values[times > 1][0]} twice: ids name "
                "noise and results, so give each image its own"
            )

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
            PixelsError: its pixels are not in [0, 1].
        """
        try:
            return read_image(self, self.position(image_id))
        except ScaleError as error:
            raise PixelsError(f"image {image_id} of {self.name} {self.split} has {error}") from None

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


def read_image(data: Dataset, position: int) -> NDArray[np.float32]:
    """The image at a position, checked; CorruptImageError or ScaleError say what is wrong."""
    try:
        return as_pixels(data.pixels[position])
    except UndecodableError as error:
        raise CorruptImageError(
            f"image {data.ids[position]} of {data.name} {data.split} is corrupt ({error}): repair "
            'it, choose others, or set dataset.on_corrupt = "skip" to leave it uncertified'
        ) from None


def all_images(data: Dataset) -> NDArray[np.float32]:
    """Every image, checked, float32 [N, C, H, W]."""
    return np.stack([data.image(image_id) for image_id in data.ids.tolist()])


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
