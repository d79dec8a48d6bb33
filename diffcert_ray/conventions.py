"""The numbers and conversions that code in many places agrees on, each named once."""

import math

ABSTAIN = -1
"""The class of a certificate that certifies nothing."""
ALL_CLASSES = -1
"""The target of votes that may be for any class."""
NO_CLASS = -1
"""The label that stands for "no class": the denoiser's unconditional mode."""
NOT_TARGET = -2
"""The class of a vote that is not for the target class, or that stayed unresolved."""
OPEN = -1
"""What a vote has as its class while it has none."""
DENOISE = -1
"""The entry, in place of a noise level's, of the row that makes a vote's denoised input."""
NO_SMOOTHING = 0.0
"""The sigma of certificates without votes, in the store and in noise addresses."""
STREAM_NAMES = ("select", "estimate")
"""The streams of votes: those that choose the class, and those that bound its probability."""
MAX_IMAGE_ID = 2**32 - 1
"""The largest image_id: what an address of noise holds."""


def to_model_space(sigma: float) -> float:
    """Convert a smoothing noise from pixel space to model space.

    Args:
        sigma: standard deviation for images in [0, 1], >= 0.

    Returns:
        s = 2 * sigma, the same noise for images in [-1, 1].

    Raises:
        ValueError: sigma is negative or not finite.

    Source: u = 2x - 1 doubles every distance (ours).
    """
    if not (math.isfinite(sigma) and sigma >= 0.0):
        raise ValueError(f"sigma is {sigma}, it must be a finite number >= 0 (pixels in [0, 1])")
    return 2.0 * sigma
