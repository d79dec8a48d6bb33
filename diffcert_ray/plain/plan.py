"""What a configuration asks of the plain diffusion classifier: its noise levels and its draws."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import NO_SMOOTHING
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.noise_levels import LOWEST_LEVEL, noise_levels

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlainPlan:
    """What is asked of every image of a run of plain certificates."""

    image_ids: NDArray[np.int64]  # [N], in the order in which they are worked on
    draws: int  # M, noise draws of each image, fixed beforehand
    unit: int  # draws in a unit
    alpha: float  # failure probability of one certificate
    bound: Literal["lipschitz", "local"]
    s: Array  # [T], noise levels, model space
    weights: Array  # [T], of the levels' losses, summing to 1
    classes: int  # K
    dimensions: int  # D, pixels times channels

    @property
    def sigma_t(self) -> Array:
        """The noise levels [T] in pixel units."""
        return self.s / 2.0

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(start, stop) of every unit of an image; the last may be shorter."""
        return [(a, min(a + self.unit, self.draws)) for a in range(0, self.draws, self.unit)]

    # What progress and the certificates table call these things in a run of votes.

    @property
    def sigmas(self) -> tuple[float]:
        """No smoothing noise."""
        return (NO_SMOOTHING,)

    @property
    def n(self) -> int:
        """The draws that bound."""
        return self.draws

    @property
    def n0(self) -> int:
        """No draws only select: the class is chosen from those that bound it."""
        return 0


def plain_plan(
    config: Config, image_ids: NDArray[np.int64], classes: int, dimensions: int
) -> PlainPlan:
    """The plan of a configuration whose ``votes.bound`` is "lipschitz" or "local".

    Raises:
        ConfigError: another bound, or an impossible grid of noise levels.
    """
    bound = config.votes.bound
    if bound != "lipschitz" and bound != "local":
        raise ConfigError(f'votes.bound = "{bound}" needs votes: set "lipschitz" or "local"')
    s, weights = plain_levels(config)
    return PlainPlan(
        image_ids=image_ids,
        draws=config.plain.draws,
        unit=config.plain.unit,
        alpha=config.votes.alpha,
        bound=bound,
        s=s,
        weights=weights,
        classes=classes,
        dimensions=dimensions,
    )


def plain_levels(config: Config) -> tuple[Array, Array]:
    """Noise levels float64 [T] in model space, and their weights [T] summing to 1.

    Raises:
        ConfigError: the grid is impossible.
    """
    grid = config.noise_levels
    lowest = LOWEST_LEVEL if grid.min is None else grid.min
    try:
        levels = noise_levels(
            grid.grid, grid.weights, grid.levels, s_lo=lowest, s_max=grid.max, method="dc"
        )
    except ValueError as error:
        raise ConfigError(f"noise_levels: {error}") from None
    return levels.s, levels.weights / levels.weights.sum()
