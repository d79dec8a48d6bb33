"""The configuration of a run, its validation, and the two hashes that identify votes and plans."""

import copy
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config, DatasetConfig
from diffcert_ray.errors import ConfigError

METHOD_VERSION = 1  # raised by a change that changes votes; see the README's "Changes"


def presets() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("diffcert_ray") / "presets"
    return sorted(p.name[: -len(".toml")] for p in folder.iterdir() if p.name.endswith(".toml"))


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
    if isinstance(source, Config):
        tables = source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        tables = copy.deepcopy(dict(source))
    else:
        tables = _read_toml(str(source))
    for override in overrides:
        _apply_override(tables, override)
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    _check(config)
    return config


def _read_toml(source: str) -> dict[str, Any]:
    if source in presets():
        text = (resources.files("diffcert_ray") / "presets" / f"{source}.toml").read_text("utf-8")
    elif Path(source).is_dir():
        raise ConfigError(f"{source} is a folder: give the TOML file itself")
    elif Path(source).exists():
        text = _file_text(source)
    else:
        near = difflib.get_close_matches(source, presets(), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"no configuration file or preset {source!r}{hint}; presets: {', '.join(presets())}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
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
}


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? " if near else ""
            lines.append(f"unknown key {where!r}: {hint}Known here: {', '.join(known)}")
        else:
            hint = _REMEDIES.get(problem["type"], "")
            shown = hint.format(key=where, value=problem["input"])
            lines.append(f"{where} is {problem['input']!r}: {problem['msg']}{shown}")
    return "; ".join(lines)


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)


def _check(config: Config) -> None:
    """What one key alone cannot tell."""
    votes, levels = config.votes, config.noise_levels
    chosen = [k for k in ("first", "every", "ids", "sample") if getattr(config.dataset, k)]
    if len(chosen) > 1:
        raise ConfigError(f"dataset.{' and dataset.'.join(chosen)} exclude each other: keep one")
    if config.model.unconditional_config is not None and config.model.unconditional is None:
        raise ConfigError(
            "model.unconditional_config is given, but no model.unconditional that it could be of: "
            "name that checkpoint, or say it in model.config"
        )
    if config.without_votes:
        _check_plain(config)
        return
    for sigma in votes.sigmas:
        if 2 * sigma >= levels.max and not config.direct:
            raise ConfigError(
                f"votes.sigmas has {sigma}: its level in model space is 2 * {sigma} = "
                f"{2 * sigma}, at or "
                f"above noise_levels.max = {levels.max}; raise noise_levels.max or lower sigma"
            )
    if config.direct and config.model.resize is not None:
        raise ConfigError(
            f'model.resize = "{config.model.resize}" works with method.name = "apndc" only: leave '
            f'it out for "{config.method.name}", whose classifier sees the stored resolution'
        )
    if len(set(votes.sigmas)) < len(votes.sigmas):
        raise ConfigError(f"votes.sigmas = {list(votes.sigmas)} names a sigma twice: keep one")
    if votes.bound == "two-class" and votes.estimate == "target":
        raise ConfigError(
            'votes.bound = "two-class" needs complete votes: set votes.estimate = "complete"'
        )
    if votes.bound == "sequential" and votes.n % votes.unit:
        raise ConfigError(
            f"votes.n = {votes.n} is not a multiple of votes.unit = {votes.unit}: looks of the "
            "sequential bound are at the ends of units; change one of them"
        )


def _check_plain(config: Config) -> None:
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


def _weights(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the networks are: the hash of each file, and what the configuration says of it."""
    identity: dict[str, Any] = {f"weights.{role}": sha for role, sha in weights.items()}
    for role, file in model_files(config).items():
        identity |= {f"weights.{role}.{key}": value for key, value in file.identity().items()}
    return identity


def canonical_hash(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of a mapping."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def votes_identity(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a vote depends on besides its address and its image.

    Args:
        config: the configuration, with final [numerics].
        weights: sha256 of each checkpoint by role ("denoiser", "unconditional", "classifier").

    Returns:
        A flat mapping from key to value (a key that is not set is left out); ``canonical_hash`` of
        it is the votes_id. Keys that are added in later versions are to be left out while at their
        default, so that old runs keep their id.
    """
    if config.without_votes:
        return _losses_identity(config, weights)
    if config.direct:
        return _direct_identity(config, weights)
    sift = config.sift.model_dump()
    used = {
        "full": ("rule",),
        "exact": ("rule",),
        "paired-z": ("rule", "z", "first_ratio", "first_level"),
        "threshold": ("rule", "threshold", "keep", "threshold_levels"),
    }[config.sift.rule]
    identity: dict[str, Any] = {
        "method_version": METHOD_VERSION,
        "method": config.method.name,
        "pixels": "u = 2x - 1",
        "votes.seed": config.votes.seed,
        "votes.unit": config.votes.unit,
        "votes.estimate": config.votes.estimate,
    }
    identity |= {f"noise_levels.{k}": v for k, v in config.noise_levels.model_dump().items()}
    identity |= {f"sift.{k}": sift[k] for k in used}
    identity |= {"model.resize": config.model.resize}
    identity |= _numerics_identity(config)
    identity |= _weights(config, weights)
    return {key: value for key, value in identity.items() if value is not None}


def _numerics_identity(config: Config) -> dict[str, Any]:
    """What is computed with; the memory's layout only where it is not as it always was."""
    identity = {f"numerics.{k}": v for k, v in config.numerics.model_dump().items()}
    identity["numerics.channels_last"] = config.numerics.channels_last or None
    return identity


def _losses_identity(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a loss of the plain classifier depends on besides its address and image."""
    identity: dict[str, Any] = {
        "method_version": METHOD_VERSION,
        "method": config.method.name,
        "pixels": "u = 2x - 1, projected on the box, output clipped to it",
        "votes.seed": config.votes.seed,
        "plain.unit": config.plain.unit,
    }
    identity |= {f"noise_levels.{k}": v for k, v in config.noise_levels.model_dump().items()}
    identity |= _numerics_identity(config)
    identity |= _weights(config, weights)
    return {key: value for key, value in identity.items() if value is not None}


def _direct_identity(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a vote of a trained classifier depends on besides its address and image."""
    about = config.classifier
    identity: dict[str, Any] = {
        "method_version": METHOD_VERSION,
        "method": config.method.name,
        "pixels": "x as stored, an estimate clipped to [0, 1]",
        "votes.seed": config.votes.seed,
        "votes.unit": config.votes.unit,
        "votes.estimate": config.votes.estimate,
        "classifier.architecture": about.architecture,
        "classifier.mean": None if about.mean is None else list(about.mean),
        "classifier.std": None if about.std is None else list(about.std),
    }
    identity |= _numerics_identity(config)
    identity |= _weights(config, weights)
    return {key: value for key, value in identity.items() if value is not None}


def plan_identity(config: Config, votes_id: str) -> dict[str, Any]:
    """What a run is asked for: the votes, the subset and what is certified."""
    votes = config.votes
    if config.without_votes:
        return {
            "votes_id": votes_id,
            "dataset": _subset(config.dataset),
            "draws": config.plain.draws,
            "alpha": votes.alpha,
        }
    return {
        "votes_id": votes_id,
        "dataset": _subset(config.dataset),
        "sigmas": list(votes.sigmas),
        "n0": votes.n0,
        "n": votes.n,
        "alpha": votes.alpha,
        "bound": votes.bound,
        "radii": list(votes.radii),
        "futility": votes.futility,
    }


def _subset(dataset: DatasetConfig) -> dict[str, Any]:
    """Which images are asked for, wherever they are; keys added later only where they are set."""
    first_keys = ("name", "split", "first", "every", "ids", "sample", "seed")
    tables = dataset.model_dump(mode="json", exclude={"path", "on_corrupt"})
    return {k: v for k, v in tables.items() if k in first_keys or v is not None}
