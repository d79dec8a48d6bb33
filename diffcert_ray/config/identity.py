"""What identifies a run's votes, and what it asks of them: mappings, and the hash of a mapping."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config, DatasetConfig

METHOD_VERSION = 2  # raised by a change that changes votes


def canonical_hash(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of a mapping."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def votes_identity(
    config: Config, weights: Mapping[str, str], method_version: int | None = None
) -> dict[str, Any]:
    """Everything that a vote depends on besides its address and its image.

    Args:
        config: the configuration, with final [numerics].
        weights: sha256 of each checkpoint by role ("denoiser", "unconditional", "classifier").
        method_version: of a stored run; by default this program's.

    Returns:
        A flat mapping from key to value (a key that is not set is left out); ``canonical_hash`` of
        it is the votes_id. Keys that are added in later versions are to be left out while at their
        default, so that old runs keep their id.
    """
    identity: dict[str, Any] = {
        "method_version": METHOD_VERSION if method_version is None else method_version,
        "method": config.method.name,
        "votes.seed": config.votes.seed,
        **_identities(config).votes(config),
        **_numerics(config),
        **_weights(config, weights),
    }
    return {key: value for key, value in identity.items() if value is not None}


def plan_identity(config: Config, votes_id: str) -> dict[str, Any]:
    """What a run is asked for: the votes, the subset and what is certified."""
    identity = {"votes_id": votes_id, "dataset": _subset(config.dataset)}
    return identity | {"alpha": config.votes.alpha, **_identities(config).asked(config)}


def _levels(config: Config) -> dict[str, Any]:
    return {f"noise_levels.{k}": v for k, v in config.noise_levels.model_dump().items()}


def _votes(config: Config) -> dict[str, Any]:
    """What votes are asked about, and how they are cut into units."""
    votes = config.votes
    return {
        "votes.unit": votes.unit,
        "votes.estimate": votes.estimate,
        "votes.select": votes.select,
        "votes.select_unit": votes.select_unit if votes.select is not None else None,
    }


def _diffusion(config: Config) -> dict[str, Any]:
    sift = config.sift.model_dump()
    used = {
        "full": ("rule",),
        "exact": ("rule",),
        "paired-z": ("rule", "z", "first_ratio", "first_level"),
        "shortlist": ("rule", "z", "first_level", "least_p"),
        "threshold": ("rule", "threshold", "keep", "threshold_levels"),
    }[config.sift.rule]
    return {
        "pixels": "u = 2x - 1",
        **_votes(config),
        **_levels(config),
        **{f"sift.{k}": sift[k] for k in used},
        "model.resize": config.model.resize,
    }


def _trained(config: Config) -> dict[str, Any]:
    about = config.classifier
    return {
        "pixels": "x as stored, an estimate clipped to [0, 1]",
        **_votes(config),
        "classifier.architecture": about.architecture,
        "classifier.mean": None if about.mean is None else list(about.mean),
        "classifier.std": None if about.std is None else list(about.std),
    }


def _losses(config: Config) -> dict[str, Any]:
    return {
        "pixels": "u = 2x - 1, projected on the box, output clipped to it",
        "plain.unit": config.plain.unit,
        **_levels(config),
    }


def _asked_votes(config: Config) -> dict[str, Any]:
    votes = config.votes
    return {
        "sigmas": list(votes.sigmas),
        "n0": votes.n0,
        "n": votes.n,
        "bound": votes.bound,
        "radii": list(votes.radii),
        "futility": votes.futility,
    }


def _asked_draws(config: Config) -> dict[str, Any]:
    return {"draws": config.plain.draws}


class _Identities(NamedTuple):
    """What a kind of run adds to the identity of its votes, and of what it asks."""

    votes: Callable[[Config], dict[str, Any]]
    asked: Callable[[Config], dict[str, Any]]


def _identities(config: Config) -> _Identities:
    return {
        "diffusion": _Identities(_diffusion, _asked_votes),
        "trained": _Identities(_trained, _asked_votes),
        "losses": _Identities(_losses, _asked_draws),
    }[config.kind_name]


def _numerics(config: Config) -> dict[str, Any]:
    """What is computed with; the memory's layout only where it is not as it always was."""
    identity = {f"numerics.{k}": v for k, v in config.numerics.model_dump().items()}
    identity["numerics.channels_last"] = config.numerics.channels_last or None
    return identity


def _weights(config: Config, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the networks are: the hash of each file, and what the configuration says of it."""
    identity: dict[str, Any] = {f"weights.{role}": sha for role, sha in weights.items()}
    for role, file in model_files(config).items():
        identity |= {f"weights.{role}.{key}": value for key, value in file.identity().items()}
    return identity


def _subset(dataset: DatasetConfig) -> dict[str, Any]:
    """Which images are asked for, wherever they are; keys added later only where they are set."""
    first_keys = ("name", "split", "first", "every", "ids", "sample", "seed")
    tables = dataset.model_dump(mode="json", exclude={"path", "on_corrupt"})
    return {k: v for k, v in tables.items() if k in first_keys or v is not None}
