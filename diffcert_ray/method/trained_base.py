"""A trained classifier at one sigma, or a head: perhaps one denoising step, then logits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffcert_ray.checkpoints.image_classifier import ImageClassifier
from diffcert_ray.conventions import to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.base_classifier import Draws


@dataclass(frozen=True)
class TrainedBase:
    """Everything that decides one vote without a race of classes, at one sigma.

    That is ``classify``, ``denoise-classify`` or ``shortlist-classify``.

    Args:
        classifier: logits of images in pixel units; None where there is a head.
        denoiser: for the one denoising step; None for ``classify``.
        sigma: smoothing noise, pixel units.
        seed: of all noise.
        batch: rows of every batch.
        device: where the networks live.
        head: of ``shortlist-classify``, trained on the denoiser at this sigma.

    Raises:
        ConfigError: the denoiser has no unconditional mode, or is not made for this noise.
    """

    classifier: ImageClassifier | None
    denoiser: Denoiser | None
    sigma: float
    seed: int
    batch: int
    device: str = "cpu"
    head: ShortlistHead | None = None

    def __post_init__(self) -> None:
        if self.denoiser is None:
            return
        if not self.denoiser.has_unconditional:
            method = "denoise-classify" if self.head is None else "shortlist-classify"
            raise ConfigError(
                f'method "{method}" needs one unconditional denoising step, but the network '
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
        """Network evaluations of a vote: the classifier's and the denoiser's, none for a head."""
        return (self.classifier is not None) + (self.denoiser is not None)

    def logits(self, u: Tensor, s: Tensor | None = None) -> Tensor:
        """Logits [B, K] of noisy images [B, C, H, W] in model space.

        The estimate of the denoising step is clipped to [-1, 1], where images lie.

        Args:
            u: noisy images.
            s: noise level of each, model space [B]; by default 2 sigma for all.

        Source: Carlini et al. 2023 (arXiv:2206.10550), algorithm 1 (denoise once, then classify);
        by a head, ours.
        """
        if self.denoiser is not None:
            if s is None:
                s = torch.full((len(u),), to_model_space(self.sigma), device=u.device)
            if self.head is not None:
                seen = self.head.pooled(*with_bottom(self.denoiser)(u, s, None))
                return self.head.logits(seen)
            u = self.denoiser(u, s, None).clamp(-1.0, 1.0)
        assert self.classifier is not None  # where there is no head
        return self.classifier((u + 1.0) / 2.0)

    def with_seed(self, seed: int) -> "TrainedBase":
        """The same with other noise."""
        return replace(self, seed=seed)

    def with_batch(self, batch: int) -> "TrainedBase":
        """The same in batches of so many rows."""
        return replace(self, batch=batch)

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
