"""What OpenAI's command lines say of an ADM network: their names in place of ours, all or none.

The tensors tell most of a network and are believed; a statement that they contradict is refused.
What they cannot tell has no default here: a network with the wrong number of heads, or told the
time on the wrong scale, loads and denoises badly.

Source: the flags of improved-diffusion and guided-diffusion, as their scripts publish them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from diffcert_ray.checkpoints.network_shape import PUBLISHED
from diffcert_ray.denoisers.configuration import PREDICTIONS, EdmConfiguration
from diffcert_ray.errors import CheckpointError, nearest

PRESET = "preset"
_HEADS = ("num_heads", "num_head_channels")
_UNTOLD = (
    "img_resolution", "num_heads", "num_head_channels", "qkv_order", "preconditioning", "schedule",
    "steps", "c_noise_scale", "sigma_data", "nearest_step",
)  # fmt: skip
_TRAINING_ONLY = (
    "dropout", "use_fp16", "fp16_scale_growth", "use_checkpoint", "use_kl",
    "rescale_learned_sigmas", "sigma_small", "timestep_respacing", "use_ddim", "clip_denoised",
    "batch_size", "microbatch",
    "num_samples", "lr", "lr_anneal_steps", "weight_decay", "ema_rate", "log_interval",
    "save_interval", "resume_checkpoint", "schedule_sampler", "data_dir", "data_name", "model_path",
    "classifier_path", "classifier_scale",
)  # fmt: skip
_ASKED = {
    "image_size": "pixels of a side",
    "num_heads": "heads of every attention, where num_head_channels was not set",
    "num_head_channels": "channels of a head, in place of num_heads",
    "use_new_attention_order": "false where the code has no such flag, true in consistency_models",
    "predict_xstart": "false unless the network returns the clean image",
    "noise_schedule": "linear or cosine",
    "diffusion_steps": "of training, not of sampling",
    "rescale_timesteps": "improved-diffusion's default is true, guided-diffusion's false",
}


def of_preset(named: str, name: Any) -> dict[str, Any]:
    """What tensors cannot tell of a published checkpoint.

    Args:
        named: how an error calls the checkpoint, such as "checkpoint PATH".
        name: in `PUBLISHED`; None: nothing is known.

    Raises:
        CheckpointError: no published checkpoint has that name.
    """
    if name is None:
        return {}
    if name not in PUBLISHED:
        raise CheckpointError(
            f"{named}: preset {name!r} is not known{nearest(str(name), PUBLISHED)}"
        )
    published = PUBLISHED[name]
    known = {key: published[key] for key in _UNTOLD if key in published}
    if "norm_groups" in published and "num_heads" not in known:
        known["num_head_channels"] = 64
    return {"c_noise_scale": 1.0, "preconditioning": "edm"} | known


def openai_settings(
    named: str, shape: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of `EdmConfiguration` of a network with OpenAI's names.

    Args:
        named: how an error calls the checkpoint, such as "checkpoint PATH".
        shape: of `openai_shape`.
        settings: by the names of OpenAI's command lines, by ours, or both.

    Raises:
        CheckpointError: something is not known, contradicts the tensors, or is missing; one message
            has all that is missing, and a JSON object to be completed.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    preset = of_preset(named, given.get(PRESET))
    stated = _translated(named, given)
    if stated.get("num_heads") or stated.get("num_head_channels"):
        preset = {key: value for key, value in preset.items() if key not in _HEADS}
    stated = preset | stated
    told = {key: value for key, value in shape.items() if key != "attn_levels"}
    if isinstance(size := stated.get("img_resolution"), int):
        told["attn_resolutions"] = tuple(size >> level for level in shape["attn_levels"])
    _refuse_contradictions(named, told, stated)
    if missing := _missing(stated):
        raise _incomplete(named, shape, given, stated, missing)
    heads = stated.get("num_head_channels")
    widths = [shape["model_channels"] * m for m in shape["channel_mult"]]
    attending = {widths[level] for level in (*shape["attn_levels"], len(widths) - 1)}
    split = heads or stated["num_heads"]
    if odd := sorted(width for width in attending if width % split):
        key = "num_head_channels" if heads else "num_heads"
        raise CheckpointError(
            f"{named}: {key} is {split}, but attention has {odd[0]} channels, which it does not "
            "divide: give the number of the command line that the network was trained with"
        )
    kept = {k: v for k, v in stated.items() if k in EdmConfiguration.model_fields}
    return {"norm_groups": 32, **told, **kept}


def _translated(named: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings; theirs are turned into ours, and those of training alone left out."""
    stated: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    known = (*_FLAGS, *_READ_TOGETHER, *EdmConfiguration.model_fields)
    for key, value in settings.items():
        if key in _FLAGS or key in _READ_TOGETHER:
            flags[key] = _plain(value)
        elif key in EdmConfiguration.model_fields:
            stated[key] = value
        elif key not in (*_TRAINING_ONLY, PRESET):
            raise CheckpointError(f"{named}: {key!r} is no setting{nearest(key, known)}")
    for key, value in flags.items():
        if key in _FLAGS:
            ours, convert = _FLAGS[key]
            try:
                stated.setdefault(ours, convert(value))
            except (TypeError, ValueError, KeyError):
                raise CheckpointError(f"{named}: {key} cannot be {value!r}") from None
    return stated | _together(named, flags, stated)


def _together(named: str, flags: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What flags say only together with others."""
    found: dict[str, Any] = {}
    heads, each = flags.get("num_heads", stated.get("num_heads")), flags.get("num_head_channels")
    if each not in (None, -1):  # as in their code: it goes before num_heads
        found |= {"num_head_channels": each, "num_heads": None}
    elif heads is not None:
        found["num_heads"] = heads
        if flags.get("num_heads_upsample", -1) not in (-1, heads):
            raise CheckpointError(
                f"{named}: num_heads_upsample is {flags['num_heads_upsample']} beside {heads} "
                "heads on the way down, a variant that is not read"
            )
    if flags.get("use_scale_shift_norm") is False:
        raise CheckpointError(f"{named}: use_scale_shift_norm is false, which its tensors exclude")
    rescaled, steps = flags.get("rescale_timesteps"), stated.get("steps")
    if rescaled is not None and "c_noise_scale" not in stated and steps is not None:
        found["c_noise_scale"] = 1000 / int(steps) if rescaled else 1.0
    return found


def _refuse_contradictions(named: str, told: Mapping[str, Any], stated: dict[str, Any]) -> None:
    """Raise where the tensors have something else than is stated."""
    facts = {**told, "class_cond": told["label_dim"] > 0}
    wrong = [
        f"{key} {stated[key]!r}, but they have {facts[key]!r}"
        for key in facts
        if key in stated and _comparable(stated[key]) != _comparable(facts[key])
    ]
    stated.pop("class_cond", None)
    if wrong:
        raise CheckpointError(
            f"{named}: its configuration says what its tensors exclude: {'; '.join(wrong)}. Leave "
            "out what they tell, or name the file that belongs to this configuration"
        )
    if told["learned_variance"] and stated.get("preconditioning", "epsilon") not in PREDICTIONS:
        raise CheckpointError(
            f"{named} returns {2 * told['img_channels']} channels for images of "
            f"{told['img_channels']}: a learned variance (learn_sigma), which no network of "
            f"preconditioning {stated['preconditioning']!r} has; state noise_schedule, "
            "diffusion_steps, rescale_timesteps and predict_xstart of its command line instead"
        )


def _missing(stated: Mapping[str, Any]) -> list[str]:
    """The flags that are lacking, in the order of `_ASKED`."""
    has = {key for key, value in stated.items() if value is not None}
    missing = []
    if "img_resolution" not in has:
        missing.append("image_size")
    if not has & {"num_heads", "num_head_channels"}:
        missing += ["num_heads", "num_head_channels"]
    if "qkv_order" not in has:
        missing.append("use_new_attention_order")
    if "preconditioning" not in has:
        missing.append("predict_xstart")
    if stated.get("preconditioning", "epsilon") in PREDICTIONS:
        if "schedule" not in has:
            missing.append("noise_schedule")
        if "steps" not in has:
            missing.append("diffusion_steps")
        # Of 1,000 steps both scales are the same.
        if "c_noise_scale" not in has and stated.get("steps") != 1000:
            missing.append("rescale_timesteps")
    elif "c_noise_scale" not in has:
        missing.append("c_noise_scale")
    return missing


def _incomplete(
    named: str,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    stated: Mapping[str, Any],
    missing: list[str],
) -> CheckpointError:
    """The error that asks for all that is missing, with JSON in which it is null."""
    known = {
        "num_channels": shape["model_channels"],
        "num_res_blocks": shape["num_blocks"],
        "channel_mult": list(shape["channel_mult"]),
        "class_cond": shape["label_dim"] > 0,
        "learn_sigma": shape["learned_variance"],
        "resblock_updown": shape["resampling"] == "block",
        "use_scale_shift_norm": True,
    }
    content = {**known, **settings, **dict.fromkeys(missing)}
    ways = [f"{key} ({_ASKED[key]})" if key in _ASKED else key for key in missing]
    text = ", ".join(ways).replace("), num_head_channels", ") or else num_head_channels")
    consistency = ""
    if not shape["learned_variance"] and "preconditioning" not in stated:
        consistency = (
            "; a network of consistency_models has preconditioning edm and c_noise_scale 1000 in "
            "place of predict_xstart and what follows it"
        )
    presets = ", ".join(name for name, s in PUBLISHED.items() if "norm_groups" in s)
    return CheckpointError(
        f"{named} has OpenAI's names and the shape of no published checkpoint, or a configuration "
        f"that is not complete. Its tensors cannot say: {text}{consistency}. Put this, with the "
        "values of its command line in place of null, into NAME.json beside it, or give it as "
        f"model.config or config=: {json.dumps(content)} . Or name there, as {PRESET!r}, the "
        f"published checkpoint that was trained with the same flags: {presets}"
    )


def _comparable(value: Any) -> Any:
    return tuple(sorted(value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """A flag as a number or truth value, where it is text of a command line."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in _TRUTHS:
        return _TRUTHS[text]
    try:
        return int(text)
    except ValueError:
        return value.strip()


def _truth(value: Any) -> bool:
    return _TRUTHS[str(value).lower()]


def _numbers(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(int(part) for part in ((parts,) if isinstance(parts, int) else parts))


_TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_READ_TOGETHER = (
    "num_heads", "num_head_channels", "num_heads_upsample", "rescale_timesteps",
    "use_scale_shift_norm",
)  # fmt: skip
_FLAGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "image_size": ("img_resolution", int),
    "num_channels": ("model_channels", int),
    "num_res_blocks": ("num_blocks", int),
    "channel_mult": ("channel_mult", _numbers),
    "attention_resolutions": ("attn_resolutions", _numbers),
    "class_cond": ("class_cond", _truth),
    "learn_sigma": ("learned_variance", _truth),
    "resblock_updown": ("resampling", lambda on: "block" if _truth(on) else "convolution"),
    "use_new_attention_order": ("qkv_order", lambda on: "parts" if _truth(on) else "head"),
    "noise_schedule": ("schedule", str),
    "diffusion_steps": ("steps", int),
    "predict_xstart": ("preconditioning", lambda on: "sample" if _truth(on) else "epsilon"),
}
