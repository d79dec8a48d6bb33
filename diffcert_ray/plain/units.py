"""Units of work of a plain certificate: losses to evaluate, and what a worker returns of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class LossUnit:
    """A fixed range of draws of one image, at every noise level and class.

    Args:
        image_id: the dataset's number of the image.
        start: first draw.
        stop: one past the last draw.
    """

    image_id: int
    start: int
    stop: int

    @property
    def draws(self) -> int:
        """Number of draws in the unit."""
        return self.stop - self.start


@dataclass(frozen=True)
class LossItem:
    """What one call of a worker evaluates: complete units.

    Args:
        item_id: number within the run of this driver.
        units: at least one.
    """

    item_id: int
    units: tuple[LossUnit, ...]

    @property
    def votes(self) -> int:
        """Number of draws in the item."""
        return sum(unit.draws for unit in self.units)


@dataclass(frozen=True, eq=False)
class UnitLosses:
    """The losses of one unit.

    Args:
        unit: which draws.
        sums: float64 [T, K], sums of the single-draw losses (each in [0, 1], pixel units).
        squares: float64 [T, K], sums of their squares.
        nfe: evaluations of the denoiser.
        seconds: worker time.
    """

    unit: LossUnit
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    nfe: int
    seconds: float

    @property
    def votes(self) -> int:
        """Number of draws, as progress counts them."""
        return self.unit.draws


@dataclass(frozen=True)
class LossResult:
    """What an item of losses returned, and what it cost.

    Args:
        item_id: the item's number.
        tallies: one entry for each of the item's units.
        nfe: evaluations of the denoiser.
        padded: rows evaluated only to fill fixed-shape batches.
        seconds: wall time on the worker.
        device: the device's name.
        worker: the worker's name, which the worker adds.
        numerics: its numerics kind, likewise.
    """

    item_id: int
    tallies: tuple[UnitLosses, ...]
    nfe: int
    padded: int
    seconds: float
    worker: str = ""
    device: str = "cpu"
    numerics: str = ""
