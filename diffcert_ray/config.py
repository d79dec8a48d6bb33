"""The configuration of a run, its validation, and the two hashes that identify votes and plans."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

METHOD_VERSION = 1  # raised by a change that changes votes; see the README's "Changes"

PLAIN_BOUNDS = ("lipschitz", "local")

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ConfigError(ValueError):
    """The configuration is wrong; the message names key, value, limit and remedy."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetConfig(_Table):
    """Which images; image ids are positions in the whole dataset, so a subset keeps them.

    ``first``, ``every``, ``ids`` and ``sample`` exclude each other. All but ``digits`` need
    ``path`` (``execution.storage_options`` opens a remote one); the columns are those of Parquet.
    ``label_map`` is the network's number of each class, ``image_shape`` (channels, height, width)
    is for files that do not say it, ``num_classes`` for a network that has more. ``on_corrupt``:
    an image that cannot be decoded stops the run before any work, or it is reported, skipped and
    counted as an abstention.
    """

    name: str = "digits"
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "test"
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    label_map: tuple[int, ...] | dict[str, int] | str | None = None
    num_classes: Count | None = None
    image_shape: tuple[Count, Count, Count] | None = None
    on_corrupt: Literal["stop", "skip"] = "stop"
    first: Count | None = None
    every: Count | None = None
    ids: tuple[int, ...] | None = None
    sample: Count | None = None
    seed: Annotated[int, Field(ge=0)] | None = None


class ModelConfig(_Table):
    """The denoiser's weights: a shipped model's name or a file.

    ``unconditional`` is a second checkpoint for the unconditional step of apndc, needed when the
    first one was trained without label dropout. ``resize`` says how its output is brought to the
    first one's resolution where images, noise and ``unconditional`` have another one. ``sha256``
    pins the file.
    """

    checkpoint: str = "digits"
    sha256: str | None = None
    unconditional: str | None = None
    unconditional_sha256: str | None = None
    resize: Literal["area", "bilinear", "bicubic"] | None = None


class MethodConfig(_Table):
    """The noised diffusion classifier that casts the votes."""

    name: Literal["dc", "epndc", "apndc", "apndc-posterior"] = "apndc"


class NoiseLevelsConfig(_Table):
    """The grid of noise levels s (model space, images in [-1, 1]) and the weight density over them.

    ``min`` defaults to s_tau = 2 * sigma, the level of the smoothing noise (1e-4 for ``dc``; for
    ``epndc`` slightly above s_tau, where its weight is finite).
    """

    grid: Literal["linear", "quantile"] = "quantile"
    weights: Literal["edm", "elbo", "uniform", "linear-s", "reference"] = "edm"
    levels: Annotated[int, Field(ge=1, le=4096)] = 126
    min: Positive | None = None
    max: Positive = 3.0


class SiftConfig(_Table):
    """How a vote spends its evaluations; see ``diffcert_ray.sift``.

    ``levels`` is where a vote that is still open leaves the sift stage; it does not change the
    vote.
    ``threshold_levels`` is how many levels the rule ``threshold`` sifts over at most.
    """

    rule: Literal["full", "exact", "paired-z", "threshold"] = "paired-z"
    z: Positive = 2.0
    first_ratio: Annotated[float, Field(gt=1)] = 2.0
    first_level: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    threshold: Positive = 0.02
    keep: Count = 10
    threshold_levels: Count = 50
    levels: Count = 15


class VotesConfig(_Table):
    """How many votes, at which sigmas (pixel units), and what is certified from them.

    ``estimate = "target"`` lets an estimation vote stop once it is certain whether it is the chosen
    class; ``complete`` asks every vote for its class (needed by ``two-class``). The bounds
    ``lipschitz`` and ``local`` certify the plain classifier without votes, see ``PlainConfig``;
    only
    ``alpha``, ``radii`` and ``seed`` matter to them here.
    """

    sigmas: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.25,)
    n0: Count = 100
    n: Count = 1000
    alpha: Fraction = 0.001
    bound: Literal["clopper-pearson", "two-class", "sequential", "lipschitz", "local"] = (
        "clopper-pearson"
    )
    radii: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    estimate: Literal["complete", "target"] = "complete"
    unit: Count = 100
    futility: Fraction = 0.01
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class PlainConfig(_Table):
    """How many noise draws bound the losses of the plain classifier (lipschitz, local).

    ``draws`` is fixed before the first draw; ``unit`` draws at a time are summed, stored and
    resumed.
    """

    draws: Count = 2048
    unit: Annotated[int, Field(ge=1, le=4096)] = 32


class NumericsConfig(_Table):
    """What a vote's last bits depend on; written once into a run, adopted by every resume."""

    batch: Annotated[int, Field(ge=1, le=65536)] = 128
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False


class ExecutionConfig(_Table):
    """How the work is carried out; nothing here changes a vote."""

    stages: Literal["split", "fused"] = "fused"
    actors: Count | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_actor: Annotated[float, Field(gt=0, le=8)] = 1.0
    item_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    flush_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    start_timeout_s: Positive = 600.0
    stall_timeout_s: Positive = 1800.0
    storage_options: dict[str, Any] = Field(default_factory=dict)


class Config(_Table):
    """One run: dataset, model, method, votes; and how it is carried out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    noise_levels: NoiseLevelsConfig = NoiseLevelsConfig()
    sift: SiftConfig = SiftConfig()
    votes: VotesConfig = VotesConfig()
    plain: PlainConfig = PlainConfig()
    numerics: NumericsConfig = NumericsConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @property
    def without_votes(self) -> bool:
        """Whether the plain classifier is certified, from its losses and without votes."""
        return self.votes.bound in PLAIN_BOUNDS


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
        tables = json.loads(json.dumps(dict(source)))
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
    elif Path(source).is_file():
        text = Path(source).read_text("utf-8")
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
            lines.append(f"{where} is {problem['input']!r}: {problem['msg']}")
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
    if config.without_votes:
        _check_plain(config)
        return
    for sigma in votes.sigmas:
        if 2 * sigma >= levels.max:
            raise ConfigError(
                f"votes.sigmas has {sigma}: its level in model space is 2 * {sigma} = "
                f"{2 * sigma}, at or "
                f"above noise_levels.max = {levels.max}; raise noise_levels.max or lower sigma"
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


def canonical_hash(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of a mapping."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def votes_identity(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a vote depends on besides its address and its image.

    Args:
        config: the configuration, with final [numerics].
        weights: sha256 of each checkpoint by role ("denoiser", "unconditional").

    Returns:
        A flat mapping from key to value (a key that is not set is left out); ``canonical_hash`` of
        it is the votes_id. Keys that are added in later versions are to be left out while at their
        default, so that old runs keep their id.
    """
    if config.without_votes:
        return _losses_identity(config, weights)
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
    identity |= {f"numerics.{k}": v for k, v in config.numerics.model_dump().items()}
    identity |= {f"weights.{role}": sha for role, sha in weights.items()}
    return {key: value for key, value in identity.items() if value is not None}


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
    identity |= {f"numerics.{k}": v for k, v in config.numerics.model_dump().items()}
    identity |= {f"weights.{role}": sha for role, sha in weights.items()}
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
