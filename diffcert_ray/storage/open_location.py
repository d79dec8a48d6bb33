"""The create-only folder at an address: a local path or an fsspec address."""

import os
from collections.abc import Mapping
from typing import Any

from diffcert_ray.storage.local_folder import LocalFolder
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.object_prefix import ObjectPrefix


def open_location(address: str, storage_options: Mapping[str, Any] | None = None) -> Location:
    """The folder at an address; nothing is contacted yet.

    Args:
        address: a local path, `file://` address, or fsspec address such as `s3://bucket/prefix`.
        storage_options: what fsspec's filesystem takes (endpoint_url, profile, key, secret, ...);
            kept in memory only, never written or logged.

    Returns:
        A location that may be pickled and used after a fork.

    Raises:
        ValueError: the address is empty, or options are given for a local folder.
    """
    address = str(address)
    protocol, separator, rest = address.partition("://")
    if not address or (separator and not rest.strip("/")):
        raise ValueError(f"store address {address!r} names no folder: give a path or s3://b/prefix")
    if separator and protocol != "file":
        return ObjectPrefix(address.rstrip("/"), protocol, dict(storage_options or {}))
    if storage_options:
        raise ValueError(
            f"storage options {sorted(storage_options)} given for the local folder {address!r}: "
            "leave them out, or give an s3:// address"
        )
    path = os.path.abspath(os.path.expanduser(rest if separator else address))
    return LocalFolder(path)
