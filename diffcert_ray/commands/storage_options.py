"""The option --storage-options: how to reach a run's store; kept in memory, never shown."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffcert_ray.config.tables import Config
from diffcert_ray.errors import ConfigError

StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-options",
        metavar="FILE.toml|KEY=VALUE",
        help="What fsspec takes to reach a store, as endpoint_url=http://host:9000; never stored; "
        "secrets belong in the file or the environment; may be repeated",
    ),
]


def storage_options(given: Sequence[str] | None) -> dict[str, Any]:
    """The values of --storage-options as what fsspec's filesystem takes.

    Args:
        given: TOML files, and KEY=VALUE with a TOML value or text; a dotted key goes into a table.
            Later ones win.

    Raises:
        ConfigError: one is neither, or a file cannot be read; no value is in the message.
    """
    options: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if equals:
            _put(options, key.strip().split("."), value.strip())
        else:
            options |= _file(text)
    return options


def with_storage_options(config: Config, given: Sequence[str] | None) -> Config:
    """A configuration with further storage options; what is given here wins over the file's."""
    options = config.execution.storage_options | storage_options(given)
    execution = config.execution.model_copy(update={"storage_options": options})
    return config.model_copy(update={"execution": execution})


def _put(options: dict[str, Any], keys: list[str], value: str) -> None:
    table = options
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            break
    if not all(keys) or not isinstance(table, dict):
        name = ".".join(keys)
        raise ConfigError(f"--storage-options {name!r}=... must be KEY=VALUE, or a .toml file")
    try:
        table[keys[-1]] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = value


def _file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--storage-options {path!r} cannot be read ({type(error).__name__}): give KEY=VALUE, "
            "or a TOML file of such lines"
        ) from None
    except tomllib.TOMLDecodeError:  # its message would show the line, which may hold a secret
        raise ConfigError(f"--storage-options {path!r} is not valid TOML") from None
