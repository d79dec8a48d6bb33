"""The tensors in a file, by name: of safetensors, or of torch.save by its weights-only loader."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffcert_ray.checkpoints.wrapped_weights import weights_in
from diffcert_ray.errors import CheckpointError

_NUMPY = (
    ": a number or array of numpy lies beside the weights (a best accuracy, perhaps), and it is "
    "kept as a call of this"
)


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


def torch_tensors_of(path: Path, named: str) -> dict[str, Tensor]:
    """The state dict in a file of torch.save, on the CPU; nothing in the file is run.

    Args:
        path: the file.
        named: how an error calls it, such as "checkpoint PATH".

    Returns:
        The tensors, by the names that the file gives them.

    Raises:
        CheckpointError: torch refuses the file, or it holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever torch's loader meets in a hostile file
        raise CheckpointError(
            f"{named} is refused by torch's weights-only loader, and nothing in it was run: "
            f"{_reason(error)}; save network.state_dict() alone, or fetch the file again"
        ) from None
    return weights_in(content, named)


def _reason(error: Exception) -> str:
    """Torch's reason without its advice to load unsafely."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"Unsupported global: (\S+)", text)
    if asked:
        why = _NUMPY if asked[1].startswith("numpy") else ""
        return f"it asks for {asked[1]!r}, which is not allowed{why}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = [line for line in lines if "weights_only" not in line]
    return (shown or [type(error).__name__])[-1][:200]
