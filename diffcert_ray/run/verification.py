"""Compare a run with what its counts give, and a sample of its units with what its images give."""

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.plain.units import LossItem, LossUnit
from diffcert_ray.run.stored_losses import StoredLosses
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.votes.units import Item, Part, Unit

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import Worker

LOSS_TOLERANCE = 1e-5  # of a mean of losses in [0, 1] that a network returns in float32

COMPARED = (
    *("predicted", "radius", "p_low", "n_a", "n", "label", "correct", "abstained"),
    *("alpha", "n0", "bound", "method", "votes_id", "slack", "taken_off"),
)
UNCERTIFIED = {"predicted": ABSTAIN, "abstained": True, "correct": False, "radius": 0.0}
"""What the row of an image that could not be read has to say."""


@dataclass
class Verification:
    """What was compared, and every difference found."""

    certificates: int = 0  # recomputed and compared
    units: int = 0  # evaluated again
    votes: int = 0  # votes in them
    units_stored: int = 0  # all that there are
    missing: int = 0  # images (times sigmas) that were asked for and have no certificate
    seed: int = 0  # of the choice of units
    same_numerics: bool = True  # whether this machine's numerics kind is the stored units'
    other_method: int = 0  # version of the run's method, where this program casts other votes
    differences: list[str] = field(default_factory=list)  # one sentence for each

    @property
    def missed_share(self) -> float:
        """A share of changed units, above which one would have been found with 95 % probability."""
        if self.units >= self.units_stored:
            return 0.0
        return 1.0 - 0.05 ** (1.0 / self.units) if self.units else 1.0

    def chosen(self, count: int, sample: int) -> list[int]:
        """Positions of the units to evaluate again, ascending: ``sample`` of ``count``, or all."""
        self.units_stored = count
        return sorted(random.Random(self.seed).sample(range(count), min(sample, count)))


def compare_certificates(
    stored: pd.DataFrame, recomputed: list[CertificateRow], verification: Verification
) -> None:
    """Note where stored certificates differ from those that the counts give."""
    keys = zip(stored["sigma"].tolist(), stored["image_id"].tolist(), strict=True)
    rows = dict(zip(keys, stored[list(COMPARED)].to_dict("records"), strict=True))
    for row in recomputed:
        verification.certificates += 1
        kept = rows.pop((row.sigma, row.image_id), None)
        where = f"image {row.image_id} at sigma {row.sigma:g}"
        if kept is None:
            verification.differences.append(
                f"{where} has all its votes, but no certificate is stored"
            )
            continue
        for name in COMPARED:
            exact = verification.other_method != 1
            if not _same(kept[name], getattr(row, name), exact=exact):
                verification.differences.append(
                    f"{where}: stored {name} {kept[name]}, its counts give {getattr(row, name)}"
                )
    for (sigma, image_id), kept in rows.items():
        if any(kept[name] != value for name, value in UNCERTIFIED.items()):
            verification.differences.append(
                f"image {image_id} at sigma {sigma:g} has a certificate, but not the votes for it"
            )


def _same(stored: Any, recomputed: Any, *, exact: bool) -> bool:
    """Whether two values are equal; p_low is no number in certificates without votes.

    Method version 1 did not round down: its numbers agree to nine digits only.
    """
    if not exact and isinstance(stored, float) and math.isclose(stored, recomputed, abs_tol=1e-9):
        return True
    return bool(stored == recomputed or (stored != stored and recomputed != recomputed))


def replay(
    units: pd.DataFrame,
    worker: "Worker",
    verification: Verification,
    *,
    sample: int,
) -> None:
    """Evaluate a random sample of the stored units again and compare the counts.

    Units of another numerics kind than this worker's may differ in rare votes; they are compared
    too, and what differs is noted with that remark.
    """
    for row in units.iloc[verification.chosen(len(units), sample)].to_dict("records"):
        unit = Unit(row["sigma"], row["image_id"], row["stream"], row["start"], row["stop"])
        part = Part(unit, unit.start, unit.stop, row["target"])
        tally = worker.cast_votes(Item(0, unit.sigma, (part,))).tallies[0]
        stored = dict(zip(row["classes"].tolist(), row["counts"].tolist(), strict=True))
        verification.units += 1
        verification.votes += unit.votes
        same = row["numerics"] == worker.numerics
        verification.same_numerics &= same
        if dict(tally.counts) != stored:
            remark = "" if same else " (another numerics kind: rare votes may differ)"
            verification.differences.append(
                f"image {unit.image_id} at sigma {unit.sigma:g}, {unit.stream} votes "
                f"{unit.start}:{unit.stop}: stored {stored}, evaluated again {tally.counts}{remark}"
            )


def replay_losses(
    losses: StoredLosses, worker: "Worker", verification: Verification, *, sample: int
) -> None:
    """Evaluate ``sample`` units of losses again and compare their sums; draws count as votes."""
    keys = losses.units.tolist()
    for row in verification.chosen(len(keys), sample):
        unit = LossUnit(*keys[row])
        again = worker.draw_losses(LossItem(0, (unit,))).tallies[0]
        verification.units += 1
        verification.votes += unit.draws
        gap = float(np.abs(again.sums - losses.sums[row]).max()) / unit.draws
        # Losses lie in [0, 1]; another device rounds the network's last bits another way.
        if gap > LOSS_TOLERANCE:
            verification.differences.append(
                f"image {unit.image_id}, draws {unit.start}:{unit.stop}: a mean loss differs by "
                f"{gap:.2g} when evaluated again (limit {LOSS_TOLERANCE:g})"
            )
