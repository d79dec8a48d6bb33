"""What identifies a tuning: stored once, so that its folder is never continued with another one."""

import json
from collections.abc import Mapping
from typing import Any

from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.sealed_json import seal, unseal

RECORD = "tuning.json"


def keep_record(location: Location, content: Mapping[str, Any]) -> None:
    """Note what a tuning is, or see that the folder's is the same.

    Args:
        location: the output folder.
        content: everything that its stored heads and votes depend on, JSON-able.

    Raises:
        ConfigError: it is another one; names every differing key.
        StoreError: the note is damaged, or cannot be written.
    """
    location.check_writable()
    try:
        location.create(RECORD, seal(content))
        return
    except FileExistsError:
        pass
    try:
        stored = unseal(location.read(RECORD))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{location.address}/{RECORD} is damaged ({error}): restore it, or give another "
            "--output"
        ) from None
    now = json.loads(json.dumps(dict(content)))
    differing = [k for k in sorted({*stored, *now}) if stored.get(k) != now.get(k)]
    if differing:
        shown = "; ".join(f"{k}: there {stored.get(k)!r}, now {now.get(k)!r}" for k in differing)
        raise ConfigError(
            f"{location.address} holds another tuning ({shown}): give another --output, or the "
            "command that it was begun with"
        )
