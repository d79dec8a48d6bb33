"""What a run keeps as it goes: rows of finished units, and the certificate of a finished image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffcert_ray.datasets.dataset import pixels_sha
from diffcert_ray.errors import DatasetError
from diffcert_ray.plain.stages import ImageLosses
from diffcert_ray.plain.units import LossResult, UnitLosses
from diffcert_ray.run.loss_rows import image_certificate, loss_row, plain_row
from diffcert_ray.run.vote_rows import certificate_row, unit_row
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.writer import Writer
from diffcert_ray.votes.image import ImageVotes
from diffcert_ray.votes.stages import SettledUnit


@dataclass(frozen=True)
class VoteRows:
    """Rows of a run of votes.

    Args:
        method: name of the base classifier.
        votes_id: hash of what a vote depends on.
        labels: image_id -> true class.
        image_sha: image_id -> prefix of its pixels' sha256.
    """

    method: str
    votes_id: str
    labels: Mapping[int, int]
    image_sha: Callable[[int], str]

    def record(self, writer: Writer, result: Any, settled: Sequence[SettledUnit]) -> None:
        """Give the writer the units that a result completed.

        Args:
            writer: of the run's folder.
            result: what the work item returned; of votes, all is in ``settled``.
            settled: units that are complete now.
        """
        writer.add_units(unit_row(s, self.image_sha(s.units.unit.image_id)) for s in settled)

    def certificate(self, image: ImageVotes) -> CertificateRow:
        """The certificate of an image whose votes are all in."""
        verdict = image.verdict()
        assert verdict is not None  # the stages hand over finished images only
        label = self.labels[image.image_id]
        return certificate_row(image, verdict, label, method=self.method, votes_id=self.votes_id)


@dataclass(frozen=True)
class LossRows:
    """Rows of a run of plain certificates, without votes.

    Args:
        votes_id: hash of what a loss depends on.
        labels: image_id -> true class.
        image_sha: image_id -> prefix of its pixels' sha256.
        pixels: image_id -> float32 [C, H, W] in [0, 1].
    """

    votes_id: str
    labels: Mapping[int, int]
    image_sha: Callable[[int], str]
    pixels: Callable[[int], np.ndarray]

    def record(self, writer: Writer, result: LossResult, units: Sequence[UnitLosses]) -> None:
        """Give the writer the units that a result completed.

        Args:
            writer: of the run's folder.
            result: what the work item returned.
            units: units that are complete now.
        """
        writer.add_losses(loss_row(u, result, self.image_sha(u.unit.image_id)) for u in units)

    def certificate(self, image: ImageLosses) -> CertificateRow:
        """The certificate of an image whose draws are all in.

        Raises:
            DatasetError: its pixels are not those that the draws were made for.
        """
        pixels, image_id = self.pixels(image.image_id), image.image_id
        if pixels_sha(pixels) != self.image_sha(image_id):  # its radius is limited by its pixels
            raise DatasetError(
                f"image {image_id} has changed since the run was started: restore it, or give "
                "another run folder (--run)"
            )
        found = image_certificate(image, pixels)
        return plain_row(image, found, self.labels[image.image_id], votes_id=self.votes_id)
