"""Certified robustness of diffusion classifiers, for whole datasets, on Ray.

Importing the package imports neither torch nor ray: the public names load what they need when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffcert_ray.certificates import ABSTAIN, Certificate, certificate
    from diffcert_ray.certification import certify
    from diffcert_ray.datasets import load_dataset
    from diffcert_ray.denoisers.checkpoint import load_denoiser
    from diffcert_ray.metrics import certified_accuracy
    from diffcert_ray.stored_run import Run, open_run
    from diffcert_ray.voting import Classifier

_WHERE = {
    "ABSTAIN": "certificates",
    "Certificate": "certificates",
    "Classifier": "voting",
    "Run": "stored_run",
    "certificate": "certificates",
    "certified_accuracy": "metrics",
    "certify": "certification",
    "load_dataset": "datasets",
    "load_denoiser": "denoisers.checkpoint",
    "open_run": "stored_run",
}

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Classifier",
    "Run",
    "certificate",
    "certified_accuracy",
    "certify",
    "load_dataset",
    "load_denoiser",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
