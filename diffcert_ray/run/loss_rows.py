"""From stored losses to plain certificates, and to the estimates that are not certificates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffcert_ray.certificates.lipschitz import PlainCertificate, plain_certificate
from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.conventions import ABSTAIN, NO_SMOOTHING
from diffcert_ray.datasets.pixels import pixels_sha
from diffcert_ray.errors import DatasetError
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.plain.stages import ImageLosses
from diffcert_ray.plain.units import LossResult, UnitLosses
from diffcert_ray.run.stored_losses import StoredLosses
from diffcert_ray.storage.schemas import CertificateRow, LossRow
from diffcert_ray.storage.writer import Writer

Bound = Literal["lipschitz", "local"]


def image_certificate(
    image: ImageLosses, pixels: np.ndarray, bound: Bound | None = None
) -> PlainCertificate:
    """The certificate of one image from its complete losses, by the plan's or another bound.

    Both bounds rest on the same intervals, so that both certificates hold together with
    probability at least 1 - alpha. ``pixels``, of any shape, are projected on [0, 1] here.

    Raises:
        ValueError: a unit is missing.
    """
    plan = image.plan
    return plain_certificate(
        image.unit_sums(),
        sigma_t=plan.sigma_t,
        weights=plan.weights,
        dimensions=plan.dimensions,
        alpha=plan.alpha,
        bound=bound or plan.bound,
        ceiling=largest_loss(pixels),
    )


def largest_loss(pixels: np.ndarray) -> float:
    """Largest possible loss at an image: the mean of max(x', 1 - x')^2, x' the projected pixels.

    Args:
        pixels: pixel units, any shape.

    Returns:
        A number in [1/4, 1].

    Source: ours: the estimate h lies in the box.
    """
    inside = np.clip(np.asarray(pixels, dtype=np.float64), 0.0, 1.0)
    return float(np.mean(np.maximum(inside, 1.0 - inside) ** 2))


def plain_row(
    image: ImageLosses, certificate: PlainCertificate, label: int, *, votes_id: str
) -> CertificateRow:
    """One row of the certificates table: no smoothing, no votes, n counts the draws."""
    return CertificateRow(
        sigma=NO_SMOOTHING,
        image_id=image.image_id,
        label=label,
        predicted=ABSTAIN if certificate.abstained else certificate.predicted,
        correct=not certificate.abstained and certificate.predicted == label,
        abstained=certificate.abstained,
        radius=certificate.radius,
        p_low=float("nan"),
        slack=0.0,
        taken_off=0.0,
        n_a=0,
        n=certificate.draws,
        n0=0,
        n0_used=0,
        alpha=certificate.alpha,
        bound=certificate.bound,
        nfe=image.nfe,
        seconds=image.seconds,
        method="dc",
        votes_id=votes_id,
    )


def recompute_plain(
    plan: PlainPlan, stored: StoredLosses, pixels: Callable[[int], np.ndarray], bound: Bound
) -> Iterator[tuple[ImageLosses, PlainCertificate]]:
    """The certificate by one bound of every image of a plan whose losses are complete.

    Yields:
        The losses and the certificate, whose ``estimated_radius`` is an estimate, never certified.
    """
    for image_id in plan.image_ids.tolist():
        image = ImageLosses(plan, image_id)
        for losses in stored.of(image_id):
            image.add(losses)
        if image.finished:
            yield image, image_certificate(image, pixels(image_id), bound)


def estimates(
    plan: PlainPlan, stored: StoredLosses, pixels: Callable[[int], np.ndarray], bound: Bound
) -> str:
    """One line that sets the radii at the mean losses beside the certified ones."""
    certificates = [c for _, c in recompute_plain(plan, stored, pixels, bound)]
    if not certificates:
        return "no image has all of its draws yet"
    certified = float(np.median([c.radius for c in certificates]))
    estimated = float(np.median([c.estimated_radius for c in certificates]))
    return (
        f"median certified radius {round_radius_down(certified, 4)}; estimate, NOT certified: "
        f"{estimated:.4f} at the mean losses of {plan.draws} draws"
    )


def loss_row(losses: UnitLosses, result: LossResult, image_sha: str) -> LossRow:
    """A unit as it is stored."""
    return LossRow(
        image_id=losses.unit.image_id,
        image_sha=image_sha,
        start=losses.unit.start,
        stop=losses.unit.stop,
        sums=losses.sums,
        squares=losses.squares,
        seconds=losses.seconds,
        device=result.device,
        numerics=result.numerics,
        worker=result.worker,
    )


@dataclass(frozen=True)
class LossRows:
    """Rows of a run of plain certificates, without votes."""

    votes_id: str
    labels: Mapping[int, int]  # image_id -> true class
    image_sha: Callable[[int], str]  # image_id -> prefix of its pixels' sha256
    pixels: Callable[[int], np.ndarray]  # image_id -> float32 [C, H, W] in [0, 1]

    def record(self, writer: Writer, result: LossResult, units: Sequence[UnitLosses]) -> None:
        """Give the writer the units that a result completed."""
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
        certificate = image_certificate(image, pixels)
        return plain_row(image, certificate, self.labels[image.image_id], votes_id=self.votes_id)
