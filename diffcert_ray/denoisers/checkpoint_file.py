"""Checkpoint files as such: where they are, their hash, their configuration; needs no torch."""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from diffcert_ray.denoisers.configuration import EdmConfiguration

METADATA_KEY = "diffcert"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, not the expected one, or not safe to read."""


def shipped_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    folder = Path(str(resources.files("diffcert_ray") / "models"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def checkpoint_path(source: str) -> Path:
    """Find a checkpoint.

    Args:
        source: name of a shipped model, such as "digits", or path of a safetensors file.

    Returns:
        The path of an existing safetensors file.

    Raises:
        CheckpointError: no such model or file, or a format that is not read.
    """
    shipped = shipped_models()
    if source in shipped:
        return shipped[source]
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(source, list(shipped), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CheckpointError(
            f"checkpoint {source!r} does not exist: {hint}give the path of a .safetensors file, "
            f"or one of the shipped models: {', '.join(shipped) or 'none'}"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"checkpoint {source!r} is not a .safetensors file: other formats may run code when "
            "they are read and are not opened; convert it first"
        )
    return path


def checkpoint_sha256(source: str) -> str:
    """The sha256 of a checkpoint's bytes.

    Args:
        source: name of a shipped model or path of a safetensors file.

    Returns:
        64 hex digits: of the file itself or, where its configuration stands in a JSON file beside
        it, of the two files one after the other (`cat NAME.safetensors NAME.json | sha256sum`).

    Raises:
        CheckpointError: no such file, or it is not readable as safetensors.
    """
    path = checkpoint_path(source)
    digest = hashlib.sha256()
    beside = [] if METADATA_KEY in _metadata(path) else [path.with_suffix(".json")]
    for part in (path, *beside):
        try:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError:
            raise _no_configuration(path) from None
    return digest.hexdigest()


def read_metadata(source: str) -> dict[str, Any]:
    """What a checkpoint says of itself: "format", "configuration" and, if it has one, "recipe".

    Args:
        source: name of a shipped model or path of a safetensors file.

    Returns:
        The JSON object kept in the file, or else in NAME.json beside it.

    Raises:
        CheckpointError: no such file, not safetensors, no configuration, or not format 1.
    """
    path = checkpoint_path(source)
    text = _metadata(path).get(METADATA_KEY)
    try:
        if text is None:
            text = path.with_suffix(".json").read_text("utf-8")
        found = json.loads(text)
    except FileNotFoundError:
        raise _no_configuration(path) from None
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: its configuration is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        seen = found.get("format") if isinstance(found, dict) else found
        raise CheckpointError(
            f"checkpoint {path} has format {seen!r}: this version reads format {FORMAT}"
        )
    return found


def read_configuration(source: str) -> EdmConfiguration:
    """The network and preconditioning of a checkpoint, without its weights.

    Args:
        source: name of a shipped model or path of a safetensors file.

    Returns:
        The validated configuration.

    Raises:
        CheckpointError: as `read_metadata`, or the configuration is not valid.
    """
    metadata = read_metadata(source)
    try:
        return EdmConfiguration.model_validate(metadata.get("configuration"))
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {source!r}: its configuration is not valid: {error}"
        ) from None


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or not a safetensors file ({error}): fetch it again"
        ) from None


def _no_configuration(path: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} has no configuration: neither under {METADATA_KEY!r} in its metadata "
        f"nor in {path.with_suffix('.json').name} beside it; convert the checkpoint again"
    )
