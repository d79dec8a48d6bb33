"""What a configuration asks of a dataset, and whether the dataset is the one a run began with."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.plain.plan import PlainPlan, plain_plan
from diffcert_ray.run.stored_losses import StoredLosses
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.votes.image import Plan


def plan_of(
    settings: Config, dataset: Dataset, images: tuple[int, int] | None = None
) -> Plan | PlainPlan:
    """What a configuration asks of a dataset's images.

    Args:
        settings: the configuration.
        dataset: the chosen images.
        images: positions start:stop in them, or None for all.

    Raises:
        ConfigError: the range is empty or goes beyond the subset.
    """
    ids = dataset.ids
    if images is not None:
        start, stop = images
        if not 0 <= start < stop <= len(ids):
            raise ConfigError(
                f"--images {start}:{stop} is not a range of the {len(ids)} chosen images: use "
                f"0 <= start < stop <= {len(ids)}"
            )
        ids = ids[start:stop]
    if settings.without_votes:
        return plain_plan(settings, ids, dataset.num_classes, int(np.prod(dataset.image_shape)))
    votes = settings.votes
    return Plan(
        image_ids=ids,
        sigmas=votes.sigmas,
        n0=votes.n0,
        n=votes.n,
        unit=votes.unit,
        alpha=votes.alpha,
        bound=votes.bound,
        radii=votes.radii,
        estimate=votes.estimate,
        futility=votes.futility,
    )


def labels_of(data: Dataset) -> dict[int, int]:
    """The label of each image_id of a dataset."""
    return dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))


def about(data: Dataset) -> dict[str, Any]:
    """What run.toml says about a dataset."""
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "num_classes": data.num_classes,
        "image_shape": list(data.image_shape),
        "images": len(data),
    }


def check_same_images(
    held: DoneUnits | StoredLosses, known: set[int], image_sha: Callable[[int], str]
) -> None:
    """Refuse to continue with other pixels under a stored image_id.

    Args:
        held: what the store holds, with each image's pixel hash.
        known: ids of the images at hand.
        image_sha: image_id -> its pixel hash now.
    """
    for image_id, sha in held.image_sha.items():
        if image_id in known and (found := image_sha(image_id)) != sha:
            raise ConfigError(
                f"image {image_id} has pixels {found}, but the run's votes were cast on "
                f"{sha}: the data "
                "has changed; give another run folder (--run), or restore the data"
            )
