"""Any checkpoint of an EDM or ADM network as one safetensors file that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcert_ray.checkpoints.files import (
    checkpoint_format,
    checkpoint_path,
    checkpoint_sha256,
)
from diffcert_ray.checkpoints.load import load_denoiser, save_denoiser
from diffcert_ray.checkpoints.network_shape import PUBLISHED
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.errors import CheckpointError


@dataclass(frozen=True)
class Converted:
    """What a checkpoint turned out to be, and where it is now.

    Attributes:
        network: "SongUNet" or "DhariwalUNet", and the published checkpoint of this configuration.
        classes: K; 0 for an unconditional network.
        parameters: number of weights.
        source_sha256: `checkpoint_sha256` of the source.
        output_sha256: the file's sha256, which identifies runs from now on.
    """

    format: str
    network: str
    preconditioning: str
    image_shape: tuple[int, int, int]
    classes: int
    parameters: int
    source_sha256: str
    output: Path
    output_sha256: str


def convert(
    source: str | Path,
    output: str | Path,
    config: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Converted:
    """Read a checkpoint in any format and write it as safetensors with its configuration.

    Arguments are those of `load_denoiser`, and the file to write, which must not exist yet.

    Raises:
        CheckpointError: as `load_denoiser`; or the output exists; or the source is a diffusers
            folder, which is safe to load as it is.
    """
    output = Path(output)
    if output.exists():
        raise CheckpointError(f"{output} exists: give another name, or remove it first")
    path = checkpoint_path(source, storage_options=storage_options)
    kind = checkpoint_format(path)
    if kind == "diffusers folder":
        raise CheckpointError(
            f"checkpoint {str(source)!r} is a diffusers folder, which holds no code: use it as it "
            "is"
        )
    source_sha256 = checkpoint_sha256(path)
    denoiser = load_denoiser(path, config, sha256=source_sha256)
    if not isinstance(denoiser, EdmDenoiser):
        raise CheckpointError(f"checkpoint {str(source)!r} is no EDM or ADM network")
    made_from = {"file": Path(str(source)).name, "format": kind, "sha256": source_sha256}
    save_denoiser(output, denoiser, {"converted_from": made_from})
    configuration = denoiser.configuration
    return Converted(
        format=kind,
        network=_described(configuration),
        preconditioning=configuration.preconditioning,
        image_shape=configuration.image_shape,
        classes=configuration.label_dim,
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        source_sha256=source_sha256,
        output=output,
        output_sha256=checkpoint_sha256(output),
    )


def _described(configuration: EdmConfiguration) -> str:
    ignored = {"dropout", "has_unconditional", "s_range"}
    wanted = configuration.model_dump(exclude=ignored)
    for name, settings in PUBLISHED.items():
        if EdmConfiguration.model_validate(settings).model_dump(exclude=ignored) == wanted:
            return f"{configuration.model_type} (that of {name})"
    return configuration.model_type
