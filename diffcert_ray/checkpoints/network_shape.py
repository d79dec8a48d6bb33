"""What the tensors of a state dict tell of its network, and which published one it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from diffcert_ray.errors import CheckpointError


class HasShape(Protocol):
    """A tensor, as far as this module is concerned."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes."""
        ...


Tensors = Mapping[str, HasShape]

_DDPMPP = {
    "model_type": "SongUNet", "img_resolution": 32, "img_channels": 3, "model_channels": 128,
    "channel_mult": (2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,), "augment_dim": 9,
}  # fmt: skip
_NCSNPP = {
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}  # fmt: skip
_FFHQ = {"img_resolution": 64, "channel_mult": (1, 2, 2, 2)}
_ADM = {
    "model_type": "DhariwalUNet", "img_resolution": 64, "img_channels": 3, "label_dim": 1000,
    "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}  # fmt: skip
_OPENAI = {
    "norm_groups": 32, "learned_variance": True, "preconditioning": "epsilon",
    "schedule": "cosine", "steps": 1000, "qkv_order": "head",
}  # fmt: skip
_IMPROVED = {
    **_ADM, **_OPENAI, "attn_resolutions": (16, 8), "resampling": "convolution", "num_heads": 4,
    "steps": 4000,
}  # fmt: skip
# improved-diffusion tells the network t * 1000 / T, except where "rescale_timesteps" is off.
_RESCALED = {"c_noise_scale": 0.25}

PUBLISHED: dict[str, dict[str, Any]] = {
    "edm-cifar10-32x32-cond-vp": {**_DDPMPP, "label_dim": 10},
    "edm-cifar10-32x32-uncond-vp": _DDPMPP,
    "edm-cifar10-32x32-cond-ve": {**_DDPMPP, **_NCSNPP, "label_dim": 10},
    "edm-cifar10-32x32-uncond-ve": {**_DDPMPP, **_NCSNPP},
    "edm-ffhq-64x64-uncond-vp": {**_DDPMPP, **_FFHQ},
    "edm-ffhq-64x64-uncond-ve": {**_DDPMPP, **_NCSNPP, **_FFHQ},
    "edm-imagenet-64x64-cond-adm": _ADM,
    "guided-diffusion 64x64_diffusion": {**_ADM, **_OPENAI, "qkv_order": "parts"},
    "guided-diffusion 256x256_diffusion_uncond": {
        **_ADM, **_OPENAI, "label_dim": 0, "img_resolution": 256, "model_channels": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2, "schedule": "linear",
    },
    "guided-diffusion 256x256_diffusion": {
        **_ADM, **_OPENAI, "img_resolution": 256, "model_channels": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2, "schedule": "linear",
    },
    "guided-diffusion 128x128_diffusion": {
        **_ADM, **_OPENAI, "img_resolution": 128, "model_channels": 256,
        "channel_mult": (1, 1, 2, 3, 4), "num_blocks": 2, "schedule": "linear", "num_heads": 4,
    },
    "consistency_models edm_imagenet64_ema": {
        **_ADM, "norm_groups": 32, "qkv_order": "parts", "c_noise_scale": 1000.0,
    },
    "improved-diffusion imagenet64_cond_270M": _IMPROVED,
    "improved-diffusion imagenet64_uncond_100M": {
        **_IMPROVED, **_RESCALED, "label_dim": 0, "model_channels": 128,
    },
    "improved-diffusion cifar10_uncond_50M": {
        **_IMPROVED, **_RESCALED, "label_dim": 0, "model_channels": 128, "img_resolution": 32,
        "channel_mult": (1, 2, 2, 2),
    },
}  # fmt: skip
"""Configurations of published checkpoints, by name."""

# Left out of a network's shape where they are at these values.
_ABSENT = {
    "label_dim": 0, "augment_dim": 0, "embedding_type": "positional", "encoder_type": "standard",
    "channel_mult_noise": 1, "resample_filter": (1, 1), "resampling": "block",
    "learned_variance": False,
}  # fmt: skip


def published_as(shape: Mapping[str, Any], *, openai: bool) -> tuple[str, dict[str, Any]] | None:
    """Name and configuration of the published checkpoint whose network has this shape, or None.

    Args:
        shape: of `edm_shape` or `openai_shape`.
        openai: whether the tensors have OpenAI's names.
    """
    wanted = {**_ABSENT, **shape}
    for name, settings in PUBLISHED.items():
        complete = {**_ABSENT, **settings}
        complete["attn_levels"] = _attention_levels(complete)
        if openai == ("norm_groups" in settings) and all(
            complete.get(key) == value for key, value in wanted.items()
        ):
            return name, dict(settings)
    return None


def _attention_levels(settings: Mapping[str, Any]) -> tuple[int, ...]:
    resolutions = [settings["img_resolution"] >> i for i in range(len(settings["channel_mult"]))]
    return tuple(i for i, r in enumerate(resolutions) if r in settings["attn_resolutions"])


def edm_shape(tensors: Tensors) -> dict[str, Any]:
    """The settings that EDM's names and shapes imply; preconditioning cannot be told.

    Raises:
        CheckpointError: names that such a network does not have.
    """
    levels: dict[int, set[int]] = {}
    for name in tensors:
        if block := re.match(r"model\.enc\.(\d+)x\d+_block(\d+)\.", name):
            levels.setdefault(int(block[1]), set()).add(int(block[2]))
    resolutions = sorted(levels, reverse=True)
    if not resolutions or f"model.enc.{resolutions[0]}x{resolutions[0]}_conv.weight" not in tensors:
        raise CheckpointError("its tensors are not those of an EDM network")
    top = f"{resolutions[0]}x{resolutions[0]}"
    song = f"model.dec.{top}_aux_conv.weight" in tensors
    emb = _shape(tensors, "model.map_layer0.weight")
    base = emb[0] // 4
    widths = [_shape(tensors, f"model.enc.{r}x{r}_block0.conv1.weight")[0] for r in resolutions]
    first = _shape(tensors, f"model.enc.{top}_conv.weight")
    shape: dict[str, Any] = {
        "model_type": "SongUNet" if song else "DhariwalUNet",
        "img_resolution": resolutions[0],
        "img_channels": first[1],
        "model_channels": base,
        "channel_mult": tuple(width // base for width in widths),
        "num_blocks": max(levels[resolutions[0]]) + 1,
        "attn_resolutions": tuple(
            r for r in resolutions if f"model.enc.{r}x{r}_block0.qkv.weight" in tensors
        ),
    }
    head = f"model.dec.{top}_aux_conv.weight" if song else "model.out_conv.weight"
    if _shape(tensors, head)[0] == 2 * first[1]:
        shape["learned_variance"] = True
    for key in ("label", "augment"):
        if f"model.map_{key}.weight" in tensors:
            shape[f"{key}_dim"] = _shape(tensors, f"model.map_{key}.weight")[1]
    return shape | (_song_shape(tensors, emb, base, resolutions) if song else {})


def _song_shape(
    tensors: Tensors, emb: Sequence[int], base: int, resolutions: list[int]
) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    if "model.map_noise.freqs" in tensors:
        shape["embedding_type"] = "fourier"
    if emb[1] != base:
        shape["channel_mult_noise"] = emb[1] // base
    if any("aux_residual" in name for name in tensors):
        shape["encoder_type"] = "residual"
    if len(resolutions) > 1:
        second = f"model.enc.{resolutions[1]}x{resolutions[1]}_down.conv0.resample_filter"
        if second in tensors and _shape(tensors, second)[-1] == 4:
            shape["resample_filter"] = (1, 3, 3, 1)
    return shape


def openai_shape(tensors: Tensors) -> dict[str, Any]:
    """The settings that OpenAI's names and shapes imply.

    Neither the resolution, the number of heads and their order, nor the noise schedule can be told.
    "attn_levels", the levels with attention (0 the highest resolution), stands for
    "attn_resolutions".

    Raises:
        CheckpointError: names or shapes that such a network does not have, or has in a variant that
            is not known here.
    """
    count = len({name.split(".")[1] for name in tensors if name.startswith("input_blocks.")})
    ups = [
        int(up[1])
        for name in tensors
        if (up := re.match(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight$", name))
    ]
    per_level = min(ups) + 1 if ups else count
    if per_level < 2 or count % per_level:
        raise CheckpointError("its tensors are not those of an ADM network")
    starts = range(1, count, per_level)  # the first block of each level
    base = _shape(tensors, "time_embed.0.weight")[1]
    widths = [_shape(tensors, f"input_blocks.{i}.0.out_layers.3.weight")[0] for i in starts]
    if _shape(tensors, "input_blocks.1.0.emb_layers.1.weight")[0] != 2 * widths[0]:
        raise CheckpointError("it was made without use_scale_shift_norm, a variant not read here")
    channels = _shape(tensors, "input_blocks.0.0.weight")[1]
    shape: dict[str, Any] = {
        "model_type": "DhariwalUNet",
        "img_channels": channels,
        "model_channels": base,
        "channel_mult": tuple(width // base for width in widths),
        "num_blocks": per_level - 1,
        "attn_levels": tuple(
            level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in tensors
        ),
        "learned_variance": _shape(tensors, "out.2.weight")[0] == 2 * channels,
        "label_dim": 0,
        "resampling": "block",
    }
    if "label_emb.weight" in tensors:
        shape["label_dim"] = _shape(tensors, "label_emb.weight")[0]
    if f"input_blocks.{per_level}.0.op.weight" in tensors:
        shape["resampling"] = "convolution"
    return shape


def _shape(tensors: Tensors, name: str) -> Sequence[int]:
    if name not in tensors or len(tensors[name].shape) < 2:
        raise CheckpointError(
            f"its tensors are of no known network: {name} is missing or no matrix"
        )
    return tensors[name].shape
