"""Configurations as JSON, in a checkpoint or beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.errors import CheckpointError, explained

METADATA_KEY = "diffcert"


def read_json(path: Path, checkpoint: Path) -> dict[str, Any]:
    """The JSON object that stands beside a checkpoint; CheckpointError if there is none."""
    try:
        return parsed(path.read_text("utf-8"), checkpoint)
    except FileNotFoundError:
        raise no_configuration(checkpoint) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"checkpoint {checkpoint}: {path.name}: {error}") from None


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The JSON object in a text; CheckpointError, naming the checkpoint, if there is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: its configuration is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path}: its configuration is no JSON object")
    return content


def validated(path: Path, stated: Any, config: Mapping[str, Any] | None) -> EdmConfiguration:
    """The validated configuration that a checkpoint states, with the settings of ``config``."""
    try:
        if config and isinstance(stated, dict):
            stated = stated | dict(config)
        return EdmConfiguration.model_validate(stated)
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {path}: its configuration is not valid: {explained(error)}"
        ) from None


def no_configuration(path: Path) -> CheckpointError:
    """The error for a checkpoint that says nothing of its network."""
    return CheckpointError(
        f"checkpoint {path} has no configuration: neither under {METADATA_KEY!r} in its metadata "
        f"nor in {path.with_suffix('.json').name} beside it; convert the checkpoint again"
    )
