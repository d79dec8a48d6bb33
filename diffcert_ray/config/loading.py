"""Reading a configuration: a file, preset or mapping with overrides, checked as a whole."""

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from diffcert_ray.config.selectors import the_selector
from diffcert_ray.config.tables import MOST, Config, VotesConfig
from diffcert_ray.errors import ConfigError, nearest

RUN_PRESETS = "presets"
"""Where the shipped configurations of runs lie in the package."""

Tables = TypeVar("Tables", bound=BaseModel)


def presets(folder: str = RUN_PRESETS) -> list[str]:
    """Names of the shipped configurations, of runs or of what lies in another folder."""
    files = (resources.files("diffcert_ray") / folder).iterdir()
    return sorted(p.name[: -len(".toml")] for p in files if p.name.endswith(".toml"))


def load_config(
    source: "str | Path | Mapping[str, Any] | Config", overrides: Sequence[str] = ()
) -> Config:
    """Read and validate a configuration.

    Args:
        source: a TOML file, the name of a shipped preset, a mapping, or a Config.
        overrides: "table.key=value" settings that replace the source's; values are TOML, a bare
            word is a string.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values out of range, no such file.
    """
    config = read_as(Config, source, overrides)
    _check(config)
    return config


def read_as(
    model: type[Tables],
    source: "str | Path | Mapping[str, Any] | Tables",
    overrides: Sequence[str] = (),
    folder: str = RUN_PRESETS,
) -> Tables:
    """Read tables and validate them, key by key.

    Args:
        model: what they must be.
        source: a TOML file, the name of a preset in the folder, a mapping, or a model.
        overrides: as `load_config` takes them.
        folder: where presets of this kind lie in the package.

    Returns:
        The validated tables.

    Raises:
        ConfigError: as of `load_config`.
    """
    if isinstance(source, model):
        tables = source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        tables = copy.deepcopy(dict(source))
    else:
        tables = _read_toml(str(source), folder)
        if str(source) not in presets(folder):
            _from_its_folder(tables, Path(str(source)).absolute().parent)
    for override in overrides:
        _apply_override(tables, override)
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(_explain(error, model)) from None


def _read_toml(source: str, folder: str) -> dict[str, Any]:
    if source in presets(folder):
        text = (resources.files("diffcert_ray") / folder / f"{source}.toml").read_text("utf-8")
    elif Path(source).is_dir():
        raise ConfigError(f"{source} is a folder: give the TOML file itself")
    elif Path(source).exists():
        text = _file_text(source)
    else:
        hint = nearest(source, presets(folder), "presets:")
        raise ConfigError(f"no configuration file or preset {source!r}{hint}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def _from_its_folder(tables: dict[str, Any], folder: Path) -> None:
    """Relative paths of images, as those that read a file mean them: from the file's folder.

    Where there is nothing, they are left as they are: from the folder of this process.
    """
    for table in ("dataset", "validation"):
        images = tables.get(table)
        if not isinstance(images, dict):
            continue
        for key in ("path", "label_map"):
            given = images.get(key)
            if isinstance(given, str) and "://" not in given and (folder / given).exists():
                images[key] = os.path.abspath(folder / given)


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): give a TOML file, "
            "saved as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror}): make it readable, or give another file"
        ) from None


def _apply_override(tables: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override!r} must be table.key=value, as in votes.n=1000")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for key in keys[:-1]:
        tables = tables.setdefault(key, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a table")
    tables[keys[-1]] = parsed


_REMEDIES = {
    "tuple_type": "; give a list, as in {key}=[{value}]",
    "list_type": "; give a list, as in {key}=[{value}]",
    "model_type": "; it is a table: set one of its keys, as in {key}.KEY=VALUE",
    "int_parsing": "; give a whole number",
    "int_parsing_size": f"; give {MOST} at most",
}


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            lines.append(f"unknown key {where!r}{nearest(str(problem['loc'][-1]), known)}")
        else:
            hint = _REMEDIES.get(problem["type"], "")
            shown = hint.format(key=where, value=problem["input"])
            lines.append(f"{where} is {problem['input']!r}: {problem['msg']}{shown}")
    return "; ".join(lines)


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        model = table_of(model.model_fields[str(part)].annotation) or model
    return list(model.model_fields)


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The table that a key holds, which may be left out; None if it holds a value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _check(config: Config) -> None:
    """What one key alone cannot tell."""
    the_selector(config.dataset.model_dump(exclude_none=True))
    _check_execution(config)
    if config.model.unconditional_config is not None and config.model.unconditional is None:
        raise ConfigError(
            "model.unconditional_config is given, but no model.unconditional that it could be of: "
            "name that checkpoint, or say it in model.config"
        )
    _CHECKS[config.kind_name](config)


def _check_execution(config: Config) -> None:
    execution = config.execution
    if execution.gpus_per_actor > 1 and execution.gpus_per_actor % 1:
        raise ConfigError(
            f"execution.gpus_per_actor = {execution.gpus_per_actor:g} is more than a GPU and no "
            "whole number: Ray gives a worker a share of one GPU, or whole ones; set 0.5 or 2, say"
        )
    if execution.actors is not None and execution.most_actors is not None:
        raise ConfigError(
            f"execution.actors = {execution.actors} and execution.most_actors = "
            f"{execution.most_actors} are both set: actors are started whatever the cluster has, "
            "most_actors only without it; leave one out"
        )


def _check_diffusion(config: Config) -> None:
    for sigma in config.votes.sigmas:
        if 2 * sigma >= config.noise_levels.max:
            raise ConfigError(
                f"votes.sigmas has {sigma}: its level in model space is 2 * {sigma} = "
                f"{2 * sigma}, at or above noise_levels.max = {config.noise_levels.max}; raise "
                "noise_levels.max or lower sigma"
            )
    _check_votes(config)


def _check_trained(config: Config) -> None:
    if config.model.resize is not None:
        raise ConfigError(
            f'model.resize = "{config.model.resize}" works with method.name = "apndc" only: leave '
            f'it out for "{config.method.name}", whose classifier sees the stored resolution'
        )
    _check_votes(config)


def _check_votes(config: Config) -> None:
    votes = config.votes
    if config.uses_head and config.sift.head is None:
        asked = 'sift.rule = "shortlist"'
        if config.method.name == "shortlist-classify":
            asked = 'method.name = "shortlist-classify"'
        raise ConfigError(
            f"{asked} needs a head that proposes classes: set sift.head to a shipped one "
            '("digits") or to a file that was trained on your network'
        )
    if len(set(votes.sigmas)) < len(votes.sigmas):
        raise ConfigError(f"votes.sigmas = {list(votes.sigmas)} names a sigma twice: keep one")
    if votes.select is None and votes.select_unit != VotesConfig().select_unit:
        raise ConfigError(
            f"votes.select_unit = {votes.select_unit} without votes.select: set votes.select, the "
            "lead at which selection stops, as in votes.select=5, or leave it out"
        )
    if votes.select is not None and votes.select > votes.n0:
        raise ConfigError(
            f"votes.select = {votes.select} is more than votes.n0 = {votes.n0}, the most selection "
            "votes: no class can be so far ahead; lower votes.select or raise votes.n0"
        )
    if votes.bound == "two-class" and votes.estimate == "target":
        raise ConfigError(
            'votes.bound = "two-class" needs complete votes: set votes.estimate = "complete"'
        )
    if votes.bound == "sequential" and votes.n % votes.unit:
        raise ConfigError(
            f"votes.n = {votes.n} is not a multiple of votes.unit = {votes.unit}: looks of the "
            "sequential bound are at the ends of units; change one of them"
        )


def _check_losses(config: Config) -> None:
    if config.method.name != "dc":
        raise ConfigError(
            f'votes.bound = "{config.votes.bound}" certifies the plain classifier, but '
            "method.name = "
            f'"{config.method.name}": set method.name = "dc", or a bound from votes'
        )
    if config.noise_levels.weights == "reference":
        raise ConfigError(
            f'votes.bound = "{config.votes.bound}" with noise_levels.weights = "reference": use '
            '"linear-s" with min = 1.0, where losses change slowly, or another density'
        )


_CHECKS = {"diffusion": _check_diffusion, "trained": _check_trained, "losses": _check_losses}
