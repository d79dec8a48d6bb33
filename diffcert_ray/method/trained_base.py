"""A trained classifier at one sigma: perhaps one denoising step, then logits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffcert_ray.checkpoints.image_classifier import ImageClassifier
from diffcert_ray.conventions import to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.base_classifier import Draws


@dataclass(frozen=True)
class TrainedBase:
    """Everything that decides one vote of ``classify`` or ``denoise-classify`` at one sigma.

    Args:
        classifier: logits of images in pixel units.
        denoiser: for the one denoising step; None for ``classify``.
        sigma: smoothing noise, pixel units.
        seed: of all noise.
        batch: rows of every batch.
        device: where the networks live.

    Raises:
        ConfigError: the denoiser has no unconditional mode, or is not made for this noise.
    """

    classifier: ImageClassifier
    denoiser: Denoiser | None
    sigma: float
    seed: int
    batch: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.denoiser is None:
            return
        if not self.denoiser.has_unconditional:
            raise ConfigError(
                'method "denoise-classify" needs one unconditional denoising step, but the network '
                "was trained without label dropout; set model.unconditional to an unconditional "
                'checkpoint, or method.name = "classify"'
            )
        low, high = self.denoiser.s_range
        if not low <= to_model_space(self.sigma) <= high:
            raise ConfigError(
                f"sigma {self.sigma} is noise level {to_model_space(self.sigma)} in model space, "
                f"the denoiser is made for {low:g} to {high:g}: choose another sigma or network"
            )

    @property
    def most_nfe(self) -> int:
        """Network evaluations of a vote: the classifier's, and the denoiser's if there is one."""
        return 1 if self.denoiser is None else 2

    def logits(self, u: Tensor, s: Tensor | None = None) -> Tensor:
        """Logits [B, K] of noisy images [B, C, H, W] in model space.

        The estimate of the denoising step is clipped to [-1, 1], where images lie.

        Args:
            u: noisy images.
            s: noise level of each, model space [B]; by default 2 sigma for all.

        Source: Carlini et al. 2023 (arXiv:2206.10550), algorithm 1 (denoise once, then classify).
        """
        if self.denoiser is not None:
            if s is None:
                s = torch.full((len(u),), to_model_space(self.sigma), device=u.device)
            u = self.denoiser(u, s, None).clamp(-1.0, 1.0)
        return self.classifier((u + 1.0) / 2.0)

    def with_seed(self, seed: int) -> "TrainedBase":
        """The same with other noise."""
        return replace(self, seed=seed)

    def draw(self, copies: int, levels: int, like: Tensor, generator: torch.Generator) -> Draws:
        """As `BaseClassifier.draw`: smoothing noise only."""
        smoothing = torch.randn((copies, *like.shape), generator=generator).to(like.device)
        empty = torch.empty((copies, 0), device=like.device)
        return Draws(smoothing, empty.long(), empty)

    def scores(self, u: Tensor, draws: Draws, classes: Tensor | None = None) -> tuple[Tensor, int]:
        """As `BaseClassifier.scores`: the logits."""
        logits = self.logits(u)
        return (logits if classes is None else logits[:, classes]), len(u) * self.most_nfe

    def clean_scores(self, u: Tensor, draws: int, seed: int) -> Tensor:
        """As `BaseClassifier.clean_scores`: the logits; draws and seed play no part."""
        return self.logits(u)
