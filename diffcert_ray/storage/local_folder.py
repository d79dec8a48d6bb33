"""A create-only folder of this machine, or of a shared file system with hard links."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import HIDDEN, probe_create_only, visible

LOCAL_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there, or continue the run on another disk",
    errno.EDQUOT: "the quota is used up: free space there, or continue the run on another disk",
    errno.EROFS: "it is mounted read-only: remount it, or give another run folder",
    errno.EACCES: "no permission to write there: change its mode, or give another run folder",
    errno.EPERM: "its file system allows no hard links, which the atomic write needs: give a run "
    "folder on another one",
    errno.ENOTDIR: "a file is in the way of a folder: move it, or give another run folder",
    errno.EEXIST: "a file is in the way of a folder: move it, or give another run folder",
}


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine or of a shared file system with hard links."""

    address: str

    def create(self, name: str, data: bytes) -> None:
        """Publish a new file: temporary file beside it, fsync, hard link, fsync of the folder.

        Raises:
            FileExistsError: the name is taken.
            StoreError: the folder cannot be written; says why and what to do.

        Source:
            ours: link(2) fails where the name exists, rename(2) would replace it.
        """
        target = Path(self.address, name)
        temporary = target.with_name(f"{HIDDEN}tmp-{secrets.token_hex(8)}")
        with self._explained(name):
            make_folders(target.parent)
        with self._explained(name):
            try:
                write_durably(temporary, data)
                taken = not link_new(temporary, target)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            if not taken:
                sync_folder(target.parent)
        if taken:
            raise FileExistsError(errno.EEXIST, "already stored", str(target))

    def read(self, name: str) -> bytes:
        """The whole file; FileNotFoundError if there is none, StoreError if it cannot be read."""
        try:
            return Path(self.address, name).read_bytes()
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:  # a file where the folder should be
            raise FileNotFoundError(errno.ENOENT, error.strerror, error.filename) from error
        except OSError as error:
            raise StoreError(
                f"cannot read {self.address}/{name} ({error.strerror}): make it readable, or "
                "restore it from a copy"
            ) from error

    def list(self, folder: str) -> list[str]:
        """Sorted names of the finished files in a folder; empty if it is missing."""
        try:
            with os.scandir(Path(self.address, folder)) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot list {self.address}/{folder}: {error}") from error
        return visible(folder, names)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return Path(self.address, name).is_file()

    def delete(self, name: str) -> None:
        """Remove the file; nothing happens if it is missing."""
        with self._explained(name), contextlib.suppress(FileNotFoundError):
            os.unlink(Path(self.address, name))

    def check_writable(self) -> None:
        """Prove that files can be created, only once, and read back; else StoreError."""
        probe_create_only(self)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = LOCAL_REMEDIES.get(error.errno or 0, "give another run folder")
            raise StoreError(
                f"cannot write {self.address}/{name} ({error.strerror}): {remedy}"
            ) from error


def make_folders(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link_new(temporary: Path, target: Path) -> bool:
    """Give a finished file its name; False if another file has it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # Over NFS a repeated request may report EEXIST for the link that it made itself.
        return os.stat(temporary).st_nlink == 2
    return True


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
