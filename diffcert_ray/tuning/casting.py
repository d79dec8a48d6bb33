"""Votes of each setting, as small ordinary runs: stored, resumed and spread as any run.

Every vote is a unit, so that its class stands in the table of units. All settings see the same
noise: it follows from seed, image and vote.

Shape letters: I images, V votes of an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.config.tables import Config, NumericsConfig
from diffcert_ray.errors import PoolError
from diffcert_ray.run.certify import certify
from diffcert_ray.run.loop import Progress
from diffcert_ray.run.stored import Run
from diffcert_ray.tuning.candidates import FULL, Setting
from diffcert_ray.tuning.stopping import StoppedError
from diffcert_ray.tuning.workers import SharedWorkers

NOT_CAST = -9  # no class: after an unresolved selection vote an image gets no further one
ALPHA = 0.9  # the runs' certificates say nothing, and are refused for no number of votes

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Votes:
    """Votes of one setting at one sigma.

    Attributes:
        classes: int64 [I, V]; -2: unresolved, NOT_CAST: none.
        nfe: evaluations of each, int64 [I, V].
    """

    classes: NDArray[np.int64]
    nfe: NDArray[np.int64]


@dataclass
class Caster:
    """Casts votes of settings on the tuning images, and reads them.

    Args:
        config: that is tuned, with the tuning seed and the dataset of the images.
        image_ids: of all images that votes are cast on, in the order of positions.
        votes: of each image, >= 2.
        folder: address that runs are put under.
        workers: that all runs share.
        local: as `certify`.
        address: as `certify`.
        on_progress: as `certify`.
        on_calibrated: as `certify`.
        should_stop: as `certify`.
        numerics: that all runs compute with; None until the votes in full, which come first.
    """

    config: Config
    image_ids: Sequence[int]
    votes: int
    folder: str
    workers: SharedWorkers
    local: bool
    address: str | None
    on_progress: OnProgress
    on_calibrated: Callable[[str], None]
    should_stop: Callable[[], bool]
    numerics: NumericsConfig | None = None

    def cast(self, setting: Setting, sigmas: Sequence[float], start: int, stop: int) -> Run:
        """Cast what is not stored of a setting's votes on images at positions start:stop.

        Raises:
            StoppedError: it was asked to stop.
            PoolError: items were given up.
        """
        run = certify(
            self.run_config(setting, sigmas),
            self.run_folder(setting),
            images=(start, stop),
            local=self.local,
            address=self.address,
            on_progress=self.on_progress,
            on_calibrated=self.on_calibrated,
            should_stop=self.should_stop,
            pool=self.workers,
        )
        assert run.outcome is not None
        if run.outcome.interrupted:
            raise StoppedError
        if not run.outcome.complete:
            raise PoolError(
                f"votes of setting {setting.said()!r} are lacking in {run.address}: "
                f"{len(run.outcome.given_up)} images were given up after repeated failures; see "
                "the log above, then run the same command again"
            )
        if setting.name == FULL:
            self.numerics = run.config.numerics
        return run

    def run_folder(self, setting: Setting) -> str:
        """Where the votes of a setting are."""
        return f"{self.folder}/{setting.name.replace(' ', '-')}"

    def run_config(self, setting: Setting, sigmas: Sequence[float]) -> Config:
        """The configuration of a setting's run."""
        config, tables = self.config, dict[str, Any]()
        votes = {
            "sigmas": tuple(sigmas),
            "n0": 1,
            "select": None,
            "n": self.votes - 1,
            "unit": 1,
            "alpha": ALPHA,
            "bound": "clopper-pearson",
            "radii": (0.0,),
            "estimate": "complete",
        }
        tables["votes"] = config.votes.model_copy(update=votes)
        tables["sift"] = setting.sift
        ids = {"ids": tuple(int(i) for i in self.image_ids)}
        tables["dataset"] = config.dataset.model_copy(update=ids)
        tables["name"] = f"{config.name}-{setting.name.replace(' ', '-')}"
        if self.numerics is not None:
            tables["numerics"] = self.numerics
        if setting.name != FULL:
            never = {"calibrate": "never"}
            tables["execution"] = config.execution.model_copy(update=never)
        return config.model_copy(update=tables)

    def read(self, run: Run, sigma: float, start: int, stop: int) -> Votes:
        """The votes of a run on images at positions start:stop."""
        units = run.store.units(["sigma", "image_id", "stream", "start", "classes", "nfe"])
        table = units.to_pandas()
        table = table[table["sigma"] == sigma]
        position = {int(i): p for p, i in enumerate(self.image_ids[start:stop])}
        table = table[table["image_id"].isin(position)]
        shape = (stop - start, self.votes)
        classes, nfe = np.full(shape, NOT_CAST, np.int64), np.zeros(shape, np.int64)
        image = table["image_id"].map(position).to_numpy(np.int64)
        vote = table["start"].to_numpy() + (table["stream"] == "estimate").to_numpy()
        classes[image, vote] = [found[0] for found in table["classes"]]
        nfe[image, vote] = table["nfe"].to_numpy()
        return Votes(classes, nfe)
