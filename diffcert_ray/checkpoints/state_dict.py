"""State dicts (.pt) of EDM networks and of OpenAI's ADM networks: what network they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcert_ray.checkpoints.adm_names import from_openai_names
from diffcert_ray.checkpoints.configuration_text import read_json, validated
from diffcert_ray.checkpoints.network_family import not_read
from diffcert_ray.checkpoints.network_shape import edm_shape, openai_shape, published_as
from diffcert_ray.checkpoints.openai_flags import PRESET, of_preset, openai_settings
from diffcert_ray.checkpoints.tensors import torch_tensors_of
from diffcert_ray.checkpoints.wrapped_weights import below
from diffcert_ray.denoisers.configuration import PREDICTIONS, EdmConfiguration
from diffcert_ray.errors import CheckpointError

_SHOWN = 3
_OPENAI = r"input_blocks\.0\.0\.weight"
_EDM = r"(?:model\.)?enc\.\d+x\d+_conv\.weight"


@dataclass(frozen=True)
class StateDict:
    """What a state dict holds.

    Attributes:
        tensors: by our names, as in "model.map_layer0.weight".
        published: name of the published checkpoint that it was recognised as; None if it was not
            recognised but described.
    """

    configuration: EdmConfiguration
    tensors: dict[str, Tensor]
    published: str | None


def read_state_dict(path: Path, config: Mapping[str, Any] | None = None) -> StateDict:
    """Read a state dict of an EDM network, or of one of OpenAI's ADM networks.

    The configuration is ``config`` or else NAME.json beside the file; what it leaves open is taken
    from the tensors. With neither, the shape must be that of a published checkpoint. That tensors
    and configuration fit each other is not checked yet.

    Raises:
        CheckpointError: torch refuses the file, it holds no state dict, or its network is
            not known.
    """
    read = torch_tensors_of(path, f"checkpoint {path}")
    tensors, openai = _network_in(path, read)
    beside = path.with_suffix(".json")
    settings = dict(read_json(beside, path)) if beside.is_file() else {}
    settings = {**settings.get("configuration", settings), **dict(config or {})}
    try:
        shape = openai_shape(tensors) if openai else edm_shape(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    name = None
    if settings:
        settings = _completed(path, shape, settings, openai=openai)
    elif published := published_as(shape, openai=openai):
        name, settings = published
    else:
        settings = _completed(path, shape, {}, openai=openai)
    configuration = validated(path, settings, None)
    if openai:
        tensors = from_openai_names(tensors, configuration)
    return StateDict(configuration, tensors, name)


def _completed(
    path: Path, shape: Mapping[str, Any], settings: Mapping[str, Any], *, openai: bool
) -> dict[str, Any]:
    """The settings, with what they leave open taken from the tensors."""
    named = f"checkpoint {path}"
    if openai:
        return openai_settings(named, shape, settings)
    stated = {key: value for key, value in settings.items() if value is not None}
    stated = of_preset(named, stated.pop(PRESET, None)) | stated
    if not stated or settings.get("preconditioning", "") is None:
        raise _unknown(path, shape)
    return {**shape, **stated}


def _unknown(path: Path, shape: Mapping[str, Any]) -> CheckpointError:
    content = json.dumps({**shape, "preconditioning": None})
    return CheckpointError(
        f"checkpoint {path} has no complete configuration and the shape of no published "
        f"checkpoint: put this into {path.with_suffix('.json').name} beside it, or give it as "
        f"config=, with preconditioning in place of null (edm, vp, ve, {', '.join(PREDICTIONS)}), "
        f"which its tensors cannot say: {content}"
    )


def _network_in(path: Path, read: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The network's tensors without the prefixes of wrappers, and whether its names are OpenAI's.

    One of EDM's has "model." before every name, as within its preconditioning.
    """
    family = not_read(read)
    if family is None and (found := below(read, _OPENAI)) is not None:
        return found[1], True
    if family is None and (found := below(read, _EDM)) is not None:
        inner = found[1]
        if all(name.startswith("model.") or name == "u" for name in inner):
            return inner, False
        return {f"model.{name}": tensor for name, tensor in inner.items()}, False
    shown = ", ".join(list(read)[:_SHOWN])
    kind = "of no network that is known here" if family is None else f"those of {family}"
    raise CheckpointError(
        f"checkpoint {path}: its tensors are not those of an EDM network or an "
        f"ADM network: their names ({shown}, ...) are {kind}"
    )
