"""Which networks a run computes with: the sha256 of every checkpoint or object, by role."""

import hashlib

import numpy as np
from torch import nn

from diffcert_ray.checkpoints.files import checkpoint_sha256
from diffcert_ray.checkpoints.head_file import head_sha256
from diffcert_ray.checkpoints.image_classifier import classifier_sha256, needed_checkpoint
from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.errors import ConfigError


def weights_of(
    config: Config, denoiser: Denoiser | None = None, classifier: nn.Module | None = None
) -> dict[str, str]:
    """The sha256 of every checkpoint of a run by role.

    Of an object in a checkpoint's place, the tensors of its ``state_dict()`` are hashed.

    Raises:
        ConfigError: a pinned hash is another file's, an object has nothing to hash, or the method
            needs a classifier and there is none, or none and there is one.
    """
    head = _head_weights(config)
    if config.kind_name == "trained" and config.method.name != "shortlist-classify":
        return _trained_weights(config, denoiser, classifier)
    if classifier is not None:
        raise ConfigError(
            f'a classifier was given, but method.name = "{config.method.name}" uses none: set '
            '"classify" or "denoise-classify"'
        )
    if denoiser is not None:
        return {"denoiser": _object_sha256(denoiser)} | head
    return _denoiser_weights(config) | head


def _head_weights(config: Config) -> dict[str, str]:
    about = config.sift
    if about.head is None or not config.uses_head:
        return {}
    sha256 = head_sha256(about.head, config.execution.storage_options)
    return {"head": _as_pinned(about.head, sha256, about.head_sha256, "sift.head_sha256")}


def _trained_weights(
    config: Config, denoiser: Denoiser | None, classifier: nn.Module | None
) -> dict[str, str]:
    about = config.classifier
    weights: dict[str, str] = {}
    if classifier is not None:
        weights["classifier"] = _object_sha256(classifier)
    else:
        source = needed_checkpoint(config)
        sha256 = classifier_sha256(source, config.execution.storage_options)
        weights["classifier"] = _as_pinned(source, sha256, about.sha256, "classifier.sha256")
    if config.method.name == "denoise-classify" and denoiser is not None:
        return weights | {"denoiser": _object_sha256(denoiser)}
    return weights | _denoiser_weights(config)


def _denoiser_weights(config: Config) -> dict[str, str]:
    options = config.execution.storage_options
    return {
        role: _as_pinned(
            file.source, checkpoint_sha256(file.source, options), file.sha256, file.sha256_key
        )
        for role, file in model_files(config).items()
    }


def _as_pinned(source: str, actual: str, expected: str | None, key: str) -> str:
    if expected is not None and expected.lower() != actual:
        raise ConfigError(
            f"{key} is {expected}, but the file {source!r} has {actual}: it is another file; "
            "correct the path or the hash"
        )
    return actual


def _object_sha256(denoiser: Denoiser | nn.Module) -> str:
    state_dict = getattr(denoiser, "state_dict", None)
    if not callable(state_dict):
        raise ConfigError(
            f"a {type(denoiser).__name__} has no parameters to identify the run by: pass a torch "
            "module, or a checkpoint in model.checkpoint"
        )
    digest = hashlib.sha256(type(denoiser).__name__.encode())
    for name, tensor in sorted(state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
