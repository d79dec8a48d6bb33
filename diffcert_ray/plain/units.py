"""Units of work of a plain certificate: losses to evaluate, and what a worker returns of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class LossUnit:
    """A fixed range of draws of one image, at every noise level and class."""

    image_id: int
    start: int  # first draw
    stop: int  # one past the last draw

    @property
    def draws(self) -> int:
        """Number of draws in the unit."""
        return self.stop - self.start


@dataclass(frozen=True)
class LossItem:
    """What one call of a worker evaluates: complete units."""

    item_id: int  # number within the run of this driver
    units: tuple[LossUnit, ...]  # at least one

    @property
    def votes(self) -> int:
        """Number of draws in the item."""
        return sum(unit.draws for unit in self.units)


@dataclass(frozen=True, eq=False)
class UnitLosses:
    """The losses of one unit."""

    unit: LossUnit
    sums: NDArray[np.float64]  # [T, K], of the single-draw losses (each in [0, 1], pixel units)
    squares: NDArray[np.float64]  # [T, K], of their squares
    nfe: int
    seconds: float  # worker time

    @property
    def votes(self) -> int:
        """Number of draws, as progress counts them."""
        return self.unit.draws


@dataclass(frozen=True)
class LossResult:
    """What an item of losses returned, and what it cost."""

    item_id: int
    tallies: tuple[UnitLosses, ...]  # one for each of the item's units
    nfe: int
    padded: int  # rows evaluated only to fill fixed-shape batches
    seconds: float  # wall time on the worker
    worker: str = ""  # its name, which the worker adds, as it does its numerics kind
    device: str = "cpu"
    numerics: str = ""
    computed_on: str = ""  # model of the device and version of torch
