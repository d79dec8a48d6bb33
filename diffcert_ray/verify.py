"""Recompute a run: every certificate from its counts, and a sample of its units from the images."""

import random
from dataclasses import dataclass, field

import pandas as pd

from diffcert_ray.certificates import ABSTAIN
from diffcert_ray.config import ConfigError
from diffcert_ray.image_votes import Plan
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.work import ALL_CLASSES, Item, Part, Unit
from diffcert_ray.worker import Worker

COMPARED = ("predicted", "radius", "p_low", "n_a", "n")


@dataclass
class Verification:
    """What was compared, and every difference found.

    Args:
        certificates: certificates recomputed and compared.
        units: units evaluated again.
        votes: votes in them.
        same_numerics: whether this machine's numerics kind is the stored units'.
        differences: one sentence for each difference.
    """

    certificates: int = 0
    units: int = 0
    votes: int = 0
    same_numerics: bool = True
    differences: list[str] = field(default_factory=list)


def check_certifiable(plan: Plan, certificates: pd.DataFrame, units: pd.DataFrame) -> None:
    """Refuse certificates that rest on counts which their bound does not hold for.

    Args:
        plan: what the run was started with.
        certificates: the stored certificates.
        units: the stored units, at least the columns stream and target.

    Raises:
        ConfigError: a fixed-n bound at another n than the run's (stopped early, or extended after a
            look), or ``two-class`` on votes that only said whether they are their target.
    """
    fixed = certificates["bound"].isin(["clopper-pearson", "two-class"])
    used = certificates.loc[fixed & (certificates["n"] > 0)]
    wrong = used[used["n"] != plan.n] if plan.bound != "sequential" else used
    if len(wrong):
        row = wrong.iloc[0]
        raise ConfigError(
            f"image {row['image_id']} has a {row['bound']} certificate from {row['n']} votes, "
            "but the "
            f"run was started with {plan.bound} and n = {plan.n}: a fixed-n bound holds at "
            "the n fixed "
            "before the first vote only; counts that were stopped or extended may be certified by "
            '"sequential" only'
        )
    targeted = (units["stream"] == "estimate") & (units["target"] != ALL_CLASSES)
    if (certificates["bound"] == "two-class").any() and targeted.any():
        raise ConfigError(
            f"{int(targeted.sum())} units hold votes that only said whether they are their "
            "target, and "
            '"two-class" needs complete votes: certify with "clopper-pearson" or '
            '"sequential", or run '
            'again with votes.estimate = "complete"'
        )


def compare_certificates(
    stored: pd.DataFrame, recomputed: list[CertificateRow], found: Verification
) -> None:
    """Compare stored certificates with those that the counts give.

    Args:
        stored: the certificates table, one row for each sigma and image.
        recomputed: rows made anew from the stored units.
        found: where differences are noted.
    """
    keys = zip(stored["sigma"].tolist(), stored["image_id"].tolist(), strict=True)
    rows = dict(zip(keys, stored[list(COMPARED)].to_dict("records"), strict=True))
    for row in recomputed:
        found.certificates += 1
        kept = rows.pop((row.sigma, row.image_id), None)
        where = f"image {row.image_id} at sigma {row.sigma:g}"
        if kept is None:
            found.differences.append(f"{where} has all its votes, but no certificate is stored")
            continue
        for name in COMPARED:
            if kept[name] != getattr(row, name):
                found.differences.append(
                    f"{where}: stored {name} {kept[name]}, its counts give {getattr(row, name)}"
                )
    for (sigma, image_id), kept in rows.items():
        if kept["predicted"] != ABSTAIN:
            found.differences.append(
                f"image {image_id} at sigma {sigma:g} has a certificate, but not the votes for it"
            )


def replay(
    units: pd.DataFrame, worker: Worker, found: Verification, *, sample: int, seed: int = 0
) -> None:
    """Evaluate a random sample of the stored units again and compare the counts.

    Units of another numerics kind than this worker's may differ in rare votes; they are compared
    too, and what differs is noted with that remark.

    Args:
        units: the stored units, all columns.
        worker: loaded with the run's configuration.
        found: where differences are noted.
        sample: number of units, at most all.
        seed: of the choice.
    """
    chosen = random.Random(seed).sample(range(len(units)), min(sample, len(units)))
    for row in units.iloc[sorted(chosen)].to_dict("records"):
        unit = Unit(row["sigma"], row["image_id"], row["stream"], row["start"], row["stop"])
        part = Part(unit, unit.start, unit.stop, row["target"])
        tally = worker.cast_votes(Item(0, unit.sigma, (part,))).tallies[0]
        stored = dict(zip(row["classes"].tolist(), row["counts"].tolist(), strict=True))
        found.units += 1
        found.votes += unit.votes
        same = row["numerics"] == worker.numerics
        found.same_numerics &= same
        if dict(tally.counts) != stored:
            remark = "" if same else " (another numerics kind: rare votes may differ)"
            found.differences.append(
                f"image {unit.image_id} at sigma {unit.sigma:g}, {unit.stream} votes "
                f"{unit.start}:{unit.stop}: stored {stored}, evaluated again {tally.counts}{remark}"
            )
