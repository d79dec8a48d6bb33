"""Pixels held to the hashes that the driver read: a node may hold another copy of a dataset."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.dataset import Dataset, Pixels, pixels_sha
from diffcert_ray.errors import DatasetError

REMEDY = "let all nodes read one copy (a shared folder, s3://), or copy the driver's there"


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
        found, image_id = self.pixels[position], int(self.ids[position])
        sha, expected = pixels_sha(found), self.shas.get(image_id)
        if expected is not None and sha != expected:
            raise DatasetError(
                f"image {image_id} has pixels {sha} on {socket.gethostname()}, but {expected} "
                f"where the run was started: {REMEDY}"
            )
        return found


def as_expected(data: Dataset, fingerprint: str, shas: Mapping[int, str]) -> Dataset:
    """The same dataset, if it is the one that the driver has.

    Args:
        data: as this process found it.
        fingerprint: of the driver's.
        shas: ``pixels_sha`` of the driver's images by id, where the fingerprint does not cover
            pixels; each is compared when it is read.

    Returns:
        A dataset whose pixels are held to ``shas``.

    Raises:
        DatasetError: the fingerprint is another one.
    """
    if data.fingerprint != fingerprint:
        raise DatasetError(
            f"the dataset {data.name} {data.split} on {socket.gethostname()} has fingerprint "
            f"{data.fingerprint[:12]}, the one where the run was started {fingerprint[:12]}: "
            f"{REMEDY}"
        )
    return dataclasses.replace(data, pixels=ExpectedPixels(data.pixels, data.ids, shas))
