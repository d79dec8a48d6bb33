"""What a stopped training goes on from: one safetensors file that appears whole, or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffcert_ray.errors import CheckpointError, ConfigError

_KEY = "diffcert_ray_training"
_FREE = ("name", "validation", "dataset.path", "training.checkpoint_minutes", "training.device")
"""Settings that no weight depends on, or that stand for what is compared in their place."""


def publish(path: Path, content: bytes) -> None:
    """Write a file that readers see whole or not at all, replacing the one that is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Publish tensors, and what is JSON-able about them, as one file."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # A float's digits are enough to read the same float again.
    publish(path, save(copies, metadata={_KEY: json.dumps(dict(about))}))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: it is damaged, or another file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as the state of a training ({error}): remove it to begin anew, "
            "or give another --output"
        ) from None


def check_same(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a training can go on from a state, naming all that differs.

    Args:
        path: of the state, for the message.
        stored: "config" (tables), "device" and "images" (their sha256) of the state.
        asked: the same of this start.
    """
    before, now = _flat(stored["config"]), _flat(asked["config"])
    differ = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in _FREE
        and not key.startswith("validation.")
        and before.get(key) != now.get(key)
    ]
    if stored["device"] != asked["device"]:
        differ.append(f"the device was {stored['device']} and is {asked['device']}")
    if stored["images"] != asked["images"]:
        differ.append(
            f"the images and labels had sha256 {stored['images'][:12]} and have "
            f"{asked['images'][:12]}"
        )
    if differ:
        raise ConfigError(
            f"{path} is of another training: {'; '.join(differ)}. Continue it as it was begun, or "
            "give another --output"
        )


def generators(device: str) -> dict[str, Tensor]:
    """The states of torch's generators."""
    found = {"generator.cpu": torch.get_rng_state()}
    if device == "cuda":
        found["generator.cuda"] = torch.cuda.get_rng_state()
    return found


def set_generators(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators to states that `generators` gave."""
    torch.set_rng_state(states["generator.cpu"])
    if "generator.cuda" in states:
        torch.cuda.set_rng_state(states["generator.cuda"])


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict) and key != "label_map":
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
