"""Votes and the store: units and certificates as rows, stored units as votes again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffcert_ray.conventions import ABSTAIN, STREAM_NAMES
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.schemas import CertificateRow, UnitRow
from diffcert_ray.storage.writer import Writer
from diffcert_ray.votes.image import ImageVotes, Plan, UnitCounts, Verdict
from diffcert_ray.votes.stages import SettledUnit
from diffcert_ray.votes.units import Unit


def stored_units(done: DoneUnits, plan: Plan) -> Callable[[float, int], list[UnitCounts]]:
    """Look up the stored units of an image, as ``ImageVotes`` takes them.

    Units off the plan's grid (of an earlier, smaller n) are left out. Those about another class
    than the selection votes that count choose are not: ``ImageVotes`` ignores them.

    Returns:
        (sigma, image_id) -> its units: selection first, then estimation, in vote order.
    """
    wanted = {stream: set(plan.ranges(stream)) for stream in STREAM_NAMES}

    def units(sigma: float, image_id: int) -> list[UnitCounts]:
        complete: list[UnitCounts] = []
        for stream in STREAM_NAMES:
            group = done.groups.get((sigma, stream))
            if group is None:
                continue
            for row in group.rows(image_id):
                start, stop = int(group.start[row]), int(group.stop[row])
                if (start, stop) not in wanted[stream]:
                    continue
                classes, counts = group.votes(row)
                unit = Unit(sigma, image_id, stream, start, stop)
                tally = {int(c): int(n) for c, n in zip(classes, counts, strict=True)}
                nfe, seconds = int(group.nfe[row]), float(group.seconds[row])
                target = int(group.target[row])
                complete.append(UnitCounts(unit, target, tally, nfe, seconds))
        return complete

    return units


def unit_row(settled: SettledUnit, image_sha: str) -> UnitRow:
    """One row of the units table, of a unit whose votes are all in."""
    unit, counts = settled.counted.unit, settled.counted.counts
    classes = tuple(sorted(counts))
    return UnitRow(
        sigma=unit.sigma,
        image_id=unit.image_id,
        image_sha=image_sha,
        stream=unit.stream,
        start=unit.start,
        stop=unit.stop,
        target=settled.counted.target,
        classes=classes,
        counts=tuple(counts[c] for c in classes),
        nfe=settled.counted.nfe,
        seconds=settled.counted.seconds,
        device="+".join(sorted(settled.devices)),
        numerics="+".join(sorted(settled.numerics)),
        worker="+".join(sorted(settled.workers)),
        attempt=0,
    )


def certificate_row(
    image: ImageVotes, verdict: Verdict, label: int, *, method: str, votes_id: str
) -> CertificateRow:
    """One row of the certificates table."""
    return CertificateRow(
        sigma=image.sigma,
        image_id=image.image_id,
        label=label,
        predicted=verdict.predicted,
        correct=verdict.predicted == label,
        abstained=verdict.predicted == ABSTAIN,
        radius=verdict.radius,
        p_low=verdict.p_low,
        slack=image.plan.slack(image.sigma),
        taken_off=image.plan.taken_off(image.image_id),
        n_a=verdict.n_a,
        n=verdict.n,
        n0=image.plan.n0,
        n0_used=verdict.n0_used,
        alpha=image.plan.alpha,
        bound=image.plan.bound,
        nfe=verdict.nfe,
        seconds=verdict.seconds,
        method=method,
        votes_id=votes_id,
    )


def recompute(
    plan: Plan, done: DoneUnits, label: Callable[[int], int], *, method: str, votes_id: str
) -> Iterator[CertificateRow]:
    """Every fixed-n certificate that a store's units support, computed anew.

    Yields:
        A row for each image and sigma that has all votes its bound needs.

    Raises:
        VotesError: counts of a kind that the bound must not certify.
    """
    units = stored_units(done, plan)
    for sigma in plan.sigmas:
        for image_id in plan.image_ids.tolist():
            image = _image(ImageVotes(plan, sigma, image_id), units)
            if (verdict := image.verdict()) is not None:
                true_class = label(image_id)
                yield certificate_row(image, verdict, true_class, method=method, votes_id=votes_id)


def recompute_stopped(
    plan: Plan,
    done: DoneUnits,
    stored: Iterable[tuple[float, int, int]],
    label: Callable[[int], int],
    *,
    method: str,
    votes_id: str,
) -> Iterator[CertificateRow]:
    """Every stored ``sequential`` certificate, computed anew from the votes up to where it stopped.

    Its bound holds at any stopping time, so it does not matter which start of the run, with which
    n and radii, made the image stop there; the looks are the ends of the units in any case. Of the
    plan only n0, the rule of selection, the size of units, alpha and the bound are used; ``stored``
    says (sigma, image_id, estimation votes used).

    Yields:
        A row for each stored certificate whose votes are all there.

    Raises:
        VotesError: counts of a kind that the bound must not certify.
    """
    for sigma, image_id, n in stored:
        cut = replace(plan, n=max(n, 1))
        units = stored_units(done, cut)
        image = _image(ImageVotes(cut, sigma, image_id, stop_at=n), units)
        if image.finished and (verdict := image.verdict()) is not None:
            yield certificate_row(image, verdict, label(image_id), method=method, votes_id=votes_id)


def _image(image: ImageVotes, units: Callable[[float, int], list[UnitCounts]]) -> ImageVotes:
    for counts in units(image.sigma, image.image_id):
        image.add(counts)
    return image


def votes_held(done: DoneUnits) -> Callable[[float, int], tuple[int, int]]:
    """(sigma, image_id) -> the number of stored selection votes, and of estimation votes."""
    held = {}
    for key, group in done.groups.items():
        votes = np.add.reduceat(group.stop - group.start, group.first[:-1])
        held[key] = dict(zip(group.images.tolist(), votes.tolist(), strict=True))

    def of(sigma: float, image_id: int) -> tuple[int, int]:
        select, estimate = (held.get((sigma, s), {}).get(image_id, 0) for s in STREAM_NAMES)
        return select, estimate

    return of


@dataclass(frozen=True)
class VoteRows:
    """Rows of a run of votes."""

    method: str
    votes_id: str
    labels: Mapping[int, int]  # image_id -> true class
    image_sha: Callable[[int], str]  # image_id -> prefix of its pixels' sha256

    def record(self, writer: Writer, result: Any, settled: Sequence[SettledUnit]) -> None:
        """Give the writer the units that a result completed; of votes, ``settled`` says all."""
        writer.add_units(unit_row(s, self.image_sha(s.counted.unit.image_id)) for s in settled)

    def certificate(self, image: ImageVotes) -> CertificateRow:
        """The certificate of an image whose votes are all in."""
        verdict = image.verdict()
        assert verdict is not None  # the stages hand over finished images only
        label = self.labels[image.image_id]
        return certificate_row(image, verdict, label, method=self.method, votes_id=self.votes_id)
