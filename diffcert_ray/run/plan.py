"""What a configuration asks of a dataset: its plan, for all chosen images or a range of them."""

from typing import Any

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.kind import kind_of


def plan_of(settings: Config, dataset: Dataset, images: tuple[int, int] | None = None) -> Any:
    """What a configuration asks of a dataset, or of its images at positions start:stop.

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
    return kind_of(settings).plan(settings, ids, dataset)
