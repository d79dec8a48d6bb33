"""What the store asks of a folder: files appear whole, once, and are never overwritten.

`create` publishes complete bytes under a new name in one atomic step or raises. That is what lets
readers trust every file they can list.
"""

import contextlib
import secrets
from typing import Protocol

from diffcert_ray.errors import StoreError

HIDDEN = "."  # names that begin so are unfinished or probes; no reader lists them


class Location(Protocol):
    """What the store needs of a folder; names are paths relative to it, with '/'."""

    @property
    def address(self) -> str:
        """Where it is."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Publish a new file in one atomic step; FileExistsError if the name is taken."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if there is none."""
        ...

    def list(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder, as `read` takes them; empty if it is missing."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def delete(self, name: str) -> None:
        """Remove the file; nothing happens if it is missing."""
        ...

    def check_writable(self) -> None:
        """Prove that files can be created, only once, and read back; else StoreError."""
        ...


def visible(folder: str, names: list[str]) -> list[str]:
    """Names relative to the location, without hidden ones, sorted."""
    prefix = f"{folder}/" if folder else ""
    return sorted(prefix + name for name in names if not name.startswith(HIDDEN))


def probe_create_only(location: Location) -> None:
    """Create a probe, see a second create refused, read it back, and remove it."""
    name = f"{HIDDEN}probe-{secrets.token_hex(8)}"
    location.create(name, b"first")
    try:
        location.create(name, b"second")
        refused = False
    except FileExistsError:
        refused = True
    held = location.read(name)
    with contextlib.suppress(StoreError):  # a store may forbid deletes: a probe of 5 bytes stays
        location.delete(name)
    if not refused or held != b"first":
        raise StoreError(
            f"{location.address} ignores create-only writes (If-None-Match), so two drivers could "
            "overwrite each other: use a store that has them, such as S3, a recent MinIO or Ceph, "
            "or a local folder"
        )
