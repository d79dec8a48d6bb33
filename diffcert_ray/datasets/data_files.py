"""The files of a dataset, below a local path or an fsspec address: read whole or by ranges."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

from diffcert_ray.errors import DatasetError


@dataclasses.dataclass
class DataFiles:
    """A folder of files, or one; its filesystem is made once in each process, and never pickled.

    fsspec's own cache has one filesystem, and so one slowly made client, for each thread.

    Attributes:
        address: local path or fsspec address such as ``s3://bucket/prefix``.
        storage_options: what fsspec's filesystem takes; not used for a local path.
    """

    address: str
    storage_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    _opened: tuple[int, Any, str] | None = dataclasses.field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def is_local(self) -> bool:
        """Whether the address is a path of this machine."""
        protocol, separator, _ = self.address.partition("://")
        return not separator or protocol == "file"

    def sizes(self, suffix: str) -> dict[str, int]:
        """Bytes of all files whose name ends so, by path relative to the address.

        Raises:
            DatasetError: there is no file at all.
        """
        filesystem, root = self._filesystem()
        listed = filesystem.find(root, detail=True)
        if not listed:
            raise DatasetError(
                f"dataset.path {self.address!r} does not exist or is empty: correct it, or put the "
                "files there (on every node that runs workers)"
            )
        relative = {path[len(root) :].lstrip("/"): int(i["size"]) for path, i in listed.items()}
        return {name: size for name, size in sorted(relative.items()) if name.endswith(suffix)}

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        filesystem, root = self._filesystem()
        return bool(filesystem.isfile(self._join(root, name)))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file, or the bytes start:stop of it.

        Raises:
            DatasetError: there is no such file.
            OSError: fewer bytes came than were asked for.
        """
        filesystem, root = self._filesystem()
        try:
            data = bytes(filesystem.cat_file(self._join(root, name), start=start, end=stop))
        except FileNotFoundError:
            raise self._missing(name) from None
        if start is not None and stop is not None and len(data) != stop - start:
            raise OSError(
                f"{self.address}/{name}: asked for bytes {start}:{stop}, got {len(data)}: the file "
                "has changed or the connection was cut; run again"
            )
        return data

    def open(self, name: str) -> Any:
        """A file opened for reading from its beginning on; DatasetError if there is none."""
        filesystem, root = self._filesystem()
        try:
            return filesystem.open(self._join(root, name), "rb")
        except FileNotFoundError:
            raise self._missing(name) from None

    def _filesystem(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *self._connect())
        return self._opened[1:]

    def _connect(self) -> tuple[Any, str]:
        import fsspec

        options = {} if self.is_local else dict(self.storage_options)
        try:
            filesystem, root = fsspec.core.url_to_fs(self.address, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise DatasetError(f"dataset.path {self.address!r} cannot be opened: {error}") from None
        return filesystem, root.rstrip("/")

    def _join(self, root: str, name: str) -> str:
        return f"{root}/{name}" if name else root

    def _missing(self, name: str) -> DatasetError:
        return DatasetError(
            f"dataset.path {self.address!r} has no file {name or 'of that name'!r}: correct the "
            "path, or put the file there (on every node that runs workers)"
        )


class RangeFile(io.RawIOBase):
    """A file of known size of which every read is one request for exactly these bytes.

    fsspec's own file objects read ahead by megabytes; Parquet says exactly which bytes it needs.
    """

    def __init__(self, files: DataFiles, name: str, size: int) -> None:
        self._files, self._name, self._size = files, name, size
        self._at = 0
        self.failed = False  # whether a request did: Parquet calls damage an OSError too

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is requested."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        self.failed = True
        data = self._files.read(self._name, self._at, stop)
        self._at, self.failed = stop, False
        return data
