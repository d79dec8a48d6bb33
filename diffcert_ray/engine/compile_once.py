"""Compiling once on each node: the first worker pays for it, the others load what it made."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def first_alone(what: str, folder: Path | None = None) -> Iterator[bool]:
    """Let one process of this machine in alone, and the others together once it is through.

    Compiling takes all cores for a minute: eight at once would each pay for it, and might outlast
    what a start may take. A process that dies or fails lets the next one in alone.

    Args:
        what: is compiled: network, batch, device and versions in any words.
        folder: where the mark is kept; by default the compiler's own cache, so that both go at the
            same time.

    Yields:
        Whether this process is the one that was let in alone.
    """
    if folder is None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        folder = Path(cache_dir())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"diffcert_ray-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    done = folder / f"{name}.compiled"
    if not done.exists():
        with FileLock(folder / f"{name}.lock"):
            if not done.exists():
                yield True
                done.touch()
                return
    yield False
