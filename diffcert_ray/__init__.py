"""Certified robustness of diffusion classifiers, for whole datasets, on Ray.

Importing the package imports neither torch nor ray: the public names load what they need when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffcert_ray.certificates.metrics import certified_accuracy
    from diffcert_ray.certificates.radius import Certificate, certificate
    from diffcert_ray.checkpoints.load import load_denoiser
    from diffcert_ray.conventions import ABSTAIN
    from diffcert_ray.datasets import Dataset, load_dataset
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.engine.classifier import Classifier
    from diffcert_ray.errors import (
        CheckpointError,
        ConfigError,
        CorruptImageError,
        DatasetError,
        LogError,
        PixelsError,
        PoolError,
        StoreError,
        TrainingError,
        VotesError,
    )
    from diffcert_ray.run.certify import certify
    from diffcert_ray.run.stored import Run, open_run

    __version__: str

_WHERE = {
    "ABSTAIN": "conventions",
    "Certificate": "certificates.radius",
    "CheckpointError": "errors",
    "Classifier": "engine.classifier",
    "ConfigError": "errors",
    "CorruptImageError": "errors",
    "Dataset": "datasets",
    "DatasetError": "errors",
    "Denoiser": "denoisers.denoiser",
    "LogError": "errors",
    "PixelsError": "errors",
    "PoolError": "errors",
    "Run": "run.stored",
    "StoreError": "errors",
    "TrainingError": "errors",
    "VotesError": "errors",
    "certificate": "certificates.radius",
    "certified_accuracy": "certificates.metrics",
    "certify": "run.certify",
    "load_dataset": "datasets",
    "load_denoiser": "checkpoints.load",
    "open_run": "run.stored",
}

__all__ = [
    "ABSTAIN",
    "Certificate",
    "CheckpointError",
    "Classifier",
    "ConfigError",
    "CorruptImageError",
    "Dataset",
    "DatasetError",
    "Denoiser",
    "LogError",
    "PixelsError",
    "PoolError",
    "Run",
    "StoreError",
    "TrainingError",
    "VotesError",
    "certificate",
    "certified_accuracy",
    "certify",
    "load_dataset",
    "load_denoiser",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
