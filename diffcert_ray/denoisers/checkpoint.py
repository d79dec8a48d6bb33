"""Reading and writing a denoiser's weights, without ever running code from a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from diffcert_ray.denoisers.checkpoint_file import (
    FORMAT,
    METADATA_KEY,
    CheckpointError,
    checkpoint_path,
    checkpoint_sha256,
    read_configuration,
)
from diffcert_ray.denoisers.edm import EdmDenoiser, NetworkDtype

__all__ = ["CheckpointError", "checkpoint_sha256", "load_denoiser", "save_denoiser"]

_NAMES_SHOWN = 3


def load_denoiser(
    source: str,
    *,
    device: str | torch.device = "cpu",
    dtype: NetworkDtype = "float32",
    sha256: str | None = None,
) -> EdmDenoiser:
    """Load a denoiser from a safetensors checkpoint.

    Args:
        source: name of a shipped model, such as "digits", or path of a safetensors file.
        device: where the denoiser shall live.
        dtype: what its network computes in; its input and output stay float32.
        sha256: what `checkpoint_sha256(source)` must be, 64 hex digits; None to accept any.

    Returns:
        The denoiser, in evaluation mode and without gradients for its weights.

    Raises:
        CheckpointError: the file is missing, damaged, not the expected one, or its tensors are not
            exactly those of its configuration.
    """
    path = checkpoint_path(source)
    if sha256 is not None and (found := checkpoint_sha256(source)) != sha256.lower():
        raise CheckpointError(
            f"checkpoint {source!r} has sha256 {found} but {sha256} was expected: it is another "
            "or a damaged file; fetch the right one, or state this hash if it is the right one"
        )
    configuration = read_configuration(source)
    with torch.random.fork_rng(devices=[]):  # building draws weights, which are then replaced
        denoiser = EdmDenoiser(configuration, dtype=dtype)
    tensors = load_file(path, device="cpu")
    _check_tensors(source, denoiser.state_dict(), tensors)
    denoiser.load_state_dict(tensors)
    return denoiser.to(device).eval().requires_grad_(False)


def _check_tensors(
    source: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise unless names and shapes agree, and the fixed filters are what the network assumes."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_NAMES_SHOWN])}"
        f"{', ...' if len(names) > _NAMES_SHOWN else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if not problems:
        problems = [
            f"{name} differs from the configured resample_filter"
            for name in shared
            if name.endswith("resample_filter")
            and not torch.allclose(found[name].float(), expected[name].float(), atol=1e-6)
        ][:_NAMES_SHOWN]
    if problems:
        raise CheckpointError(
            f"checkpoint {source!r} does not fit its configuration: tensors {'; '.join(problems)}. "
            "Its configuration belongs to another network, or the file is not complete"
        )


def save_denoiser(path: str | Path, denoiser: EdmDenoiser, metadata: Mapping[str, Any]) -> None:
    """Write a denoiser as one safetensors file that `load_denoiser` reads.

    Args:
        path: the file, ending in ".safetensors"; replaced if it exists, and only when complete.
        denoiser: whose weights are written, as float32.
        metadata: how it was made, JSON-able; kept in the file as "recipe".

    Raises:
        CheckpointError: the path does not end in ".safetensors".
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"checkpoint path {str(path)!r} must end in .safetensors")
    content = {
        "format": FORMAT,
        "configuration": denoiser.configuration.model_dump(mode="json"),
        "recipe": dict(metadata),
    }
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in denoiser.state_dict().items()
    }
    data = save(tensors, metadata={METADATA_KEY: json.dumps(content, sort_keys=True)})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
