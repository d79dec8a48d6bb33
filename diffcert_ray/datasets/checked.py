"""Read every chosen image once before any work, so that a corrupt one is known by its id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from diffcert_ray.datasets.dataset import Dataset, pixels_sha
from diffcert_ray.errors import CorruptImageError


@dataclasses.dataclass(frozen=True)
class Checked:
    """What one pass over the images found.

    Attributes:
        shas: hash of the pixels by image id, see ``Dataset.image_sha``.
        corrupt: what is wrong by image id, ascending.
    """

    shas: dict[int, str]
    corrupt: dict[int, str]


def check_images(data: Dataset, image_ids: Iterable[int]) -> Checked:
    """Decode images that are not in memory yet, in the order of their ids.

    Args:
        data: the dataset.
        image_ids: those that will be worked on.

    Returns:
        Hashes, so that nobody needs to read the images for them again, and corrupt images; empty
        for a dataset in memory, whose files were checked when they were read.

    Raises:
        OSError: a file cannot be read; that says nothing about an image.
    """
    found = Checked({}, {})
    if data.in_memory:
        return found
    shape = data.image_shape
    for image_id in sorted(int(i) for i in image_ids):
        try:
            pixels = data.image(image_id)
            if pixels.shape != shape:
                raise CorruptImageError(
                    f"image {image_id} is {pixels.shape} (channels, height, width), the first "
                    f"readable one {shape}: store all at the size that the network takes"
                )
            found.shas[image_id] = pixels_sha(pixels)
        except CorruptImageError as error:
            found.corrupt[image_id] = str(error)
    return found
