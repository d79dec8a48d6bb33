"""The kind of a run, chosen once from its configuration: votes, or losses without votes.

What differs between kinds is behind `Kind`: the rest of the code asks it, never which kind it is.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.run.contradictions import UnitsExamined
from diffcert_ray.run.loop import Work
from diffcert_ray.run.loss_runs import LossRuns
from diffcert_ray.run.verification import OnUnit, Verification
from diffcert_ray.run.vote_runs import VoteRuns
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.writer import Writer

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import Worker

Certified = Collection[tuple[float, int]]
"""(sigma, image_id) of images that are certified."""
VotesHeld = Callable[[float, int], tuple[int, int]]
"""(sigma, image_id) -> stored selection votes, and stored estimation votes (or draws)."""


class Plan(Protocol):
    """What every plan says, whatever is evaluated; a frozen dataclass."""

    @property
    def image_ids(self) -> np.ndarray:
        """int64 [N], images in the order in which they are worked on."""
        ...

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Smoothing noise levels, pixel units."""
        ...

    @property
    def n0(self) -> int:
        """Votes that only select."""
        ...

    @property
    def n(self) -> int:
        """Votes, or draws, that bound."""
        ...

    @property
    def alpha(self) -> float:
        """Failure probability of one certificate."""
        ...

    @property
    def bound(self) -> str:
        """Name of the bound."""
        ...


class Held(Protocol):
    """What a store holds of a run."""

    @property
    def image_sha(self) -> Mapping[int, str]:
        """Hash of the pixels of each image that has any."""
        ...


class Rows(Protocol):
    """What a run keeps as it goes."""

    def record(self, writer: Writer, result: Any, settled: Any) -> None:
        """Give the writer the units that a result completed."""
        ...

    def certificate(self, image: Any) -> CertificateRow:
        """The certificate of an image that is finished."""
        ...


class Kind(Protocol):
    """What is evaluated, stored, certified, recomputed and estimated; `kind_of` chooses it."""

    @property
    def folder(self) -> str:
        """Where stored counts are: "units" or "losses"."""
        ...

    @property
    def counted(self) -> str:
        """What progress counts: "votes" or "draws"."""
        ...

    @property
    def calibrates(self) -> bool:
        """Whether a long run looks for the numerics that are fastest."""
        ...

    @property
    def unread_p_low(self) -> float:
        """The p_low in the row of an image that could not be read."""
        ...

    def plan(self, config: Config, image_ids: np.ndarray, dataset: Dataset) -> Any:
        """What a configuration asks of some images."""
        ...

    def on_grid(self, plan: Any, distances: Mapping[int, float]) -> Any:
        """The plan with what rounding to the grid takes off each image's radius, pixel units."""
        ...

    def check(self, config: Config, plan: Any) -> None:
        """Refuse what cannot give what is asked: radii out of reach, noise levels (ConfigError)."""
        ...

    def planned_nfe(self, config: Config, plan: Any, classes: int) -> float:
        """Evaluations of a run, about."""
        ...

    def estimate(
        self, config: Config, plan: Any, worker: "Worker", classes: int
    ) -> tuple[Any, list[str]]:
        """What a run costs, measured on a few votes or draws, and what can hardly be meant."""
        ...

    def fixed(self, config: Config) -> Mapping[str, Any]:
        """Keys that no later start of a run may change, though votes do not depend on them."""
        ...

    def spends_beyond(self, config: Config) -> bool:
        """Whether votes may come in vain, whose cost a certificate of their image may not have."""
        ...

    def sigmas(self, config: Config) -> set[float]:
        """The sigmas that certificates of a configuration are about."""
        ...

    def begun(self, store: RunStore) -> pd.DataFrame:
        """The sigma and image_id of everything that has a stored unit."""
        ...

    def held(self, store: RunStore, plan: Any) -> Any:
        """What the store holds for a plan; read once, since it may be large."""
        ...

    def votes_held(self, held: Any) -> VotesHeld:
        """How many votes (or draws) of each image are stored."""
        ...

    def work(self, config: Config, plan: Any, held: Any, certified: Certified) -> Work:
        """What is left to do."""
        ...

    def rows(
        self,
        config: Config,
        votes_id: str,
        labels: Mapping[int, int],
        image_sha: Callable[[int], str],
        pixels: Callable[[int], np.ndarray],
    ) -> Rows:
        """Turns results and finished images into rows.

        By image_id: the true class, a prefix of the pixels' sha256, float32 [C, H, W] in [0, 1].
        """
        ...

    def own(self, config: Config) -> Mapping[str, Collection[Any]]:
        """Column -> the values that the run's own certificates may have in it."""
        ...

    def check_counts(self, config: Config, store: RunStore, certificates: pd.DataFrame) -> None:
        """Refuse certificates whose counts their bound does not hold for (ConfigError)."""
        ...

    def borne_out(self, config: Config, held: Any, certificates: pd.DataFrame) -> bool:
        """Whether what is held gives these certificates, as far as milliseconds tell.

        False where it does not, and where only ``given`` can tell.
        """
        ...

    def given(
        self,
        config: Config,
        plan: Any,
        votes_id: str,
        held: Any,
        data: Dataset,
        certificates: pd.DataFrame,
    ) -> Iterable[CertificateRow]:
        """What the counts give for a plan's images; ``certificates`` says by which bounds and n."""
        ...

    def examine(
        self,
        config: Config,
        store: RunStore,
        rows: pd.DataFrame,
        counting: npt.NDArray[np.int64],
        classes: int,
        dimensions: int,
    ) -> UnitsExamined:
        """Compare stored certificates with their counts, in milliseconds.

        Args:
            config: of the run.
            store: its folder.
            rows: certificates of this run, repeats included.
            counting: positions of those that count.
            classes: K.
            dimensions: D, numbers in the noise of a vote; 0 where it is on no grid.

        Returns:
            What is wrong, and what was begun.
        """
        ...

    def recompute(
        self,
        config: Config,
        votes_id: str,
        store: RunStore,
        held: Any,
        data: Dataset,
        certificates: pd.DataFrame,
        verification: Verification,
    ) -> None:
        """Compare stored certificates with what the counts give; ``data`` is the whole dataset.

        ``on_unit`` is told how many are done, of how many.
        """
        ...

    def replay(
        self,
        config: Config,
        store: RunStore,
        held: Any,
        data: Dataset,
        worker: "Worker",
        verification: Verification,
        sample: int,
        on_unit: OnUnit,
    ) -> None:
        """Evaluate ``sample`` of the stored units again; ``data`` is the whole dataset."""
        ...

    def standing(self, config: Config, store: RunStore) -> tuple[int, int, tuple[str, ...]]:
        """Stored votes, votes asked of each image and sigma, and numerics kinds."""
        ...

    def notes(self, config: Config, store: RunStore, bound: str) -> Iterable[str]:
        """What a report adds to the certificates by a bound."""
        ...

    def votes_by_class(self, store: RunStore) -> pa.Table | None:
        """The stored estimation votes, sigma, image_id, classes and counts; None without votes."""
        ...

    def check_attackable(self, address: str) -> None:
        """Refuse an attack that casts votes where there are none (ConfigError)."""
        ...

    def costs(self, store: RunStore, certificates: pd.DataFrame) -> Iterable[tuple[str, str]]:
        """What the stored units say about cost, workers and repeats."""
        ...


def kind_of(config: Config) -> Kind:
    """The kind of run that a configuration asks for."""
    if config.kind_name == "losses":
        return LossRuns()
    return VoteRuns(trained=config.kind_name == "trained")
