"""The network of a training: what [network] leaves open follows from the images' resolution."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from diffcert_ray.config.training import load_denoiser_training
from diffcert_ray.config.training_tables import DenoiserTraining, NetworkConfig
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.errors import ConfigError, explained

FAMILIES: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_type": "SongUNet"},
    "ncsnpp": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {"model_type": "DhariwalUNet"},
}
"""What tells the families apart: Karras et al. 2022 (arXiv:2206.00364), table 7."""

_MOST_LEVELS, _COARSEST = 4, 4
_SPREAD = 4.5  # standard deviations of ln s on either side
_ONE_HEAD = 64  # channels


def configuration_of(
    config: DenoiserTraining, image_shape: tuple[int, int, int], num_classes: int
) -> EdmConfiguration:
    """The configuration of the network that a training is of.

    Args:
        config: its [network] and [training].
        image_shape: (C, H, W) of the images.
        num_classes: K.

    Raises:
        ConfigError: images that are not square, a resolution that the levels cannot halve, or
            settings that do not fit together.
    """
    channels, height, width = image_shape
    if height != width:
        raise ConfigError(
            f"the images are {height} x {width} pixels, but EDM's networks take squares: store "
            "them cut or filled up to squares of one size"
        )
    network = config.network
    mult = network.channel_mult or _channel_mult(height)
    step = 2 ** (len(mult) - 1)
    if height % step:
        raise ConfigError(
            f"network.channel_mult = {list(mult)} has {len(mult)} levels, which halve the "
            f"resolution {len(mult) - 1} times, but the images are {height} x {height} pixels, no "
            f"multiple of {step}: give fewer levels, or images of another size"
        )
    levels = [height // 2**level for level in range(len(mult))]
    if strange := [r for r in network.attn_resolutions or () if r not in levels]:
        raise ConfigError(
            f"network.attn_resolutions has {strange[0]}, but the levels have "
            f"{', '.join(map(str, levels))} pixels: name some of these"
        )
    settings = FAMILIES[network.family] | _sizes(network, height) | {
        "img_resolution": height,
        "img_channels": channels,
        "label_dim": num_classes,
        "channel_mult": mult,
        "dropout": network.dropout,
        "sigma_data": network.sigma_data,
        "s_range": network.s_range or _s_range(config),
        "has_unconditional": config.training.label_dropout > 0,
    }  # fmt: skip
    try:
        return EdmConfiguration.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"[network] does not fit together: {explained(error)}") from None


def digits_configuration(network: str = "ddpmpp", channels: int = 16) -> EdmConfiguration:
    """The configuration of a network for the digits; the shipped model's by default.

    Args:
        network: a name of FAMILIES.
        channels: of the first level, a multiple of 4; the second level has twice as many.

    Raises:
        ConfigError: another network, or channels of which none can be built.
    """
    overrides = (f"network.family={network}", f"network.model_channels={channels}")
    return configuration_of(load_denoiser_training("digits", overrides), (1, 8, 8), 10)


def fresh_denoiser(configuration: EdmConfiguration) -> EdmDenoiser:
    """The denoiser with fresh weights, from torch's generator; ConfigError if it cannot be made."""
    try:
        return EdmDenoiser(configuration)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no network can be made of network.model_channels = {configuration.model_channels} "
            f"and network.channel_mult = {list(configuration.channel_mult)} ({error}): from 128 "
            "channels on, those of a level, and what it sees from its neighbours, must be "
            "multiples of 32"
        ) from None


def _channel_mult(resolution: int) -> tuple[int, ...]:
    levels = 1
    while levels < _MOST_LEVELS and resolution % 2 == 0 and resolution > _COARSEST:
        resolution, levels = resolution // 2, levels + 1
    return (1, *(2,) * (levels - 1))


def _sizes(network: NetworkConfig, resolution: int) -> dict[str, Any]:
    channels = network.model_channels or next(
        (width for most, width in ((8, 16), (16, 32), (32, 64)) if resolution <= most), 128
    )
    attention = (16,) if resolution > 16 else ()
    sizes: dict[str, Any] = {
        "model_channels": channels,
        "num_blocks": network.num_blocks or (1 if resolution <= 16 else 2),
        "attn_resolutions": (
            attention if network.attn_resolutions is None else network.attn_resolutions
        ),
    }
    if network.channel_mult_noise is not None:
        if network.family == "adm":
            raise ConfigError(
                f"network.channel_mult_noise = {network.channel_mult_noise} is a setting of ddpmpp "
                "and ncsnpp, not of adm, which has 4 already: leave it out"
            )
        sizes["channel_mult_noise"] = network.channel_mult_noise
    heads = network.num_heads
    if network.family == "adm":
        sizes["num_heads"] = heads or (1 if channels < _ONE_HEAD else None)
    elif heads is not None:
        raise ConfigError(
            f'network.num_heads = {heads} is a setting of adm, not of "{network.family}": leave it '
            "out"
        )
    return sizes


def _s_range(config: DenoiserTraining) -> tuple[float, float]:
    about = config.training
    low, high = (math.exp(about.p_mean + side * _SPREAD * about.p_std) for side in (-1, 1))
    return float(f"{low:.2g}"), float(f"{high:.2g}")
