"""The grid that pixels lie on: multiples of 1/65280, so that noise can be added exactly.

`method.grid` says why; images that are not on it are rounded to it where noise is added.
"""

import numpy as np
from numpy.typing import NDArray

STEPS = 255 * 256
"""Grid points in a unit of pixels: 8-bit and 4-bit images, and sixteenths, lie on the grid."""


def to_grid(pixels: NDArray[np.floating]) -> NDArray[np.int32]:
    """The nearest grid points of pixels.

    Args:
        pixels: any shape, pixel units in [0, 1].

    Returns:
        int32, the same shape; 0 to STEPS.
    """
    return np.rint(np.asarray(pixels, np.float64) * STEPS).astype(np.int32)


def off_grid(pixels: NDArray[np.floating]) -> float:
    """How far an image is from its nearest grid point, l2, pixel units; not below the true value.

    Args:
        pixels: one image, any shape, pixel units in [0, 1], float32.

    Returns:
        0.0 for an image whose float32 pixels are those of grid points (as quotients of 8-bit ones
        are: they stand for the fraction and not for its rounding).
    """
    exact = to_grid(pixels)
    if np.array_equal((exact / STEPS).astype(np.float32), pixels):
        return 0.0
    distance = np.linalg.norm(np.asarray(pixels, np.float64).ravel() - exact.ravel() / STEPS)
    return float(distance) * (1.0 + 1e-12)
