"""Reading and writing a denoiser's weights, without ever running code from a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diffcert_ray.checkpoints.configuration_text import METADATA_KEY, validated
from diffcert_ray.checkpoints.edm_pickle import edm_tensors, read_edm_pickle
from diffcert_ray.checkpoints.files import (
    FORMAT,
    checkpoint_format,
    checkpoint_path,
    read_metadata,
    sha256_of_path,
)
from diffcert_ray.checkpoints.state_dict import read_state_dict
from diffcert_ray.checkpoints.tensors import safetensors_of
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.diffusers_configuration import read_diffusers_configuration
from diffcert_ray.denoisers.diffusers_denoiser import DiffusersDenoiser, load_diffusers
from diffcert_ray.denoisers.edm import EdmDenoiser, NetworkDtype, check_dtype
from diffcert_ray.denoisers.noise_steps import step_levels
from diffcert_ray.errors import CheckpointError

_NAMES_SHOWN = 3


def load_denoiser(
    source: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: NetworkDtype = "float32",
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> EdmDenoiser | DiffusersDenoiser:
    """Load a denoiser from any of the known formats, told apart by content and never by running it.

    The formats are safetensors with its configuration (`diffcert convert` writes it), EDM's .pkl,
    state dicts (.pt) of EDM networks and of OpenAI's improved-diffusion, guided-diffusion and
    consistency_models, and diffusers folders.

    Args:
        source: name of a shipped model, such as "digits"; path of a file or folder; or an address
            that fsspec knows, such as "s3://bucket/model.pkl", which is fetched once per machine.
        config: settings of `EdmConfiguration` (of `DiffusersConfiguration` for a folder) that
            replace or complete what the checkpoint says of itself; needed for a state dict that has
            neither NAME.json beside it nor the shape of a published checkpoint.
        device: where the denoiser shall live.
        dtype: what its network computes in, "float32", "tf32", "bfloat16" or "float16"; input and
            output stay float32.
        sha256: what `checkpoint_sha256(source)` must be, 64 hex digits; None to accept any.
        storage_options: what fsspec's filesystem takes, for a remote address, such as
            {"endpoint_url": "http://host:9000"}.

    Returns:
        The denoiser, in evaluation mode and without gradients for its weights; it satisfies
        `Denoiser`.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, not the expected one, asks for code to
            be run, or its tensors are not exactly those of its configuration.
        ValueError: unknown dtype.
    """
    check_dtype(dtype)
    path = checkpoint_path(source, sha256, storage_options)
    if sha256 is not None and (actual := sha256_of_path(path)) != sha256.lower():
        raise CheckpointError(
            f"checkpoint {str(source)!r} has sha256 {actual} but {sha256} was expected: it is "
            "another or a damaged file; fetch the right one, or state this hash if it is the right "
            "one"
        )
    denoiser: EdmDenoiser | DiffusersDenoiser
    if checkpoint_format(path) == "diffusers folder":
        configuration = read_diffusers_configuration(path, config)
        denoiser = load_diffusers(path, configuration, dtype=dtype)
    else:
        denoiser = _built(str(source), *_read(path, config), dtype)
    return denoiser.to(device).eval().requires_grad_(False)


def _read(
    path: Path, config: Mapping[str, Any] | None
) -> tuple[EdmConfiguration, dict[str, Tensor]]:
    """Configuration and tensors of a checkpoint that is one file."""
    kind = checkpoint_format(path)
    if kind == "EDM pickle":
        published, network = read_edm_pickle(path)
        configuration = validated(path, published.model_dump(exclude_unset=True), config)
        return configuration, edm_tensors(path, network)
    if kind == "state dict":
        state = read_state_dict(path, config)
        return state.configuration, state.tensors
    configuration = validated(path, read_metadata(path).get("configuration"), config)
    return configuration, safetensors_of(path, f"checkpoint {path}")


def _built(
    source: str,
    configuration: EdmConfiguration,
    tensors: dict[str, Tensor],
    dtype: NetworkDtype,
) -> EdmDenoiser:
    """The denoiser with these weights; none of its own are drawn, which would take seconds."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        denoiser = EdmDenoiser(configuration, dtype=dtype)
    expected = denoiser.state_dict()
    if configuration.nearest_step and configuration.schedule is not None:
        tensors = _without_chain(source, configuration, tensors)
    for name, filter_ in expected.items():  # OpenAI's networks have them as fixed pooling
        if name.endswith("resample_filter") and configuration.model_type == "DhariwalUNet":
            tensors.setdefault(name, filter_)
    _check_tensors(source, expected, tensors)
    fitted = {name: tensors[name].to(like.dtype).contiguous() for name, like in expected.items()}
    denoiser.load_state_dict(fitted, assign=True)
    return denoiser


def _without_chain(
    source: str, configuration: EdmConfiguration, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Without the buffer `u` of iDDPM's preconditioning, which must be the configured chain."""
    chain = tensors.pop("u", None)
    if chain is None:
        return tensors
    levels = torch.from_numpy(
        step_levels(str(configuration.schedule), int(configuration.steps or 0)).copy()
    )
    saved = chain.double().flatten().flip(0)[1:]  # from the last step down to no noise at all
    if saved.shape != levels.shape or not torch.allclose(saved, levels, rtol=1e-3):
        raise CheckpointError(f"checkpoint {source!r} has other noise steps than its configuration")
    return tensors


def _check_tensors(
    source: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raise unless names and shapes agree, and the fixed filters are what the network assumes."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shared = [name for name in expected if name in tensors]
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
        for name in shared
        if tensors[name].shape != expected[name].shape
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
            and not torch.allclose(tensors[name].float(), expected[name].float(), atol=1e-6)
        ][:_NAMES_SHOWN]
    if problems:
        raise CheckpointError(
            f"checkpoint {source!r} does not fit its configuration: tensors {'; '.join(problems)}. "
            "Its configuration belongs to another network, or the file is not complete"
        )


def save_denoiser(path: str | Path, denoiser: EdmDenoiser, metadata: Mapping[str, Any]) -> None:
    """Write a denoiser as one safetensors file that `load_denoiser` reads, its weights as float32.

    Args:
        path: the file, ending in ".safetensors"; replaced if it exists, and only when complete.
        denoiser: whose weights are written.
        metadata: how it was made, JSON-able; kept in the file as "recipe".
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
