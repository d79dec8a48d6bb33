"""Local copies of checkpoints at remote addresses: fetched once per machine, kept by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from diffcert_ray.errors import CheckpointError

CACHE_VARIABLE = "DIFFCERT_CACHE"
FOLDER_SUFFIXES = (".json", ".safetensors")
"""What is read, fetched and hashed of a checkpoint that is a folder."""

_WAIT_S = 3600.0
_NAME = "checkpoint"
_BLOCK = 1 << 22


def cache_folder() -> Path:
    """Where copies are kept: $DIFFCERT_CACHE, or diffcert_ray in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "diffcert_ray"


def cached_content(sha256: str) -> Path | None:
    """The kept copy of a checkpoint with this hash, wherever it came from; None if there is none.

    Its content is not hashed again here.
    """
    kept = cache_folder() / "content" / sha256.lower() / _NAME
    return kept if kept.exists() else None


def local_copy(
    address: str,
    sha256_of: Callable[[Path], str],
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Fetch a checkpoint unless this machine has it; safe for many processes and threads at once.

    One of them downloads and the others wait for it. A copy is published whole, by one rename, and
    never changed; a file that changes at its address becomes another copy.

    Args:
        address: fsspec address of a file (NAME.json beside it is fetched too) or of a folder.
        sha256_of: hash that identifies a local checkpoint.
        storage_options: what fsspec's filesystem takes, such as endpoint_url.

    Raises:
        CheckpointError: nothing there, an unknown kind of address, a store that cannot be reached,
            or a torn download.
    """
    files, filesystem = _remote_files(address, storage_options or {})
    versions = sorted((name, filesystem.ukey(path)) for name, path in files.items())
    key = hashlib.sha256(repr((address, versions)).encode()).hexdigest()
    cache = cache_folder()
    noted = cache / "address" / key
    with _only_one(cache / "locks" / f"{key}.lock", address):
        if noted.exists() and (kept := cached_content(noted.read_text("ascii"))) is not None:
            return kept
        sha256 = _fetch(filesystem, files, cache, sha256_of)
        _write_whole(noted, sha256)
    kept = cached_content(sha256)
    if kept is None:
        raise CheckpointError(
            f"the copy of {address!r} in {cache} was removed meanwhile: try again"
        )
    return kept


def _remote_files(address: str, options: Mapping[str, Any]) -> tuple[dict[str, str], Any]:
    """{local name: remote path} of a file or of a folder's files, and the filesystem."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address, **options)
    except (ValueError, ImportError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint address {address!r} cannot be opened: {error}; give a local path, or an "
            "address that fsspec knows, such as s3://bucket/model.pkl"
        ) from None
    filesystem.invalidate_cache()
    try:
        exists = filesystem.exists(path)
    except Exception as error:  # noqa: BLE001 - whatever the client of a store raises
        raise CheckpointError(
            f"checkpoint {address!r} cannot be reached ({type(error).__name__}: {error}): see "
            "whether its store is there, and whether execution.storage_options (endpoint_url, for "
            "example) and the credentials are right"
        ) from None
    if not exists:
        raise CheckpointError(f"checkpoint {address!r} does not exist, or may not be read")
    if not filesystem.isdir(path):
        files = {_NAME: path}
        beside = str(PurePosixPath(path).with_suffix(".json"))
        if beside != path and filesystem.exists(beside):
            files[f"{_NAME}.json"] = beside
        return files, filesystem
    root = filesystem._strip_protocol(path).rstrip("/") + "/"
    files = {}
    for inside in filesystem.find(path):
        name = PurePosixPath(filesystem._strip_protocol(inside).removeprefix(root))
        hidden = any(part.startswith(".") for part in name.parts)
        if name.suffix in FOLDER_SUFFIXES and not hidden and not name.is_absolute():
            files[str(PurePosixPath(_NAME) / name)] = inside
    if not files:
        raise CheckpointError(
            f"folder {address!r} has no {' or '.join(FOLDER_SUFFIXES)} files: it is no checkpoint"
        )
    return files, filesystem


def _fetch(
    filesystem: Any,
    files: dict[str, str],
    cache: Path,
    sha256_of: Callable[[Path], str],
) -> str:
    """Download into the cache and publish by one rename; return the hash."""
    partial = cache / f".part-{secrets.token_hex(8)}"
    try:
        for name, path in files.items():
            local = partial / name
            local.parent.mkdir(parents=True, exist_ok=True)
            _download(filesystem, path, local)
        sha256 = sha256_of(partial / _NAME)
        final = cache / "content" / sha256
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(partial, final)
        except OSError:
            if not final.exists():
                raise
            # Taken by the same content, from another address or fetched before: that one stays.
        return sha256
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(filesystem: Any, path: str, local: Path) -> None:
    size = filesystem.info(path).get("size")
    with filesystem.open(path, "rb") as source, local.open("wb") as target:
        while block := source.read(_BLOCK):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
        written = target.tell()
    if size is not None and written != size:
        raise CheckpointError(f"{path} has {size:,} bytes but {written:,} came: try again")


@contextlib.contextmanager
def _only_one(lock: Path, address: str) -> Any:
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=_WAIT_S):
            yield
    except Timeout:
        raise CheckpointError(
            f"another process has been fetching {address!r} for {_WAIT_S:.0f} s: see whether it "
            f"hangs (its lock is {lock}), then try again"
        ) from None


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, "ascii")
    os.replace(temporary, path)
