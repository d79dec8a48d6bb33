"""The networks of a run once loaded: their numerics kind, and the base classifier at a sigma."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from diffcert_ray.checkpoints.head_file import head_at
from diffcert_ray.checkpoints.image_classifier import ImageClassifier
from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead
from diffcert_ray.engine.numerics_kind import (
    joint_kind,
    kind_of_heads,
    kind_of_logits,
    numerics_kind,
    short_batches,
)
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_base import DiffusionBase, base_classifier
from diffcert_ray.method.trained_base import TrainedBase


class Networks(Protocol):
    """What a worker holds on its device: `DiffusionNetworks` or `TrainedNetworks`."""

    @property
    def denoiser(self) -> Denoiser | None:
        """The denoiser, or None where there is none."""
        ...

    @property
    def device(self) -> str:
        """Where they live."""
        ...

    @property
    def roles(self) -> Mapping[str, tuple[Denoiser, bool]]:
        """The denoisers by the key that names each, and whether votes tell it a class."""
        ...

    def numerics_kind(self, image_shape: tuple[int, int, int]) -> str:
        """Hash of what they return for fixed probe batches; equal kinds give equal votes."""
        ...

    def base(self, sigma: float) -> BaseClassifier:
        """The base classifier at a smoothing noise, pixel units."""
        ...


class DiffusionNetworks:
    """The denoisers of a diffusion classifier.

    Args:
        unconditional: of the first step, or None: the same network.
        heads: by sigma, where the rule is ``shortlist``.
    """

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        unconditional: Denoiser | None,
        device: str,
        heads: Mapping[float, ShortlistHead] | None = None,
    ) -> None:
        self._config, self._heads = config, heads
        self.denoiser, self.unconditional, self.device = denoiser, unconditional, device
        # Compiled, each size would take a minute. In bfloat16 rounding hides another order of sums
        # from most rows, so that a probe of some rows could not tell.
        exact = config.numerics.dtype == "float32" and not config.numerics.compile
        self.short_batches = short_batches(denoiser, config.numerics.batch, device) if exact else ()

    @property
    def roles(self) -> Mapping[str, tuple[Denoiser, bool]]:
        """Of the class-conditional network, and of the one of the first step before a resize."""
        roles = {"model.checkpoint": (self.denoiser, True)}
        if self.unconditional is not None:
            first = self.unconditional
            inner = first.denoiser if isinstance(first, ResizedDenoiser) else first
            roles["model.unconditional"] = (inner, False)
        return roles

    def numerics_kind(self, image_shape: tuple[int, int, int]) -> str:
        """Of all networks; their probes have their own shapes."""
        networks = [n for n in (self.denoiser, self.unconditional) if n is not None]
        batch = self._config.numerics.batch
        if not self._heads:
            return joint_kind([numerics_kind(n, batch, self.device) for n in networks])
        heads = [self._heads[sigma] for sigma in sorted(self._heads)]
        kinds = [numerics_kind(n, batch, self.device) for n in networks[:-1]]
        kinds.append(kind_of_heads(networks[-1], heads, batch, self.device))
        return joint_kind(kinds)

    def base(self, sigma: float, sift: SiftConfig | None = None) -> DiffusionBase:
        """The diffusion classifier at a smoothing noise, pixel units; by another rule if given."""
        config = self._config
        if sift is not None:
            config = config.model_copy(update={"sift": sift})
        base = base_classifier(
            config,
            self.denoiser,
            sigma,
            unconditional=self.unconditional,
            head=None if self._heads is None else head_at(self._heads, sigma),
            device=self.device,
        )
        return replace(base, short_batches=self.short_batches)


class TrainedNetworks:
    """A trained classifier, and for ``denoise-classify`` the denoiser of its one step."""

    def __init__(
        self, config: Config, classifier: ImageClassifier, denoiser: Denoiser | None, device: str
    ) -> None:
        self._config, self.classifier = config, classifier
        self.denoiser, self.device = denoiser, device

    @property
    def roles(self) -> Mapping[str, tuple[Denoiser, bool]]:
        """Of the network of the one step."""
        return _one_step(self._config, self.denoiser)

    def numerics_kind(self, image_shape: tuple[int, int, int]) -> str:
        """Of the logits, the denoising step included."""
        logits = self.base(self._config.votes.sigmas[0]).logits
        return kind_of_logits(logits, image_shape, self._config.numerics.batch, self.device)

    def base(self, sigma: float) -> TrainedBase:
        """The classifier at a smoothing noise, pixel units."""
        seed, batch = self._config.votes.seed, self._config.numerics.batch
        return TrainedBase(self.classifier, self.denoiser, sigma, seed, batch, self.device)


class HeadNetworks:
    """The head of ``shortlist-classify`` at each sigma, and the denoiser of its one step."""

    def __init__(
        self, config: Config, denoiser: Denoiser, heads: Mapping[float, ShortlistHead], device: str
    ) -> None:
        self._config, self._heads = config, heads
        self.denoiser: Denoiser = denoiser
        self.device = device

    @property
    def roles(self) -> Mapping[str, tuple[Denoiser, bool]]:
        """Of the network of the one step."""
        return _one_step(self._config, self.denoiser)

    def numerics_kind(self, image_shape: tuple[int, int, int]) -> str:
        """Of the denoising step and all heads."""
        heads = [self._heads[sigma] for sigma in sorted(self._heads)]
        return kind_of_heads(self.denoiser, heads, self._config.numerics.batch, self.device)

    def base(self, sigma: float) -> TrainedBase:
        """The head's class at a smoothing noise, pixel units."""
        seed, batch = self._config.votes.seed, self._config.numerics.batch
        head = head_at(self._heads, sigma)
        return TrainedBase(None, self.denoiser, sigma, seed, batch, self.device, head)


def _one_step(config: Config, denoiser: Denoiser | None) -> dict[str, tuple[Denoiser, bool]]:
    """The denoiser of one unconditional step by the key that names it."""
    if denoiser is None:
        return {}
    key = "model.checkpoint" if config.model.unconditional is None else "model.unconditional"
    return {key: (denoiser, False)}
