"""A create-only prefix of an object store, through fsspec."""

import contextlib
import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import probe_create_only, visible

logger = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN_KEY = "creation"  # of the metadata of each object
RETRY_DELAYS_S = (0.2, 0.8, 3.0, 6.0)
CREDENTIALS_REMEDY = (
    "check the credentials (environment, profile or storage options) and that they may get, put, "
    "list and delete there"
)
OUTAGE_REMEDY = "check the endpoint and the network, then run the same command again"


@dataclass
class ObjectPrefix:
    """A prefix of an object store, through fsspec (`s3://` through s3fs).

    The filesystem object is made in the process that first uses it: its event loop survives
    neither pickling nor a fork. Retries are done here and not by the client's layers, so that
    their number and their waits are known and each is logged.

    Args:
        address: of the prefix, without a slash at its end.
        protocol: of fsspec, as "s3".
        storage_options: what its filesystem takes; shown nowhere.
        retry_delays_s: waits before each further try, s.
    """

    address: str
    protocol: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S
    _filesystem: Any = field(default=None, init=False, repr=False, compare=False)
    _pid: int = field(default=0, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_filesystem": None, "_pid": 0}

    def create(self, name: str, data: bytes) -> None:
        """Publish a new object by one conditional PUT.

        Raises:
            FileExistsError: the name is taken by another object.
            StoreError: the store stayed unwritable over all retries.

        Source:
            ours: `If-None-Match: *` makes the PUT create-only. When an answer was lost and the PUT
            repeated (by aiohttp even out of sight, on a kept connection), 'exists' may mean our own
            object: a random token in its metadata tells.
        """
        token = secrets.token_hex(16)
        marks = {"Metadata": {TOKEN_KEY: token}} if self._is_s3 else {}
        attempts = 0

        def put() -> None:
            nonlocal attempts
            attempts += 1
            self.filesystem().pipe_file(self._path(name), data, mode="create", **marks)

        try:
            self._retried(put, "write", name)
        except FileExistsError:
            own = self._token(name) == token if marks else attempts > 1 and self.read(name) == data
            if not own:
                raise FileExistsError(
                    errno.EEXIST, "already stored", f"{self.address}/{name}"
                ) from None

    def read(self, name: str) -> bytes:
        """The whole object; FileNotFoundError if there is none, StoreError if it stays away."""
        return self._retried(
            lambda: bytes(self.filesystem().cat_file(self._path(name))), "read", name
        )

    def list(self, folder: str) -> list[str]:
        """Sorted names of the objects directly in a folder; empty if there are none."""

        def listed() -> list[str]:
            try:
                rows = self.filesystem().ls(self._path(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return []
            return [row["name"].rsplit("/", 1)[-1] for row in rows if row["type"] == "file"]

        return visible(folder, self._retried(listed, "list", folder))

    def exists(self, name: str) -> bool:
        """Whether the object is there."""

        def is_there() -> bool:
            try:
                self.filesystem().info(self._path(name), refresh=True)
            except FileNotFoundError:
                return False
            return True

        return self._retried(is_there, "look for", name)

    def delete(self, name: str) -> None:
        """Remove the object; nothing happens if it is missing."""

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem().rm_file(self._path(name))

        self._retried(removed, "delete", name)

    def check_writable(self) -> None:
        """Prove that objects can be created, only once, and read back; else StoreError."""
        probe_create_only(self)

    def filesystem(self) -> Any:
        """This process's fsspec filesystem, made at first use."""
        if self._filesystem is None or self._pid != os.getpid():
            self._filesystem = self._connect()
            self._pid = os.getpid()
        return self._filesystem

    def _connect(self) -> Any:
        import fsspec

        options = dict(self.storage_options)
        if self._is_s3:
            config = dict(options.get("config_kwargs") or {})
            # One GET per object instead of a HEAD and ranges that are joined unchecked.
            options.setdefault("max_concurrency", 1)
            options["config_kwargs"] = {"retries": {"max_attempts": 0}} | config
        try:
            filesystem = fsspec.filesystem(
                self.protocol, use_listings_cache=False, skip_instance_cache=True, **options
            )
        except (ImportError, ValueError, TypeError) as error:
            raise StoreError(
                f"cannot open {self.address}: {error}; give a local path, an s3:// address, or "
                "install what this protocol needs"
            ) from error
        if self._is_s3:
            filesystem.retries = 1
        return filesystem

    @property
    def _is_s3(self) -> bool:
        return self.protocol in ("s3", "s3a")

    def _token(self, name: str) -> str | None:
        path = self._path(name)
        metadata = self._retried(lambda: self.filesystem().metadata(path), "look for", name)
        token: str | None = metadata.get(TOKEN_KEY)
        return token

    def _path(self, name: str) -> str:
        root = self.address.partition("://")[2]
        return f"{root}/{name}" if name else root

    def _retried(self, attempt: Callable[[], T], verb: str, name: str) -> T:
        for delay_s in (*self.retry_delays_s, None):
            try:
                return attempt()
            except (FileExistsError, FileNotFoundError) as error:
                if verb == "write" and isinstance(error, FileNotFoundError):
                    raise self._unusable(verb, name, error, "make the bucket first") from error
                raise
            except PermissionError as error:
                raise self._unusable(verb, name, error, CREDENTIALS_REMEDY) from error
            except transient_errors() as error:
                if is_precondition_failure(error):
                    raise FileExistsError(errno.EEXIST, "already stored", name) from error
                if is_missing_credentials(error):
                    raise self._unusable(verb, name, error, CREDENTIALS_REMEDY) from error
                if delay_s is None:
                    raise self._unusable(verb, name, error, OUTAGE_REMEDY) from error
                logger.warning(
                    "%s %s/%s failed, trying again in %.1f s: %s",
                    verb,
                    self.address,
                    name,
                    delay_s,
                    describe(error),
                )
                time.sleep(delay_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _unusable(self, verb: str, name: str, error: Exception, remedy: str) -> StoreError:
        return StoreError(f"cannot {verb} {self.address}/{name} ({describe(error)}): {remedy}")


def describe(error: Exception) -> str:
    """One line for an error, with its type where its own text is empty."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def transient_errors() -> tuple[type[Exception], ...]:
    """What an object store's client raises for a failed call; imported only when one is used."""
    errors: list[type[Exception]] = [OSError, TimeoutError, EOFError]
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError, ClientError

        errors += [BotoCoreError, ClientError]
    with contextlib.suppress(ImportError):
        from aiohttp import ClientError as HttpError

        errors.append(HttpError)
    return tuple(errors)


def is_precondition_failure(error: Exception) -> bool:
    """Whether a store said 'exists' in words that its client did not translate."""
    response = getattr(error.__cause__ or error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code in ("PreconditionFailed", "412")


def is_missing_credentials(error: Exception) -> bool:
    """Whether the client found no credentials at all."""
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
