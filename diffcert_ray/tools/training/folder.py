"""The folder of a training: who may write it, and what a finished one is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffcert_ray.errors import ConfigError
from diffcert_ray.tools.training.loop import STATE

MODEL = "model.safetensors"


@contextmanager
def held_folder(folder: str | Path) -> Iterator[Path]:
    """Make the folder of a training where there is none, and keep other processes out of it.

    Raises:
        ConfigError: another process trains there, it is no folder, or it holds the model of
            something else.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output {str(folder)!r} is no folder: name the folder of the training")
    path.mkdir(parents=True, exist_ok=True)
    if (path / MODEL).exists() and not (path / STATE).exists():
        raise ConfigError(
            f"{path / MODEL} exists, but no {STATE} beside it from which its training could go "
            "on: give another --output, or move the file away"
        )
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process trains into {path}: wait for it, or give another --output"
        ) from None
    try:
        yield path
    finally:
        lock.release()
