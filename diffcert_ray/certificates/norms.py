"""Radii in other norms that follow from an l2 radius alone: balls of theirs within the l2 ball."""

import math
from typing import Final

NORMS: Final = ("linf", "l1")


def check_norm(norm: str) -> None:
    """Refuse the name of a norm that is not in NORMS.

    Args:
        norm: "linf" or "l1".

    Raises:
        ValueError: it is another.

    Source: ours.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} is not known: use {' or '.join(NORMS)}")


def derived_radius(radius: float, norm: str, dimensions: int) -> float:
    """The largest ball of another norm within the open l2 ball of a radius, rounded down.

    Args:
        radius: certified l2 radius, pixel units, finite, >= 0.
        norm: "linf" or "l1".
        dimensions: numbers in an image, channels x height x width, >= 1.

    Returns:
        Radius of the open ball, pixel units: radius / sqrt(dimensions) for linf; the radius itself
        for l1.

    Raises:
        ValueError: a value is out of range.

    Source: ||x||_2 <= sqrt(D) ||x||_inf and ||x||_2 <= ||x||_1; both are attained, so that nothing
        more follows from an l2 radius alone.
    """
    check_norm(norm)
    if not (math.isfinite(radius) and radius >= 0.0):
        raise ValueError(f"radius={radius!r} must be finite and at least 0; 0.0 where abstained")
    if dimensions < 1:
        raise ValueError(f"dimensions={dimensions} must be at least 1: numbers in an image")
    if norm == "l1" or radius == 0.0:
        return radius
    quotient = radius / math.sqrt(dimensions)  # two roundings: less than two steps above the truth
    for _ in range(2):
        quotient = math.nextafter(quotient, 0.0)
    return quotient
