"""The order in which a network keeps images and filters in memory."""

import torch
from torch import nn

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.errors import CheckpointError


def keep_channels_last(denoiser: Denoiser) -> None:
    """Let a denoiser keep all channels of a pixel together, in place.

    Convolutions hand on the order of their filters, so nothing needs to be done to the input. What
    it returns may differ from the usual order's in the last bits: another numerics kind.

    Args:
        denoiser: a torch module.

    Raises:
        CheckpointError: it is no torch module.
    """
    if not isinstance(denoiser, nn.Module):
        raise CheckpointError(
            f"numerics.channels_last is true, but a {type(denoiser).__name__} is no torch module: "
            "set numerics.channels_last = false"
        )
    denoiser.to(memory_format=torch.channels_last)
