"""Runs of votes, by a diffusion classifier or a trained one: what `Kind` asks of them."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset, check_images
from diffcert_ray.datasets.dataset import labels_of
from diffcert_ray.datasets.pixel_grid import STEPS
from diffcert_ray.method.from_config import levels_and_sift
from diffcert_ray.run.contradictions import Contradiction, UnitsExamined
from diffcert_ray.run.counted_votes import (
    counted_nfe,
    counted_votes,
    off_contradictions,
    unborne,
    vote_contradictions,
)
from diffcert_ray.run.estimate import Estimate, estimate
from diffcert_ray.run.odd_units import odd_units
from diffcert_ray.run.reachable import check_radii, doubts, must_abstain
from diffcert_ray.run.verification import OnUnit, Verification, compare_certificates, replay
from diffcert_ray.run.vote_bounds import check_complete_votes, check_fixed_n
from diffcert_ray.run.vote_rows import (
    VoteRows,
    recompute,
    recompute_stopped,
    stored_units,
    votes_held,
)
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.votes.image import Plan
from diffcert_ray.votes.stages import Stages

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import Worker

logger = logging.getLogger(__name__)

SHOWN_IDS = 20
AT_ONCE = 5000  # certificates compared with their counts together
EXACT_SHARE = 0.28  # of the full vote's evaluations, by the rule exact on digits
SHORTLIST_NFE, SHORTLIST_SHARE = 5, 0.06  # evaluations, and of the classes: 10 and 1,000 of them
UNIT_FACTS = ["start", "stop", "nfe", "seconds", "device", "numerics", "worker"]


@dataclass(frozen=True)
class VoteRuns:
    """Implements `run.kind.Kind`."""

    trained: bool  # votes of ``classify`` or ``denoise-classify``, which sift nothing
    folder: str = "units"
    counted: str = "votes"
    unread_p_low: float = 0.0

    @property
    def calibrates(self) -> bool:
        """A trained classifier's votes are too cheap to look."""
        return not self.trained

    def plan(self, config: Config, image_ids: np.ndarray, dataset: Dataset) -> Plan:
        """As `Kind.plan`."""
        votes = config.votes
        return Plan(
            image_ids=image_ids,
            sigmas=votes.sigmas,
            n0=votes.n0,
            n=votes.n,
            unit=votes.unit,
            alpha=votes.alpha,
            bound=votes.bound,
            radii=votes.radii,
            dimensions=int(np.prod(dataset.image_shape)),
            estimate=votes.estimate,
            futility=votes.futility,
            select=votes.select,
            select_unit=votes.select_unit,
        )

    def on_grid(self, plan: Plan, distances: Mapping[int, float]) -> Plan:
        """As `Kind.on_grid`."""
        _say_off_grid(distances)
        return replace(plan, off_grid=distances)

    def check(self, config: Config, plan: Plan) -> None:
        """As `Kind.check`."""
        check_radii(plan)
        for sentence in must_abstain(plan):
            logger.warning("%s", sentence)
        if not self.trained:
            for sigma in plan.sigmas:
                levels_and_sift(config, sigma)

    def planned_nfe(self, config: Config, plan: Plan, classes: int) -> float:
        """As `Kind.planned_nfe`: on digits a sifted vote evaluates each class three times."""
        full = config.noise_levels.levels * classes + 1
        shares = {"full": 1.0, "exact": EXACT_SHARE}
        each = shares.get(config.sift.rule, min(1.0, 3 * classes / full)) * full
        if config.sift.rule == "shortlist":
            each = min(full, SHORTLIST_NFE + SHORTLIST_SHARE * classes)
        # With a lead most images need little more than so many votes, and a few need many.
        selection = plan.n0 if plan.select is None else min(plan.n0, 2 * plan.select)
        return float(len(plan.image_ids) * len(plan.sigmas) * (selection + plan.n) * each)

    def estimate(
        self, config: Config, plan: Plan, worker: "Worker", classes: int
    ) -> tuple[Estimate, list[str]]:
        """As `Kind.estimate`."""
        return estimate(plan, worker), doubts(config, plan, classes, sifted=not self.trained)

    def fixed(self, config: Config) -> Mapping[str, Any]:
        """As `Kind.fixed`: counts extended after a look hold for no fixed-n bound."""
        votes = config.votes
        fixed = {"votes.n0": votes.n0, "votes.alpha": votes.alpha, "votes.bound": votes.bound}
        return fixed if votes.bound == "sequential" else fixed | {"votes.n": votes.n}

    def spends_beyond(self, config: Config) -> bool:
        """As `Kind.spends_beyond`: those beyond a stop, of the estimation or the selection."""
        return config.votes.bound == "sequential" or config.votes.select is not None

    def sigmas(self, config: Config) -> set[float]:
        """As `Kind.sigmas`."""
        return set(config.votes.sigmas)

    def begun(self, store: RunStore) -> pd.DataFrame:
        """As `Kind.begun`."""
        return store.units(["sigma", "image_id"]).to_pandas()

    def held(self, store: RunStore, plan: Plan) -> DoneUnits:
        """As `Kind.held`."""
        return store.done_units()

    def votes_held(self, held: DoneUnits) -> Callable[[float, int], tuple[int, int]]:
        """As `Kind.votes_held`."""
        return votes_held(held)

    def work(
        self,
        config: Config,
        plan: Plan,
        held: DoneUnits,
        certified: Collection[tuple[float, int]],
    ) -> Stages:
        """As `Kind.work`."""
        return Stages(
            plan,
            stored_units(held, plan),
            hand_back_levels=config.sift.levels if config.execution.stages == "split" else None,
            # A sequential certificate may be of an earlier, smaller n: it is looked at again.
            certified=certified if plan.bound != "sequential" else (),
        )

    def rows(
        self,
        config: Config,
        votes_id: str,
        labels: Mapping[int, int],
        image_sha: Callable[[int], str],
        pixels: Callable[[int], np.ndarray],
    ) -> VoteRows:
        """As `Kind.rows`."""
        return VoteRows(config.method.name, votes_id, labels, image_sha)

    def own(self, config: Config) -> Mapping[str, Collection[Any]]:
        """As `Kind.own`."""
        return {"bound": (config.votes.bound,), "n0": (config.votes.n0,)}

    def check_counts(self, config: Config, store: RunStore, certificates: pd.DataFrame) -> None:
        """As `Kind.check_counts`."""
        check_fixed_n(certificates, config.votes.bound, config.votes.n)
        if (certificates["bound"] == "two-class").any():
            check_complete_votes(certificates, store.units(["stream", "target"]).to_pandas())

    def borne_out(self, config: Config, held: DoneUnits, certificates: pd.DataFrame) -> bool:
        """As `Kind.borne_out`: a run of millions of units starts as fast as it reads them."""
        parts = range(0, len(certificates), AT_ONCE)  # which bounds the memory
        return all(self._borne(config, held, certificates[low : low + AT_ONCE]) for low in parts)

    def _borne(self, config: Config, held: DoneUnits, certificates: pd.DataFrame) -> bool:
        votes = config.votes
        alpha, bound = votes.alpha, votes.bound
        if next(vote_contradictions(certificates, alpha=alpha, bound=bound), None) is not None:
            return False
        behind = counted_votes(held, certificates, **_units_asked(config))
        wrong = unborne(certificates, behind, alpha=alpha, bound=bound)
        if next(wrong, None) is not None:
            return False
        return self.spends_beyond(config) or bool(
            (counted_nfe(held, certificates) == certificates["nfe"].to_numpy()).all()
        )

    def given(
        self,
        config: Config,
        plan: Plan,
        votes_id: str,
        held: DoneUnits,
        data: Dataset,
        certificates: pd.DataFrame,
    ) -> Iterator[CertificateRow]:
        """As `Kind.given`."""
        label, method = labels_of(data).__getitem__, config.method.name
        if plan.bound != "sequential":
            return recompute(plan, held, label, method=method, votes_id=votes_id)
        columns = [certificates[c].tolist() for c in ("sigma", "image_id", "n")]
        stopped = zip(*columns, strict=True)
        return recompute_stopped(plan, held, stopped, label, method=method, votes_id=votes_id)

    def examine(
        self,
        config: Config,
        store: RunStore,
        rows: pd.DataFrame,
        counting: npt.NDArray[np.int64],
        classes: int,
        dimensions: int,
    ) -> UnitsExamined:
        """As `Kind.examine`."""
        votes = config.votes
        alpha, bound = votes.alpha, votes.bound
        found = list(off_contradictions(rows, dimensions))
        found += vote_contradictions(rows, alpha=alpha, bound=bound)
        done = store.done_units()
        read = counting[rows["nfe"].to_numpy()[counting] > 0]  # the others could not be read
        certificates = rows.iloc[read]
        behind = counted_votes(done, certificates, **_units_asked(config))
        found += [
            Contradiction(read[one.rows], partial(_at, one.reason, read))
            for one in unborne(certificates, behind, alpha=alpha, bound=bound)
        ]
        odd = odd_units(
            done,
            classes=classes,
            n=votes.n,
            complete=votes.estimate == "complete",
            fixed=votes.bound != "sequential",
            **_units_asked(config),
        )
        begun: dict[float, set[int]] = {}
        for (sigma, _), group in done.groups.items():
            begun.setdefault(sigma, set()).update(group.images.tolist())
        return UnitsExamined(found, list(odd), begun)

    def recompute(
        self,
        config: Config,
        votes_id: str,
        store: RunStore,
        held: DoneUnits,
        data: Dataset,
        certificates: pd.DataFrame,
        verification: Verification,
    ) -> None:
        """As `Kind.recompute`: whatever image and sigma has units or a certificate."""
        units = self.begun(store)
        images = np.array(sorted({*units["image_id"], *certificates["image_id"]}), np.int64)
        sigmas = tuple(sorted({*units["sigma"], *certificates["sigma"]}))
        plan = replace(self.plan(config, images, data), sigmas=sigmas)
        if verification.other_method == 1:  # before there was a grid: nothing was taken off
            plan = replace(plan, dimensions=0)
        else:
            plan = replace(plan, off_grid=check_images(data, images.tolist()).off_grid)
        verification.costs_too = store.differing == 0 and not self.spends_beyond(config)
        rows = self.given(config, plan, votes_id, held, data, certificates)
        compare_certificates(certificates, list(rows), verification)

    def replay(
        self,
        config: Config,
        store: RunStore,
        held: DoneUnits,
        data: Dataset,
        worker: "Worker",
        verification: Verification,
        sample: int,
        on_unit: OnUnit,
    ) -> None:
        """As `Kind.replay`."""
        known = set(data.ids.tolist())
        replay(
            store.units().to_pandas(),
            worker,
            verification,
            sample=sample,
            image_sha=lambda image: data.image_sha(image) if image in known else "",
            split_at=None if self.trained else config.sift.levels,
            on_unit=on_unit,
        )

    def standing(self, config: Config, store: RunStore) -> tuple[int, int, tuple[str, ...]]:
        """As `Kind.standing`."""
        units = store.units(["start", "stop", "numerics"]).to_pandas()
        kinds = tuple(sorted(map(str, units["numerics"].unique())))
        return int((units["stop"] - units["start"]).sum()), config.votes.n0 + config.votes.n, kinds

    def notes(self, config: Config, store: RunStore, bound: str) -> Iterable[str]:
        """As `Kind.notes`: the certificates say all."""
        return ()

    def votes_by_class(self, store: RunStore) -> pa.Table:
        """As `Kind.votes_by_class`."""
        units = store.units(["sigma", "image_id", "stream", "classes", "counts"])
        return units.filter(pc.equal(units["stream"], "estimate")).combine_chunks()

    def check_attackable(self, address: str) -> None:
        """As `Kind.check_attackable`."""

    def costs(self, store: RunStore, certificates: pd.DataFrame) -> Iterable[tuple[str, str]]:
        """As `Kind.costs`."""
        units = store.units(UNIT_FACTS).to_pandas()
        cast = int((units["stop"] - units["start"]).sum())
        kinds = units["numerics"].value_counts(sort=True)
        shown = ", ".join(f"{kind} ({count:,} units)" for kind, count in kinds.items())
        devices = ", ".join(sorted(set(units["device"])))
        # Several bounds of an image share its votes.
        used = certificates.groupby(["sigma", "image_id"])[["n0_used", "n"]].max()
        beyond = cast - int(used.sum().sum())
        return [
            ("votes cast", f"{cast:,}, in {len(units):,} units; {beyond:,} in no certificate"),
            ("evaluations", f"{int(units['nfe'].sum()):,} NFE"),
            ("worker time", f"{units['seconds'].sum() / 3600:,.3f} hours"),
            ("workers", f"{units['worker'].nunique():,}, on {devices}"),
            ("numerics kinds", f"{len(kinds)}: {shown}"),
            (
                "units that kinds disagree on",
                f"{store.differing:,} (the one whose part sorts first counts)",
            ),
        ]


def _units_asked(config: Config) -> dict[str, Any]:
    """How the votes of a run are cut into units, and which of them select."""
    votes = config.votes
    return {k: getattr(votes, k) for k in ("n0", "unit", "select", "select_unit")}


def _at(reason: Callable[[int], str], positions: npt.NDArray[np.int64], row: int) -> str:
    """The reason for a row of a table, told of the part of it at ascending or other positions."""
    return reason(int(np.flatnonzero(positions == row)[0]))


def _say_off_grid(distances: Mapping[int, float]) -> None:
    """Warn that images are rounded to the grid, and what that takes off their radii."""
    if distances:
        ids = sorted(distances)
        shown = ", ".join(map(str, ids[:SHOWN_IDS])) + ("..." if len(ids) > SHOWN_IDS else "")
        logger.warning(
            "%d images are not on the grid of 1/%d that noise is added on, as resized ones are "
            "(image_id %s): they are rounded to it, which takes up to %.2g off their radii",
            len(ids),
            STEPS,
            shown,
            max(distances.values()),
        )
