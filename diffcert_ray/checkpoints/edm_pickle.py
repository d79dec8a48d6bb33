"""Network and weights out of a published EDM checkpoint (.pkl), without running its code.

Such a file holds whole objects together with the source code of their classes. It is read as a
graph in which nothing has been called; the code is never looked at, the network is our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.errors import CheckpointError, explained
from diffcert_ray.pickle_graph import Made, PickleError, Stored, read_pickle_graph

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_STORAGE = "torch.storage._load_from_bytes"
_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")

ALLOWED = frozenset(
    {
        _PERSISTENT, _PARAMETER, _TENSOR, _STORAGE,
        "collections.OrderedDict", "dnnlib.util.EasyDict", "_codecs.encode",
        "builtins.set", "__builtin__.set", "builtins.bytearray", "__builtin__.bytearray",
        "torch.Size", "torch.device", *(f"torch.{dtype}" for dtype in _DTYPES),
        *(
            f"torch.nn.modules.container.{name}"
            for name in ("ModuleDict", "ModuleList", "Sequential")
        ),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core") for name in ("_reconstruct", "scalar")
        ),
        "numpy.ndarray", "numpy.dtype",
    }
)  # fmt: skip
"""Names that an EDM checkpoint may refer to; each is only noted, never imported or called."""

_MAX_DEPTH = 32
_PRECONDITIONING: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"preconditioning": "edm"},
    "VPPrecond": {"preconditioning": "vp"},
    "VEPrecond": {"preconditioning": "ve"},
    "iDDPMPrecond": {
        "preconditioning": "epsilon", "schedule": "cosine", "steps": 1000,
        "nearest_step": True, "learned_variance": True,
    },
}  # fmt: skip
# What the published classes take where their keyword is not given.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4,
        "attn_resolutions": [16], "dropout": 0.10,
    },
    "DhariwalUNet": {
        "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
        "attn_resolutions": [32, 16, 8], "dropout": 0.10,
    },
}  # fmt: skip
_PASSED_ON = (
    "img_resolution", "label_dim", "augment_dim", "model_channels", "channel_mult", "num_blocks",
    "attn_resolutions", "dropout", "embedding_type", "channel_mult_noise", "encoder_type",
    "decoder_type", "resample_filter",
)  # fmt: skip
# Settings of the published preconditioning that this package has as fixed facts.
_FIXED = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}


def read_edm_pickle(path: Path) -> tuple[EdmConfiguration, Made]:
    """What network a published EDM checkpoint (.pkl) holds.

    Returns:
        The configuration, and the module that holds the weights (see `edm_tensors`): the `ema`
        network within its preconditioning.

    Raises:
        CheckpointError: it asks for anything that an EDM checkpoint has no need of, is damaged, or
            holds no network that is known here.
    """
    try:
        root = read_pickle_graph(path, ALLOWED)
        network = _mapping(root, "the pickle").get("ema")
        if not isinstance(network, Made):
            raise PickleError("it holds no network under 'ema'")
        return _configuration(network), network
    except PickleError as error:
        raise CheckpointError(
            f"checkpoint {path} is refused, and nothing in it was run: {error}; fetch the file "
            "again from where it was published, or convert it to safetensors where it was made"
        ) from None


def edm_tensors(path: Path, network: Made) -> dict[str, Any]:
    """The weights of a network of `read_edm_pickle`, by names such as "model.map_layer0.weight".

    Raises:
        CheckpointError: a tensor is not built in the published way, or its storage is too small.
    """
    try:
        return {name: _tensor(name, made) for name, made in _named_tensors(network, "", 0, set())}
    except PickleError as error:
        raise CheckpointError(f"checkpoint {path} is refused: {error}") from None


def _configuration(network: Made) -> EdmConfiguration:
    outer, inner = _class_name(network), _submodule(network, "model")
    if outer not in _PRECONDITIONING:
        raise PickleError(
            f"its network is a {outer!r}: those read are {', '.join(_PRECONDITIONING)}"
        )
    model_type, around = _class_name(inner), _keywords(network)
    if model_type not in _DEFAULTS:
        raise PickleError(f"its network is a {model_type!r}: those read are {', '.join(_DEFAULTS)}")
    for key, value in _FIXED.get(outer, {}).items():
        if around.get(key, value) != value:
            raise PickleError(f"its {outer} has {key} = {around[key]!r}: only {value} is known")
    made_with = _DEFAULTS[model_type] | _keywords(inner)
    if made_with.get("channel_mult_emb", 4) != 4:
        raise PickleError(f"its channel_mult_emb is {made_with['channel_mult_emb']!r}, not 4")
    settings = {key: made_with[key] for key in _PASSED_ON if key in made_with}
    settings |= {"model_type": model_type, "img_channels": made_with.get("in_channels")}
    settings |= _PRECONDITIONING[outer]
    settings["has_unconditional"] = bool(
        not made_with.get("label_dim") or made_with.get("label_dropout")
    )
    if "sigma_data" in around:
        settings["sigma_data"] = around["sigma_data"]
    if around.get("sigma_min") and around.get("sigma_max") not in (None, math.inf):
        settings["s_range"] = (around["sigma_min"], around["sigma_max"])
    try:
        return EdmConfiguration.model_validate(settings)
    except ValidationError as error:
        raise PickleError(f"its network's settings are not valid: {explained(error)}") from None


def _parts(module: Any) -> tuple[str, Mapping[str, Any]]:
    """Class name and attributes of a pickled module."""
    if isinstance(module, Made) and module.by.name == _PERSISTENT:
        meta = _mapping(module.args[0] if module.args else None, "a persistent object")
        name = meta.get("class_name")
        if not isinstance(name, str):
            raise PickleError("a persistent object has no class_name")
        return name, _mapping(meta.get("state"), f"the state of {name[:60]!r}")
    if isinstance(module, Made) and module.by.name.startswith("torch.nn.modules.container."):
        return module.by.name, _mapping(module.state, f"the state of {module.by.name!r}")
    raise PickleError("a part of its network is no module")


def _class_name(module: Any) -> str:
    return _parts(module)[0]


def _keywords(module: Made) -> dict[str, Any]:
    """The keyword arguments that a persistent object was made with, as plain values."""
    name, state = _parts(module)
    if state.get("_init_args"):
        raise PickleError(f"its {name} was made with positional arguments: only keywords are read")
    keywords = _mapping(state.get("_init_kwargs"), f"_init_kwargs of {name!r}")
    return {str(key): _plain(value) for key, value in keywords.items()}


def _submodule(module: Made, name: str) -> Made:
    part = _mapping(_parts(module)[1].get("_modules"), "_modules").get(name)
    if not isinstance(part, Made):
        raise PickleError(f"its {_class_name(module)} has no part {name!r}")
    return part


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, Made) and value.by.name in (
        "collections.OrderedDict", "dnnlib.util.EasyDict"
    ):  # fmt: skip
        return value.items
    raise PickleError(f"{what} is no mapping")


def _plain(value: Any) -> Any:
    """A setting as None, bool, number, text or a flat list of them; others become their type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and len(value) < 100:
        return [_plain(entry) if not isinstance(entry, list | tuple) else "?" for entry in value]
    return f"a {type(value).__name__}"


def _named_tensors(
    module: Any, prefix: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Made]]:
    """(name, pickled tensor) of every parameter and persistent buffer below a module."""
    _, state = _parts(module)
    if depth > _MAX_DEPTH or id(module) in seen:
        raise PickleError(
            f"its module {prefix[:100]!r} is a part of itself, or stands in two places, or more "
            f"than {_MAX_DEPTH} deep"
        )
    seen.add(id(module))
    passing = state.get("_non_persistent_buffers_set") or ()
    passing = passing if isinstance(passing, set | frozenset) else ()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _mapping(state.get(kind, {}), kind).items():
            if tensor is not None and not (kind == "_buffers" and name in passing):
                yield f"{prefix}{name}", tensor
    for name, part in _mapping(state.get("_modules", {}), "_modules").items():
        if part is not None:
            yield from _named_tensors(part, f"{prefix}{name}.", depth + 1, seen)


def _tensor(name: str, made: Any) -> Any:
    """Build one tensor from its storage's bytes."""
    import torch

    if isinstance(made, Made) and made.by.name == _PARAMETER and made.args:
        made = made.args[0]
    if not isinstance(made, Made) or made.by.name != _TENSOR or len(made.args) < 4:
        raise PickleError(f"{name!r} is not built as tensors are")
    stored, offset, size, stride = made.args[:4]
    size, stride = _sizes(name, size), _sizes(name, stride)
    storage = _storage(name, stored)
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    last = _sizes(name, (offset,))[0] + (reach if math.prod(size) else 0)
    if len(size) != len(stride) or last > len(storage):
        raise PickleError(
            f"{name!r} has shape {list(size)} and strides {list(stride)} from {offset}, but its "
            f"storage holds {len(storage)} numbers"
        )
    return torch.as_strided(storage, size, stride, offset)


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, Made) and value.by.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in value):
        return value
    raise PickleError(f"{name!r} has {value!r:.60} where sizes are whole numbers")


def _storage(name: str, made: Any) -> Any:
    """The numbers of a typed storage as a flat tensor, read by torch's own weights-only loader."""
    import torch

    if not isinstance(made, Made) or made.by.name != _STORAGE or len(made.args) != 1:
        raise PickleError(f"the storage of {name!r} is not built as storages are")
    data = made.args[0]
    data = data.data if isinstance(data, Stored) else data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise PickleError(f"the storage of {name!r} is no bytes")
    try:
        storage = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever torch's loader meets in a hostile file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PickleError(f"the storage of {name!r} is refused by torch: {reason[:200]}") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise PickleError(
            f"the storage of {name!r} is a {type(storage).__name__}: only typed storages are read"
        )
    flat = torch.empty(0, dtype=storage.dtype)
    return flat.set_(storage._untyped_storage)
