"""Images checked: read once before any work, and held to what was read then wherever they are used.

A corrupt image is so known by its id, pixels on another scale stop everything, and another copy of
the dataset on a node is noticed.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.dataset import Dataset, read_image
from diffcert_ray.datasets.pixel_grid import off_grid
from diffcert_ray.datasets.pixel_scale import DARKEST, Fault, ScaleError, as_pixels, said_of
from diffcert_ray.datasets.pixels import Pixels, pixels_sha
from diffcert_ray.errors import CorruptImageError, DatasetError, PixelsError

_REMEDY = "let all nodes read one copy (a shared folder, s3://), or copy the driver's there"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What one pass over the images gave.

    Attributes:
        shas: hash of the pixels by image id, see ``Dataset.image_sha``.
        corrupt: what is wrong by image id, ascending.
        off_grid: distance from the grid by image id, l2, pixel units, where it is not 0.
    """

    shas: dict[int, str]
    corrupt: dict[int, str]
    off_grid: dict[int, float]


def check_images(data: Dataset, image_ids: Iterable[int]) -> Checked:
    """Read images, in the order of their ids.

    Returns:
        Hashes, so that nobody needs to read the images for them again (none for a dataset in
        memory, whose fingerprint covers its pixels), and corrupt images.

    Raises:
        PixelsError: images that are not in [0, 1], or all so dark that their scale is in doubt.
        OSError: a file cannot be read; that says nothing about an image.
    """
    checked, wrong, brightest = Checked({}, {}, {}), dict[int, Fault](), 0.0
    ids = sorted(int(i) for i in image_ids)
    position_of = {image_id: position for position, image_id in enumerate(data.ids.tolist())}
    in_memory, shape = data.in_memory, data.image_shape
    for image_id in ids:
        try:
            pixels = read_image(data, position_of[image_id])
            if pixels.shape != shape:
                raise CorruptImageError(
                    f"image {image_id} is {pixels.shape} (channels, height, width), the first "
                    f"readable one {shape}: store all at the size that the network takes"
                )
        except CorruptImageError as error:
            checked.corrupt[image_id] = str(error)
        except ScaleError as error:
            wrong[image_id] = error.fault
        else:
            brightest = max(brightest, float(pixels.max(initial=0)))
            if distance := off_grid(pixels):
                checked.off_grid[image_id] = distance
            if not in_memory:
                checked.shas[image_id] = pixels_sha(pixels)
    if wrong:
        raise PixelsError(f"{data.name} {data.split}: {said_of(wrong, len(ids), 'image')}")
    if 0 < brightest <= DARKEST:
        raise PixelsError(
            f"{data.name} {data.split}: the brightest pixel of all {len(ids)} images is "
            f"{brightest:.3g}, where 1 is white: probably levels of 0 and 1 that were read as "
            "0..255, or images that were divided by 255 twice; store 0 and 1 as floats, divide "
            "once, or choose images among which one is brighter if they are so dark"
        )
    return checked


@dataclasses.dataclass(frozen=True)
class ExpectedPixels:
    """Pixels by position, each looked at before it is given out.

    Args:
        pixels: as this process reads them.
        ids: image id of each position, int64 [N].
        shas: what ``pixels_sha`` of an image must be, by image id.
    """

    pixels: Pixels
    ids: NDArray[np.int64]
    shas: Mapping[int, str]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return self.pixels.shape

    def __getitem__(self, position: int, /) -> NDArray[np.float32]:
        pixels, image_id = as_pixels(self.pixels[position]), int(self.ids[position])
        sha, expected = pixels_sha(pixels), self.shas.get(image_id)
        if expected is not None and sha != expected:
            raise DatasetError(
                f"image {image_id} has pixels {sha} on {socket.gethostname()}, but {expected} "
                f"where the run was started: {_REMEDY}"
            )
        return pixels


def as_expected(data: Dataset, fingerprint: str, shas: Mapping[int, str]) -> Dataset:
    """The same dataset with its pixels held to the driver's, if it is the one that the driver has.

    Args:
        data: as this process reads it.
        fingerprint: of the driver's.
        shas: ``pixels_sha`` of the driver's images by id, where the fingerprint does not cover
            pixels; each is compared when it is read.

    Raises:
        DatasetError: the fingerprint is another one.
    """
    if data.fingerprint != fingerprint:
        raise DatasetError(
            f"the dataset {data.name} {data.split} on {socket.gethostname()} has fingerprint "
            f"{data.fingerprint[:12]}, the one where the run was started {fingerprint[:12]}: "
            f"{_REMEDY}"
        )
    return dataclasses.replace(data, pixels=ExpectedPixels(data.pixels, data.ids, shas))
