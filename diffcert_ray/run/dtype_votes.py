"""How many votes another dtype changes: cast under the same noise as those in float32.

The noise is of another seed than the run's, so that a choice by these votes depends on none of its.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffcert_ray.config.tables import Config, Dtype
from diffcert_ray.run.dtype_agreement import LEAST, Agreement
from diffcert_ray.votes.units import Item, Part, Unit

if TYPE_CHECKING:
    from diffcert_ray.datasets import Dataset

ENOUGH = 2000  # votes in each dtype; 0 different ones show, with 97.5 %, at most 0.18 % of all
SHARE = 0.01  # of the run's evaluations, at most, for all of them
FIRST = 16  # votes that tell what a vote takes
IMAGES = 100  # that they are of, at most
BATCH = 64  # at most: what a network computes in is not yet known to fit in a larger one
OTHER_SEED = 0x5EED_0F_D7FE


def agreements(
    config: Config,
    weights: Mapping[str, str],
    device: str,
    dtypes: Sequence[Dtype],
    *,
    most_nfe: float,
    dataset: "Dataset | None" = None,
) -> list[Agreement]:
    """Cast votes in float32 and in each other dtype, and compare them.

    Args:
        config: of the run.
        weights: as `WorkerSpec`.
        device: where networks live.
        dtypes: to be compared; float32 among them is skipped.
        most_nfe: evaluations that may be spent in all.
        dataset: an object in place of ``config.dataset``.

    Returns:
        One for each dtype but float32, in their order.
    """
    from diffcert_ray.datasets import load_dataset

    others = [dtype for dtype in dtypes if dtype != "float32"]
    if not others:
        return []
    data = dataset or load_dataset(config.dataset, config.execution.storage_options)
    trial = _Trial(config, weights, device, data)
    _, nfe = trial.cast("float32", FIRST)
    affordable = int((most_nfe - nfe) / (1 + len(others)) / (nfe / FIRST))
    votes = min(ENOUGH, affordable)
    if votes < LEAST:
        return [Agreement(dtype, 0, 0) for dtype in others]
    expected, _ = trial.cast("float32", votes)
    found = []
    for dtype in others:
        different = int((trial.cast(dtype, votes)[0] != expected).sum())
        found.append(Agreement(dtype, votes, different))
    return found


@dataclass(frozen=True)
class _Trial:
    config: Config
    weights: Mapping[str, str]
    device: str
    data: "Dataset"

    def cast(self, dtype: Dtype, votes: int) -> tuple[np.ndarray, int]:
        """The first votes of images, by turns at each sigma, and the evaluations that they took."""
        from diffcert_ray.denoisers.device import set_up_torch
        from diffcert_ray.engine.votes import evaluate_votes
        from diffcert_ray.engine.worker import WorkerSpec

        set_up_torch(dtype)
        config = self._config(dtype)
        networks = WorkerSpec(config, self.weights, self.device).networks(self.data)
        sigmas = config.votes.sigmas
        winners, nfe = [], 0
        for index, sigma in enumerate(sigmas):
            item = self._item(sigma, votes // len(sigmas) + (index < votes % len(sigmas)))
            if item.parts:
                cast, spent = evaluate_votes(networks.base(sigma), item, self.data.image)
                winners.append(cast)
                nfe += spent
        return np.concatenate(winners), nfe

    def _config(self, dtype: Dtype) -> Config:
        config = self.config
        batch = min(BATCH, config.numerics.batch)
        numerics = {"dtype": dtype, "compile": False, "channels_last": False, "batch": batch}
        seed = (config.votes.seed + OTHER_SEED) % 2**63
        return config.model_copy(
            update={
                "numerics": config.numerics.model_copy(update=numerics),
                "votes": config.votes.model_copy(update={"seed": seed}),
            }
        )

    def _item(self, sigma: float, votes: int) -> Item:
        ids = self.data.ids
        places = np.unique(np.linspace(0, len(ids) - 1, min(IMAGES, votes, len(ids))).astype(int))
        parts = []
        for index, place in enumerate(places):
            count = votes // len(places) + (index < votes % len(places))
            unit = Unit(sigma, int(ids[place]), "estimate", 0, count)
            parts.append(Part(unit, 0, count))
        return Item(0, sigma, tuple(parts))
