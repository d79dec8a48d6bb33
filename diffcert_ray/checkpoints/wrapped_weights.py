"""The weights within what training programs save: mappings in mappings, prefixes before names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from diffcert_ray.errors import CheckpointError

logger = logging.getLogger(__name__)

AVERAGES = (
    "ema", "model_ema", "ema_model", "ema_state_dict", "params_ema", "state_dict_ema", "ema_params",
    "unet_ema", "ema_unet", "net_ema", "network_ema", "averaged_model", "shadow_params",
    "model_ema_state_dict", "ema_model_state_dict",
)  # fmt: skip
"""Keys of averaged weights, which are taken before others, the best first."""

WEIGHTS = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "unet", "denoiser",
    "module", "weights", "model_weights", "net_state_dict", "unet_state_dict", "classifier",
)  # fmt: skip
"""Keys of other weights, the best first."""

_COUNTERS = re.compile(
    r"(?:.*[._])?(?:step|steps|global_step|epoch|n_averaged|initted|iteration|iter|num_updates|decay"
    r"|num_batches_tracked_total)$"
)
_MEANS, _STDS = ("means", "mean"), ("sds", "std", "stds")
_DEPTH = 6
_SHOWN = 5


def weights_in(content: Any, named: str) -> dict[str, Tensor]:
    """The tensors that are a network's weights, by name, with prefixes as they stand.

    Averaged weights (EMA) are taken where there are any, and that is said. Step counters beside
    tensors are left out.

    Args:
        content: what a file holds.
        named: how an error calls it, such as "checkpoint PATH".

    Raises:
        CheckpointError: no mapping from names to tensors is in it, or values that are none.
    """
    path: list[str] = []
    for _ in range(_DEPTH):
        key = _inner(content)
        if key is None:
            break
        path.append(key)
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{named} is no plain state dict: it holds a {type(content).__name__}, no state dict; "
            "save network.state_dict()"
        )
    if any(key in AVERAGES for key in path):
        logger.warning("%s: the averaged weights are taken, %r", named, ".".join(path))
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
    stray = [
        f"{key} ({type(value).__name__})"
        for key, value in others.items()
        if not (tensors and _COUNTERS.match(str(key)))
    ]
    if stray or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f"{named} is no plain state dict: {', '.join(stray[:_SHOWN])} are no tensors; save "
            "network.state_dict() alone"
        )
    return {k: v for k, v in tensors.items() if not (v.ndim == 0 and _COUNTERS.match(k))}


def _inner(content: Any) -> str | None:
    """The key below which the weights are, or None where they are here."""
    if not isinstance(content, Mapping):
        return None
    inside = [k for k, v in content.items() if isinstance(v, Mapping) and _holds_tensors(v)]
    here = sum(isinstance(value, Tensor) and value.ndim > 1 for value in content.values())
    if here or not inside:
        return None
    best = [key for key in (*AVERAGES, *WEIGHTS) if key in inside]
    if best:
        return best[0]
    return str(inside[0]) if len(inside) == 1 and isinstance(inside[0], str) else None


def _holds_tensors(content: Mapping[Any, Any], depth: int = _DEPTH) -> bool:
    return any(
        isinstance(v, Tensor) or (isinstance(v, Mapping) and depth and _holds_tensors(v, depth - 1))
        for k, v in content.items()
        if not isinstance(k, int)
    )


def below(tensors: Mapping[str, Tensor], anchor: str) -> tuple[str, dict[str, Tensor]] | None:
    """A network's tensors, without what wrappers put before every name.

    Args:
        tensors: by the names in the file.
        anchor: regular expression of how a name that only such a network has ends.

    Returns:
        What stands before the network's names, and its tensors; of several networks the averaged
        one, else the first. None where no name ends like that.
    """
    found = [
        m[: -len(hit[0])] for m in tensors if (hit := re.search(rf"(?:^|(?<=\.)){anchor}$", m))
    ]
    if not found:
        return None
    averaged = [prefix for prefix in found if "ema" in prefix]
    prefix = (averaged or found)[0]
    if averaged:
        logger.warning("the averaged weights are taken, those below %r", prefix)
    kept = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if left := [name for name in tensors if not name.startswith(prefix)]:
        logger.warning("%d tensors beside the network are not read: %s, ...", len(left), left[0])
    return prefix, kept


class NormalisationLayer(NamedTuple):
    """A layer before the network that subtracts and divides, pixel units; None: not in the file."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def classifier_weights(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], NormalisationLayer | None]:
    """A classifier's tensors without what wrappers put before every name.

    Args:
        tensors: by the names in the file.
        wanted: the network's own names.

    Returns:
        The tensors, as they are where no prefix makes all names fit; and the layer before the
        network in a sequence ("1." in the prefix), None where there is none.
    """
    first = next(iter(wanted))
    prefixes = [n[: -len(first)] for n in tensors if n == first or n.endswith(f".{first}")]
    fitting = [p for p in prefixes if all(f"{p}{name}" in tensors for name in wanted)]
    if not fitting:
        return dict(tensors), None
    prefix = min(fitting, key=lambda p: ("ema" not in p, len(p)))
    if "ema" in prefix:
        logger.warning("the averaged weights are taken, those below %r", prefix)
    inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    parts = prefix.split(".")
    if "1" not in parts:
        return inner, None
    before = "".join(f"{part}." for part in parts[: parts.index("1")])
    held = {
        kind: next(
            (_numbers(tensors[f"{before}0.{k}"]) for k in names if f"{before}0.{k}" in tensors),
            None,
        )
        for kind, names in (("mean", _MEANS), ("std", _STDS))
    }
    return inner, NormalisationLayer(held["mean"], held["std"])


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(float(x) for x in tensor.flatten().tolist())
