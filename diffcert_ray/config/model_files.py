"""Which checkpoint plays which part in a run, and what its configuration says of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffcert_ray.config.tables import DIRECT_METHODS, Config

_NO_VOTE_DEPENDS_ON = ("dropout", "s_range")  # training only; checked, never computed with


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint that a configuration names.

    Attributes:
        source: shipped name, path or address.
        sha256: what its hash must be; None: any.
        sha256_key: where the configuration says so.
        settings: what the checkpoint does not say of itself, or says otherwise.
    """

    source: str
    sha256: str | None
    sha256_key: str
    settings: Mapping[str, Any] | None

    def identity(self) -> dict[str, Any]:
        """The settings that votes depend on, in the order of their names."""
        settings = self.settings or {}
        return {k: settings[k] for k in sorted(settings) if k not in _NO_VOTE_DEPENDS_ON}


def model_files(config: Config) -> dict[str, ModelFile]:
    """The denoisers of a run by role.

    For noised diffusion classifiers "denoiser" is the class-conditional network, perhaps with
    "unconditional" beside it; for denoise-classify and shortlist-classify it is the network of
    their one step; classify has none.
    """
    model = config.model
    if config.method.name == "classify":
        return {}
    own = ModelFile(model.checkpoint, model.sha256, "model.sha256", model.config)
    if model.unconditional is None:
        return {"denoiser": own}
    other = ModelFile(
        model.unconditional,
        model.unconditional_sha256,
        "model.unconditional_sha256",
        model.unconditional_config,
    )
    if config.method.name in DIRECT_METHODS:
        return {"denoiser": other}
    return {"denoiser": own, "unconditional": other}
