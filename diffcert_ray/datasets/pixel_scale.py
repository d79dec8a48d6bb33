"""Pixels where they enter: float32 [C, H, W] in [0, 1], or refused with range, cause and remedy.

A radius is in the units of the pixels: images of 0..255 would be certified at 255 times the radius
that holds, and nothing later could notice. Pixels in range are passed on bit for bit, because a
certificate is about the pixels that were given.

Shape letters: C H W image, B images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffcert_ray.datasets.pixels import from_bytes
from diffcert_ray.errors import PixelsError

TOLERANCE: Final = 2.0**-20
"""How far beyond 0 and 1 pixels may lie: rounding of float32 (8 steps at 1), and no other scale.

Such pixels are not clipped: the certificate holds for them as they are.
"""
DARKEST: Final = 1 / 255 + TOLERANCE
"""Where no pixel of a whole dataset is larger, the scale is asked about."""
_CHANNELS: Final = (1, 3, 4)
_LEVELS: Final = "divide by 255 (or by the largest level that the format has)"


class ScaleError(ValueError):
    """Pixels on another scale, said by what knows nothing of image ids; ``fault`` has the range."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclasses.dataclass(frozen=True)
class Fault:
    """What was seen of pixels that cannot be taken.

    Args:
        low, high: the range of the finite ones; NaN where there are none.
        odd: how many are not finite.
        whole: whether all of them are whole numbers.
        dtype: in numpy's words.
    """

    low: float
    high: float
    odd: int
    whole: bool
    dtype: str

    def and_others(self, others: Sequence[Fault]) -> Fault:
        """The same of several images together, whose range tells the cause better than one's."""
        faults = (self, *others)
        return dataclasses.replace(
            self,
            low=float(np.fmin.reduce([f.low for f in faults])),
            high=float(np.fmax.reduce([f.high for f in faults])),
            odd=sum(f.odd for f in faults),
            whole=all(f.whole for f in faults),
        )

    @property
    def seen(self) -> str:
        """The range, in words."""
        low, high = (f"{v:.7g}" for v in (self.low, self.high))
        if not self.odd:
            return f"from {low} to {high} ({self.dtype})"
        others = "no other" if np.isnan(self.low) else f"the others from {low} to {high}"
        return f"of which {self.odd} are NaN or infinite, {others} ({self.dtype})"

    def __str__(self) -> str:
        return f"pixels {self.seen}, where floats in [0, 1] are meant: {self.remedy}"

    @property
    def remedy(self) -> str:
        """The likely cause, and what to do."""
        if self.odd:
            return (
                "probably a division by zero, an overflow, or an image that was never filled; "
                "repair these images or choose others"
                + (
                    ""
                    if not self.low < -TOLERANCE and not self.high > 1 + TOLERANCE
                    else f"; the others are {'; '.join(_cause(self.low, self.high, self.whole))}"
                )
            )
        if self.dtype == "bool":
            return "truth values, whose scale is not said; give x.astype(np.float32) if True is 1.0"
        if "int" in self.dtype and self.low >= 0 and self.high <= 1:
            return (
                "whole numbers of 0 and 1 only may be on the scale [0, 1] or grey levels 0..255; "
                "give x.astype(np.float32) if 1 is the brightest there is; if 255 is, divide by "
                "255: x.astype(np.float32) / 255"
            )
        if "int" in self.dtype and self.low >= 0 and self.high <= 255:
            return (
                "whole numbers are read as grey levels 0..255 only where they are uint8; give "
                f"x.astype(np.uint8) if they are such levels, or floats: {_LEVELS}"
            )
        cause, remedy = _cause(self.low, self.high, self.whole)
        return f"probably {cause}; {remedy}"


def as_pixels(given: ArrayLike) -> NDArray[np.float32]:
    """Images as all methods take them: floats in [0, 1] as they are, uint8 divided by 255.

    Args:
        given: one image or several; floats, or uint8 that are not all 0 and 1.

    Returns:
        float32 of the same shape; floats have the bits of their float32 values.

    Raises:
        ScaleError: pixels beyond [0, 1] by more than TOLERANCE, NaN or infinite, or of a type that
            does not say its scale.
    """
    values = np.asarray(given)
    if values.dtype == np.uint8:
        check_levels(values)
        return from_bytes(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise ScaleError(_fault(values))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite then, and refused
        pixels = values.astype(np.float32, copy=False)
    if pixels.size and not (pixels.min() >= -TOLERANCE and pixels.max() <= 1 + TOLERANCE):
        raise ScaleError(_fault(values))
    return pixels


def check_levels(values: NDArray[np.uint8]) -> None:
    """Ask about uint8 images that are all 0 and 1: ScaleError says how to answer."""
    if values.max(initial=0) == 1:
        raise ScaleError(_fault(values))


def check_published(values: NDArray[Any], where: str) -> None:
    """Refuse pixels of a published file that are no uint8, as its format has them.

    Raises:
        PixelsError: what they are instead, and what to do.
    """
    if values.dtype != np.uint8:
        raise PixelsError(
            f"{where} has pixels {_fault(values).seen}, where the published files have uint8 of 0 "
            "to 255: fetch it again, or store uint8 (np.rint(x * 255).astype(np.uint8) of floats "
            "in [0, 1]); floats in [0, 1] may be given as Parquet or as a Dataset"
        )


def as_images(given: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Several images as ``as_pixels`` gives them, or which of them are wrong.

    Args:
        given: [B, C, H, W].
        what: name of one of them, for the message.

    Raises:
        PixelsError: how many cannot be taken, the first one's range, and what to do.
    """
    try:
        return as_pixels(given)
    except ScaleError as error:
        together = error
    if given.dtype == np.uint8:  # asked about together: one alone may be a dark image
        raise PixelsError(f"{what}: {together}")
    wrong: dict[int, Fault] = {}
    for position, image in enumerate(given):
        try:
            as_pixels(image)
        except ScaleError as error:
            wrong[position] = error.fault
    raise PixelsError(said_of(wrong, len(given), what))


def said_of(wrong: dict[int, Fault], count: int, what: str) -> str:
    """The message about some images of a number of them: one is named, and how many there are."""
    first, *others = wrong.values()
    named, together = f"{what} {next(iter(wrong))} has", first.and_others(others)
    if count == 1:
        return f"{named} {first}"
    if first.seen != together.seen:
        named += f" pixels {first.seen}, all of them have"
    return f"{len(wrong)} of {count} images are not in [0, 1]: {named} {together}"


def check_channel_order(shape: Sequence[int], wanted: Sequence[int] | None, what: str) -> None:
    """Refuse an image H x W x C where C x H x W is meant.

    Args:
        shape: of an image.
        wanted: what the network takes, None where nobody knows.
        what: whose shape it is, for the message.

    Raises:
        PixelsError: the last axis is probably the channels.
    """
    given = tuple(shape)
    if wanted is not None and given == tuple(wanted):
        return
    likely = len(given) == 3 and given[-1] in _CHANNELS and given[0] not in _CHANNELS
    likely = likely and given[1] != 1  # [D, 1, 1] is a vector
    if likely or (wanted is not None and len(given) == 3 and given == (*wanted[1:], wanted[0])):
        takes = "" if wanted is None else f" (the network takes {tuple(wanted)})"
        raise PixelsError(
            f"{what} has shape {given}, probably height x width x channels, where channels x "
            f"height x width is meant{takes}: transpose, x.transpose(2, 0, 1) for one image and "
            "x.transpose(0, 3, 1, 2) for several"
        )


def _fault(values: NDArray[Any]) -> Fault:
    """What the pixels of refused images look like; slow, since it is needed once."""
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise PixelsError(f"pixels are {values.dtype}, not numbers: give float32 in [0, 1]")
    if np.issubdtype(values.dtype, np.complexfloating):
        raise PixelsError(f"pixels are {values.dtype}: give real numbers, float32 in [0, 1]")
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    return Fault(
        low=float(low),
        high=float(high),
        odd=numbers.size - finite.size,
        whole=bool((finite == np.rint(finite)).all()),
        dtype=str(values.dtype),
    )


def _cause(low: float, high: float, whole: bool) -> tuple[str, str]:
    """The likely cause of a finite range that leaves [0, 1], and the remedy."""
    within = functools.partial(_within, low, high)
    if within(-0.1, 1.25) and not whole:
        return (
            "an interpolation that overshoots, as bicubic and Lanczos resizing do",
            "clip them, np.clip(x, 0, 1), as the images that are to be certified",
        )
    if low >= -TOLERANCE or (high > 16 and low >= -high / 5):  # resized levels overshoot
        return _cause_of_levels(high, whole)
    if within(-0.5, 0.5):
        return "centred, [-0.5, 0.5]", "give x + 0.5"
    if within(-1.25, 1.25):
        return (
            "scaled to [-1, 1]",
            "give (x + 1) / 2; if they were standardised, undo the normalisation: x * std + mean",
        )
    if within(-16, 16):
        return (
            "standardised, (x - mean) / std",
            "undo the normalisation: x * std + mean, with the mean and std that were used",
        )
    if within(-256, 256):
        return (
            "grey levels 0..255 less 128 or less a mean",
            "add what was subtracted, then divide by 255",
        )
    return "on no scale that is known here", "bring them to [0, 1], where 1 is the brightest"


def _cause_of_levels(high: float, whole: bool) -> tuple[str, str]:
    """The same for a range from 0 up."""
    if whole and high <= 16:
        return (
            "grey levels as floats",
            "divide by 255, or by the largest level that they have (16 for scikit-learn's digits)",
        )
    if high <= 16:
        return (
            "standardised, (x - mean) / std, or grey levels of a dark image as floats",
            "undo the normalisation: x * std + mean; or divide by 255",
        )
    if high <= 320:
        return "grey levels 0..255 (uint8) as floats", _LEVELS
    if high <= 65535:
        return (
            "grey levels of more than 8 bits",
            "divide by the largest level that the format has: 65535 for 16 bits, 4095 for 12",
        )
    return "on no scale that is known here", "bring them to [0, 1], where 1 is the brightest"


def _within(low: float, high: float, lowest: float, highest: float) -> bool:
    return low >= lowest - TOLERANCE and high <= highest + TOLERANCE
