"""Reading the configuration of a training: a TOML file, a shipped preset or a mapping, checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diffcert_ray.config.loading import read_as
from diffcert_ray.config.selectors import the_selector
from diffcert_ray.config.training_tables import ClassifierTraining, DenoiserTraining, Training

DENOISERS, CLASSIFIERS = "presets/training", "presets/training/classifiers"
"""Where the shipped configurations lie in the package."""

Source = str | Path | Mapping[str, Any]
_T = TypeVar("_T", bound=Training)


def load_denoiser_training(
    source: Source | DenoiserTraining, overrides: Sequence[str] = ()
) -> DenoiserTraining:
    """Read and validate the training of a denoiser.

    Args:
        source: a TOML file, the name of a shipped training, a mapping, or a DenoiserTraining.
        overrides: "table.key=value" settings, as `load_config` takes them.

    Raises:
        ConfigError: unknown keys (with the nearest known one), values out of range, no such file.
    """
    return _load(DenoiserTraining, DENOISERS, source, overrides)


def load_classifier_training(
    source: Source | ClassifierTraining, overrides: Sequence[str] = ()
) -> ClassifierTraining:
    """Read and validate the training of a classifier; arguments as `load_denoiser_training`."""
    return _load(ClassifierTraining, CLASSIFIERS, source, overrides)


def _load(model: type[_T], folder: str, source: Source | _T, overrides: Sequence[str]) -> _T:
    config = read_as(model, source, overrides, folder)
    for images in (config.dataset, config.validation):
        if images is not None:
            the_selector(images.model_dump(exclude_none=True))
    return config
