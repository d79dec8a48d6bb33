"""Compare a run with what its counts give, and a sample of its units with what its images give."""

import math
import random
from collections.abc import Callable
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

OnUnit = Callable[[int, int], None]
"""Told how many units were evaluated again, of how many."""
LOSS_TOLERANCE = 1e-5  # of a mean of losses in [0, 1] that a network returns in float32

COMPARED = (
    *("predicted", "radius", "p_low", "n_a", "n", "label", "correct", "abstained"),
    *("alpha", "n0", "n0_used", "bound", "method", "votes_id", "slack", "taken_off"),
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
    kinds_noted: bool = True  # whether the run notes its numerics kinds, so that they were checked
    differences: list[str] = field(default_factory=list)  # one sentence for each
    # (sigma, image_id) of certificates that differ already from what is stored beside them
    contradicted: set[tuple[float, int]] = field(default_factory=set)
    costs_too: bool = False  # compare NFE, which differ where kinds delivered a unit twice
    other_kinds: int = 0  # stored units of numerics kinds that this machine does not have

    @property
    def missed_share(self) -> float:
        """A share of changed units, above which one would have been found with 95 % probability.

        Changed means anything in a unit that evaluating it again gives: its counts, its number of
        evaluations, the pixels that it is of. Its range, target and sigma are compared with what
        the run asks in all units, not in a sample.
        """
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
    names = [*COMPARED, *(["nfe"] if verification.costs_too else [])]
    keys = zip(stored["sigma"].tolist(), stored["image_id"].tolist(), strict=True)
    rows = dict(zip(keys, stored[names].to_dict("records"), strict=True))
    for row in recomputed:
        verification.certificates += 1
        kept = rows.pop((row.sigma, row.image_id), None)
        if (row.sigma, row.image_id) in verification.contradicted:
            continue
        where = f"image {row.image_id} at sigma {row.sigma:g}"
        if kept is None:
            verification.differences.append(
                f"{where} has all its votes, but no certificate is stored"
            )
            continue
        exact = verification.other_method != 1
        for name in names:
            if not same_value(kept[name], getattr(row, name), exact=exact):
                verification.differences.append(
                    f"{where}: stored {name} {kept[name]}, its counts give {getattr(row, name)}"
                )
    for (sigma, image_id), kept in rows.items():
        if (sigma, image_id) not in verification.contradicted and any(
            kept[name] != value for name, value in UNCERTIFIED.items()
        ):
            verification.differences.append(
                f"image {image_id} at sigma {sigma:g} has a certificate, but not the votes for it"
            )


def same_value(stored: Any, recomputed: Any, *, exact: bool) -> bool:
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
    image_sha: Callable[[int], str | None] = lambda image_id: None,
    split_at: int | None = None,
    on_unit: OnUnit = lambda done, total: None,
) -> None:
    """Evaluate a random sample of the stored units again, and compare all that this gives.

    Units of another numerics kind than this worker's may differ in rare votes; they are compared
    too, and what differs is noted with that remark. ``image_sha`` gives the hash of an image's
    pixels here ("" where there is none, None: not compared); ``split_at`` the levels after which
    votes may have been handed from one item to another, which costs an evaluation; ``on_unit`` is
    told before each unit how many are done, of how many.
    """
    verification.other_kinds = int((units["numerics"] != worker.numerics).sum())
    rows = units.iloc[verification.chosen(len(units), sample)].to_dict("records")
    for done, row in enumerate(rows):
        on_unit(done, len(rows))
        unit = Unit(row["sigma"], row["image_id"], row["stream"], row["start"], row["stop"])
        verification.units += 1
        verification.votes += unit.votes
        same = row["numerics"] == worker.numerics
        verification.same_numerics &= same
        stored = dict(zip(row["classes"].tolist(), row["counts"].tolist(), strict=True))
        where = f"image {unit.image_id} at sigma {unit.sigma:g}, {unit.stream} votes "
        where += f"{unit.start}:{unit.stop}: stored"
        sha = image_sha(unit.image_id)
        if sha is not None and sha != row["image_sha"]:
            verification.differences.append(f"{where} pixels {row['image_sha']}, at hand {sha!r}")
            if not sha:
                continue
        counts, nfe = _cast_again(worker, unit, row["target"], row["nfe"], split_at)
        remark = "" if same else " (another numerics kind: rare votes may differ)"
        if counts != stored:
            verification.differences.append(f"{where} {stored}, evaluated again {counts}{remark}")
        elif nfe != row["nfe"]:
            verification.differences.append(
                f"{where} nfe {row['nfe']}, evaluated again {nfe}{remark}"
            )


def _cast_again(
    worker: "Worker", unit: Unit, target: int, stored_nfe: int, split_at: int | None
) -> tuple[dict[int, int], int]:
    """Counts and evaluations of a unit, in one go, or handed over where only that fits."""
    part = Part(unit, unit.start, unit.stop, target)
    whole = worker.cast_votes(Item(0, unit.sigma, (part,)))
    counts = dict(whole.tallies[0].counts)
    if whole.nfe == stored_nfe or split_at is None:
        return counts, whole.nfe
    first = worker.cast_votes(Item(0, unit.sigma, (part,), None, split_at))
    if first.open_votes is None:
        return counts, whole.nfe
    rest = worker.cast_votes(Item(1, unit.sigma, (), first.open_votes))
    split = first.nfe + rest.nfe
    return counts, split if split == stored_nfe else whole.nfe


def replay_losses(
    losses: StoredLosses,
    worker: "Worker",
    verification: Verification,
    *,
    sample: int,
    on_unit: OnUnit = lambda done, total: None,
) -> None:
    """Evaluate ``sample`` units of losses again and compare their sums; draws count as votes."""
    keys = losses.units.tolist()
    verification.other_kinds = int((losses.numerics != worker.numerics).sum())
    chosen = verification.chosen(len(keys), sample)
    for done, row in enumerate(chosen):
        on_unit(done, len(chosen))
        unit = LossUnit(*keys[row])
        again = worker.draw_losses(LossItem(0, (unit,))).tallies[0]
        verification.units += 1
        verification.votes += unit.draws
        same = bool(losses.numerics[row] == worker.numerics)
        verification.same_numerics &= same
        # One kind gives the same bits; another one rounds the network's last bits another way.
        limit = 0.0 if same else LOSS_TOLERANCE
        where = f"image {unit.image_id}, draws {unit.start}:{unit.stop}:"
        for name, new, old in (
            ("loss", again.sums, losses.sums[row]),
            ("squared loss", again.squares, losses.squares[row]),
        ):
            gap = float(np.abs(new - old).max()) / unit.draws
            if not gap <= limit:
                verification.differences.append(
                    f"{where} a mean {name} differs by {gap:.2g} when evaluated again (limit "
                    f"{limit:g})"
                )
        if again.nfe != losses.nfe[row]:
            verification.differences.append(
                f"{where} stored nfe {losses.nfe[row]}, evaluated again {again.nfe}"
            )
