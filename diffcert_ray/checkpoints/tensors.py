"""The tensors in a file, by name: of safetensors, or of torch.save by its weights-only loader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffcert_ray.errors import CheckpointError

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object, then its bracket."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def safetensors_of(path: Path, named: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError if it is damaged.

    Args:
        path: the file.
        named: how the error calls it, such as "checkpoint PATH".
    """
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{named} is damaged ({error}): fetch the file again") from None


def torch_tensors_of(path: Path, named: str, inside: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict in a file of torch.save, on the CPU; nothing in the file is run.

    Args:
        path: the file.
        named: how an error calls it, such as "checkpoint PATH".
        inside: keys below which training scripts keep it, the best first.

    Returns:
        The tensors, without what wrappers of the network put before every name.

    Raises:
        CheckpointError: torch refuses the file, or it holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever torch's loader meets in a hostile file
        raise CheckpointError(
            f"{named} is refused by torch's weights-only loader, and nothing in it was run: "
            f"{_reason(error)}; save a plain state dict, or fetch the file again"
        ) from None
    for _ in range(2):
        wrapped = next((content[key] for key in inside if _is_mapping(content, key)), None)
        content = content if wrapped is None else wrapped
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{named} is no plain state dict: it holds a {type(content).__name__}, no state dict; "
            "save network.state_dict()"
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f"{named} is no plain state dict: {', '.join(others[:3])} are no tensors"
        )
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def _is_mapping(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _reason(error: Exception) -> str:
    """Torch's reason without its advice to load unsafely."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"Unsupported global: (\S+)", text)
    if asked:
        return f"it asks for {asked[1]!r}, which is not allowed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = [line for line in lines if "weights_only" not in line]
    return (shown or [type(error).__name__])[-1][:200]
