"""Checkpoint files as such: where they are, their format, hash and configuration; needs no torch.

Only a state dict (.pt) without a configuration beside it has to be opened with torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from diffcert_ray.checkpoints.cache import FOLDER_SUFFIXES, cached_content, local_copy
from diffcert_ray.checkpoints.configuration_text import (
    METADATA_KEY,
    no_configuration,
    parsed,
    read_json,
    validated,
)
from diffcert_ray.checkpoints.edm_pickle import read_edm_pickle
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.diffusers_configuration import (
    DiffusersConfiguration,
    read_diffusers_configuration,
)
from diffcert_ray.errors import CheckpointError, nearest

FORMAT = 1

CheckpointFormat = Literal["safetensors", "EDM pickle", "state dict", "diffusers folder"]

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote before 1.6
_PICKLE_PROTOCOLS = (2, 3, 4, 5)


def shipped_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    return shipped("models")


def shipped(folder: str) -> dict[str, Path]:
    """The safetensors files in a folder of the package, by name."""
    path = Path(str(resources.files("diffcert_ray") / folder))
    return {path.stem: path for path in sorted(path.glob("*.safetensors"))}


def checkpoint_path(
    source: str | Path,
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Find a checkpoint, fetching it first if it is at a remote address.

    Args:
        source: name of a shipped model, such as "digits"; path of a file or folder; or an address
            that fsspec knows, such as "s3://bucket/model.pkl".
        sha256: what its hash is known to be; a copy that this machine has is then taken without
            asking at the address.
        storage_options: what fsspec's filesystem takes, for a remote address.

    Raises:
        CheckpointError: no such model, file or folder.
    """
    source, known = str(source), shipped_models()
    path = local_path(source, known, sha256_of_path, sha256, storage_options)
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {source!r} does not exist: give the path of a checkpoint, its address, or "
            f"one of the shipped models{nearest(source, known)}"
        )
    return path


def local_path(
    source: str,
    known: Mapping[str, Path],
    sha256_of: Callable[[Path], str],
    sha256: str | None,
    storage_options: Mapping[str, Any] | None,
) -> Path:
    """Where a source is on this machine, fetched first if it is at a remote address.

    Args:
        source: name among ``known``, path (at which there may be nothing), or fsspec address.
        known: files by their names.
        sha256_of: what identifies a local copy.
        sha256: what that is known to be, or None; a copy that is here is then taken unasked.
        storage_options: what fsspec's filesystem takes, for a remote address.

    Raises:
        CheckpointError: nothing at the address, or it cannot be reached.
    """
    if source in known:
        return known[source]
    if "://" in source and not source.startswith("file://"):
        copy = cached_content(sha256) if sha256 else None
        return copy or local_copy(source, sha256_of, storage_options)
    return Path(source.removeprefix("file://")).expanduser()


def checkpoint_format(path: Path) -> CheckpointFormat:
    """The format of a local checkpoint, by its first bytes and never by its name.

    "state dict" is what torch.save wrote.

    Raises:
        CheckpointError: no known format.
    """
    if path.is_dir():
        return "diffusers folder"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size - 8, 0):
        return "safetensors"
    if head.startswith((_ZIP, _OLD_TORCH)):
        return "state dict"
    if head[:1] == b"\x80" and head[1:2] and head[1] in _PICKLE_PROTOCOLS:
        return "EDM pickle"
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"checkpoint {path} is damaged or not a safetensors file: fetch it again"
        )
    raise CheckpointError(
        f"checkpoint {path} begins with {head[:8]!r} and is in no known format: those read are "
        "safetensors, EDM pickles (.pkl), state dicts (.pt of torch.save) and diffusers folders"
    )


def checkpoint_sha256(source: str | Path, storage_options: Mapping[str, Any] | None = None) -> str:
    """The hash that identifies a checkpoint.

    Args:
        source: as `checkpoint_path`.
        storage_options: what fsspec's filesystem takes, for a remote address.

    Returns:
        64 hex digits: the sha256 of the file itself or, where its configuration stands in a JSON
        file beside it, of the two files one after the other (`cat NAME.pt NAME.json | sha256sum`).
        Of a folder: `find . -name '*.json' -o -name '*.safetensors' | sort | xargs sha256sum |
        sha256sum`, with names as "unet/config.json" and hidden ones left out.

    Raises:
        CheckpointError: nothing there, or in no known format.
    """
    return sha256_of_path(checkpoint_path(source, storage_options=storage_options))


def sha256_of_path(path: Path) -> str:
    """`checkpoint_sha256` of a local file or folder."""
    kind = checkpoint_format(path)
    if kind == "diffusers folder":
        return _folder_sha256(path)
    beside = path.with_suffix(".json")
    with_json = (kind == "safetensors" and METADATA_KEY not in _metadata(path)) or (
        kind == "state dict" and beside.is_file()
    )
    digest = hashlib.sha256()
    for part in (path, beside) if with_json else (path,):
        try:
            _add_to(digest, part)
        except FileNotFoundError:
            raise no_configuration(path) from None
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes and nothing else, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_sha256(folder: Path) -> str:
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in FOLDER_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{file_sha256(folder / name)}  {name}\n".encode())
    return digest.hexdigest()


def _add_to(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def read_metadata(source: str | Path) -> dict[str, Any]:
    """What a safetensors checkpoint says of itself: "format", "configuration" and maybe "recipe".

    It stands in the file, or else in NAME.json beside it.

    Raises:
        CheckpointError: no such file, not safetensors, no configuration, or not format 1.
    """
    path = checkpoint_path(source)
    text = _metadata(path).get(METADATA_KEY)
    content = read_json(path.with_suffix(".json"), path) if text is None else parsed(text, path)
    if "model_type" in content:  # the bare configuration, as beside a state dict
        return {"format": FORMAT, "configuration": content}
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {content.get('format')!r}: this version reads format "
            f"{FORMAT}"
        )
    return content


def read_configuration(
    source: str | Path,
    config: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> EdmConfiguration | DiffusersConfiguration:
    """The network and preconditioning of a checkpoint, without its weights.

    Args:
        source: as `checkpoint_path`.
        config: settings that replace or complete those of the file.
        storage_options: what fsspec's filesystem takes, for a remote address.

    Raises:
        CheckpointError: nothing there, in no known format, refused, or the configuration is missing
            or not valid.
    """
    path = checkpoint_path(source, storage_options=storage_options)
    kind = checkpoint_format(path)
    if kind == "diffusers folder":
        return read_diffusers_configuration(path, config)
    if kind == "EDM pickle":
        return validated(path, read_edm_pickle(path)[0].model_dump(exclude_unset=True), config)
    if kind == "safetensors":
        return validated(path, read_metadata(path).get("configuration"), config)
    from diffcert_ray.checkpoints.state_dict import read_state_dict

    return read_state_dict(path, config).configuration


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or not a safetensors file ({error}): fetch it again"
        ) from None
