"""Runs without votes, of the plain diffusion classifier: what `Kind` asks of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc

from diffcert_ray.config.tables import PLAIN_BOUNDS, Config
from diffcert_ray.conventions import NO_SMOOTHING
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.dataset import labels_of
from diffcert_ray.errors import ConfigError
from diffcert_ray.plain.plan import PlainPlan, plain_plan
from diffcert_ray.plain.stages import LossStages
from diffcert_ray.run.contradictions import UnitsExamined, contradiction
from diffcert_ray.run.estimate import PlainEstimate, estimate_plain
from diffcert_ray.run.loss_rows import Bound, LossRows, estimates, plain_row, recompute_plain
from diffcert_ray.run.stored_losses import StoredLosses, read_losses
from diffcert_ray.run.verification import OnUnit, Verification, compare_certificates, replay_losses
from diffcert_ray.storage.schemas import LOSS_UNIT_KEY, CertificateRow
from diffcert_ray.storage.store import RunStore

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import Worker


@dataclass(frozen=True)
class LossRuns:
    """Implements `run.kind.Kind`; both plain bounds rest on the same losses."""

    folder: str = "losses"
    counted: str = "draws"
    calibrates: bool = True
    unread_p_low: float = float("nan")

    def plan(self, config: Config, image_ids: np.ndarray, dataset: Dataset) -> PlainPlan:
        """As `Kind.plan`."""
        dimensions = int(np.prod(dataset.image_shape))
        return plain_plan(config, image_ids, dataset.num_classes, dimensions)

    def on_grid(self, plan: PlainPlan, distances: Mapping[int, float]) -> PlainPlan:
        """As `Kind.on_grid`: draws are float numbers here, see docs/guarantees.md."""
        return plan

    def check(self, config: Config, plan: PlainPlan) -> None:
        """As `Kind.check`: making the plan has checked its noise levels."""

    def planned_nfe(self, config: Config, plan: PlainPlan, classes: int) -> float:
        """As `Kind.planned_nfe`, exactly."""
        return float(len(plan.image_ids) * plan.draws * len(plan.s) * plan.classes)

    def estimate(
        self, config: Config, plan: PlainPlan, worker: "Worker", classes: int
    ) -> tuple[PlainEstimate, list[str]]:
        """As `Kind.estimate`."""
        return estimate_plain(plan, worker), []

    def fixed(self, config: Config) -> Mapping[str, Any]:
        """As `Kind.fixed`."""
        return {"plain.draws": config.plain.draws, "votes.alpha": config.votes.alpha}

    def spends_beyond(self, config: Config) -> bool:
        """As `Kind.spends_beyond`: every draw is needed."""
        return False

    def sigmas(self, config: Config) -> set[float]:
        """As `Kind.sigmas`."""
        return {NO_SMOOTHING}

    def begun(self, store: RunStore) -> pd.DataFrame:
        """As `Kind.begun`."""
        images = store.losses().select(["image_id"]).to_pandas()
        return images.assign(sigma=NO_SMOOTHING)

    def held(self, store: RunStore, plan: PlainPlan) -> StoredLosses:
        """As `Kind.held`."""
        return read_losses(store, len(plan.s), plan.classes)

    def votes_held(self, held: StoredLosses) -> Callable[[float, int], tuple[int, int]]:
        """As `Kind.votes_held`."""
        return held.draws_held()

    def work(
        self,
        config: Config,
        plan: PlainPlan,
        held: StoredLosses,
        certified: Collection[tuple[float, int]],
    ) -> LossStages:
        """As `Kind.work`."""
        return LossStages(plan, held.of, certified=certified)

    def rows(
        self,
        config: Config,
        votes_id: str,
        labels: Mapping[int, int],
        image_sha: Callable[[int], str],
        pixels: Callable[[int], np.ndarray],
    ) -> LossRows:
        """As `Kind.rows`."""
        return LossRows(votes_id, labels, image_sha, pixels)

    def own(self, config: Config) -> Mapping[str, Collection[Any]]:
        """As `Kind.own`."""
        return {"bound": PLAIN_BOUNDS, "n0": (0,)}

    def check_counts(self, config: Config, store: RunStore, certificates: pd.DataFrame) -> None:
        """As `Kind.check_counts`: draws are fixed, and no unit can be extended."""

    def borne_out(self, config: Config, held: StoredLosses, certificates: pd.DataFrame) -> bool:
        """As `Kind.borne_out`: radii need the images too."""
        return certificates.empty

    def given(
        self,
        config: Config,
        plan: PlainPlan,
        votes_id: str,
        held: StoredLosses,
        data: Dataset,
        certificates: pd.DataFrame,
    ) -> Iterator[CertificateRow]:
        """As `Kind.given`."""
        for bound in PLAIN_BOUNDS:
            if (certificates["bound"] == bound).any():
                yield from _rows(plan, votes_id, held, data, bound)

    def examine(
        self,
        config: Config,
        store: RunStore,
        rows: pd.DataFrame,
        counting: npt.NDArray[np.int64],
        classes: int,
        dimensions: int,
    ) -> UnitsExamined:
        """As `Kind.examine`: radii need the images too, so that only ``verify`` recomputes them."""
        draws, unit = config.plain.draws, config.plain.unit
        stored = store.read_rows("losses", [*LOSS_UNIT_KEY, "level", "class", "numerics"]).table
        first = stored.filter((pc.field("level") == 0) & (pc.field("class") == 0)).select(
            LOSS_UNIT_KEY
        )
        units = first.to_pandas().drop_duplicates()
        start, stop = units["start"], units["stop"]
        whole = (start % unit == 0) & (stop == (start + unit).clip(upper=draws))
        held = units[whole].assign(votes=stop - start).groupby("image_id")["votes"].sum()
        used = rows["nfe"].to_numpy() > 0
        there = rows["image_id"].map(held).fillna(0).to_numpy(np.int64)
        counts = np.zeros(len(rows), bool)
        counts[counting] = True
        n, n_a = (rows[name].to_numpy() for name in ("n", "n_a"))
        p_low = rows["p_low"].to_numpy()
        off = {name: rows[name].to_numpy() for name in ("slack", "taken_off")}
        found = [
            *contradiction(
                used & (n != draws), lambda row: f"n is {n[row]}, the run has {draws} draws"
            ),
            *contradiction(
                counts & used & (n == draws) & (there != draws),
                lambda row: (
                    f"it rests on losses that are not stored: {there[row]} draws are "
                    f"there of {draws}"
                ),
            ),
            *contradiction(
                (n_a != 0) | ~np.isnan(p_low),
                lambda row: f"n_a {n_a[row]} and p_low {p_low[row]} although it has no votes",
            ),
            *contradiction(
                (off["slack"] != 0) | (off["taken_off"] != 0),
                lambda row: (
                    f"slack {off['slack'][row]} and taken_off {off['taken_off'][row]}, of which "
                    "certificates without votes have none"
                ),
            ),
        ]
        said = [
            f"{int((~whole).sum())} stored units of losses are none of {unit} draws up to {draws}, "
            f"first draws {row.start}:{row.stop} of image {row.image_id}"
            for row in units[~whole].head(1).itertuples()
        ]
        begun = {NO_SMOOTHING: set(units["image_id"].tolist())} if len(units) else {}
        return UnitsExamined(found, said, begun)

    def recompute(
        self,
        config: Config,
        votes_id: str,
        store: RunStore,
        held: StoredLosses,
        data: Dataset,
        certificates: pd.DataFrame,
        verification: Verification,
    ) -> None:
        """As `Kind.recompute`: by the bound asked for, and by the other one if it is stored."""
        plan = self.plan(config, data.ids, data)
        verification.costs_too = held.differing == 0
        for bound in PLAIN_BOUNDS:
            stored = certificates[certificates["bound"] == bound]
            if bound == plan.bound or len(stored):
                rows = _rows(plan, votes_id, held, data, bound)
                compare_certificates(stored, list(rows), verification)

    def replay(
        self,
        config: Config,
        store: RunStore,
        held: StoredLosses,
        data: Dataset,
        worker: "Worker",
        verification: Verification,
        sample: int,
        on_unit: OnUnit,
    ) -> None:
        """As `Kind.replay`."""
        replay_losses(held, worker, verification, sample=sample, on_unit=on_unit)

    def standing(self, config: Config, store: RunStore) -> tuple[int, int, tuple[str, ...]]:
        """As `Kind.standing`."""
        table = store.losses().select([*LOSS_UNIT_KEY, "numerics"]).to_pandas()
        units = table.drop_duplicates(list(LOSS_UNIT_KEY))
        kinds = tuple(sorted(map(str, units["numerics"].unique())))
        return int((units["stop"] - units["start"]).sum()), config.plain.draws, kinds

    def notes(self, config: Config, store: RunStore, bound: str) -> Iterable[str]:
        """As `Kind.notes`: the radii at the mean losses, which nothing guarantees."""
        data = load_dataset(config.dataset.as_stored(), config.execution.storage_options)
        plan = self.plan(config, data.ids, data)
        held = self.held(store, plan)
        return [estimates(plan, held, data.image, b) for b in PLAIN_BOUNDS if b == bound]

    def votes_by_class(self, store: RunStore) -> None:
        """As `Kind.votes_by_class`."""

    def check_attackable(self, address: str) -> None:
        """As `Kind.check_attackable`."""
        raise ConfigError(
            f"run {address} has certificates of the plain classifier, without votes: "
            f"python jobs/attack_plain.py {address} attacks those"
        )

    def costs(self, store: RunStore, certificates: pd.DataFrame) -> Iterable[tuple[str, str]]:
        """As `Kind.costs`: not counted yet."""
        return ()


def _rows(
    plan: PlainPlan, votes_id: str, held: StoredLosses, data: Dataset, bound: Bound
) -> Iterator[CertificateRow]:
    """The certificates by one bound that stored losses give."""
    labels = labels_of(data)
    for image, certificate in recompute_plain(plan, held, data.image, bound):
        yield plain_row(image, certificate, labels[image.image_id], votes_id=votes_id)
