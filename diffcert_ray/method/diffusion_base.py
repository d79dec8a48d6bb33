"""A diffusion classifier at one sigma: networks, method, noise levels, sifting rule together."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.base_classifier import Draws
from diffcert_ray.method.diffusion_classifier import (
    MethodPlan,
    class_logits,
    denoised_image,
    method_plan,
    network_input,
    row_losses,
    target,
)
from diffcert_ray.method.from_config import levels_and_sift
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.method.sift import Sift


@dataclass(frozen=True)
class DiffusionBase:
    """Everything that decides one vote at one sigma.

    Args:
        denoiser: the class-conditional network.
        unconditional: the network of the one unconditional step (may be the same object).
        plan: what is noised and the target, for every noise level that ``sift.order`` names.
        sift: which levels are visited and which classes dropped.
        sigma: smoothing noise, pixel units.
        seed: of all noise.
        batch: rows of every batch.
        device: where the networks live.
        short_batches: smaller sizes at which the network gives rows the same bits; rows left at an
            item's end are evaluated in these.
        head: proposes classes after the unconditional step, where ``sift`` has a shortlist.
    """

    denoiser: Denoiser
    unconditional: Denoiser
    plan: MethodPlan
    sift: Sift
    sigma: float
    seed: int
    batch: int
    device: str = "cpu"
    short_batches: tuple[int, ...] = ()
    head: ShortlistHead | None = None

    @property
    def smoothed_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that smoothing noise is added to; radii are in their l2 norm."""
        network = self.unconditional if self.plan.needs_denoised else self.denoiser
        return network.image_shape

    @property
    def denoises(self) -> bool:
        """Whether a vote begins with an unconditional step: for its estimate, or for the head."""
        return self.plan.needs_denoised or self.head is not None

    @property
    def most_nfe(self) -> int:
        """Evaluations of a vote that drops no class early."""
        denoising = 1 if self.denoises else 0
        return denoising + len(self.sift.order) * self.denoiser.num_classes

    def with_seed(self, seed: int) -> "DiffusionBase":
        """The same with other noise."""
        return replace(self, seed=seed)

    def with_batch(self, batch: int) -> "DiffusionBase":
        """The same in batches of so many rows."""
        return replace(self, batch=batch, short_batches=())

    def draw(self, copies: int, levels: int, like: Tensor, generator: torch.Generator) -> Draws:
        """As `BaseClassifier.draw`: levels by their weight, noise of the network's resolution."""
        smoothing = torch.randn((copies, *like.shape), generator=generator).to(like.device)
        weights = torch.from_numpy(self.plan.weights).expand(copies, -1)
        drawn = torch.multinomial(weights, levels, replacement=True, generator=generator)
        shape = (copies, levels, *self.denoiser.image_shape)
        internal = torch.randn(shape, generator=generator)
        return Draws(smoothing, drawn.to(like.device), internal.to(like.device))

    def scores(self, u: Tensor, draws: Draws, classes: Tensor | None = None) -> tuple[Tensor, int]:
        """As `BaseClassifier.scores`: minus the weighted mean loss at the drawn levels."""
        if classes is None:
            classes = torch.arange(self.denoiser.num_classes, device=u.device)
        plan = self.plan
        u_hat = denoised_image(plan, self.unconditional, u) if plan.needs_denoised else None
        shape = (*draws.levels.shape, len(classes))
        copy, _, column = torch.unravel_index(
            torch.arange(int(np.prod(shape)), device=u.device), shape
        )
        level = draws.levels[..., None].expand(shape).flatten()
        eps = draws.internal[:, :, None].expand(*shape, *draws.internal.shape[2:]).flatten(0, 2)
        noised = None if u_hat is None else u_hat[copy]
        z = network_input(plan, level, u[copy], noised, eps)
        s = torch.as_tensor(plan.s, dtype=z.dtype, device=z.device)[level]
        losses = row_losses(
            self.denoiser(z, s, classes[column]), target(plan, level, u[copy], noised, eps)
        )
        nfe = len(losses) + (0 if u_hat is None else len(u))
        return -float(plan.weights.sum()) * losses.reshape(shape).mean(dim=1), nfe

    def clean_scores(self, u: Tensor, draws: int, seed: int) -> Tensor:
        """As `BaseClassifier.clean_scores`: logits at all levels; the sifting rule is not used."""
        levels = len(self.plan.s)
        source = NoiseSource(seed, self.sigma, int(np.prod(self.denoiser.image_shape)))
        draw, level = np.divmod(np.arange(draws * levels), levels)
        zero = np.zeros_like(draw)
        noise = source.normal(zero, zero, draw, level, device=u.device)
        eps = noise.reshape(draws, levels, *u.shape[1:]).to(u.dtype)
        return class_logits(self.denoiser, u, self.plan, eps, unconditional=self.unconditional)


def base_classifier(
    config: Config,
    denoiser: Denoiser,
    sigma: float,
    *,
    unconditional: Denoiser | None = None,
    head: ShortlistHead | None = None,
    device: str = "cpu",
) -> DiffusionBase:
    """Put a configuration and its networks together at one sigma.

    Args:
        config: the run's configuration.
        denoiser: class-conditional, on ``device``.
        sigma: smoothing noise, pixel units; 2 * sigma must lie below ``noise_levels.max``.
        unconditional: network for the unconditional step of the apndc methods; by default the
            denoiser itself, which then must have been trained with label dropout.
        head: for the rule ``shortlist``, trained at this sigma on the unconditional step.
        device: where the networks live.

    Returns:
        The base classifier.

    Raises:
        ConfigError: no network for the unconditional step, one at another resolution, a grid that
            does not fit sigma, or a rule without its head.
    """
    levels, sift = levels_and_sift(config, sigma)
    plan = method_plan(config.method.name, levels, to_model_space(sigma))
    if sift.shortlist is None:
        head = None
    elif head is None:
        raise ConfigError(
            'sift.rule = "shortlist" and no head: give the one of sift.head, trained at sigma '
            f"{sigma:g}"
        )
    else:
        sift = replace(sift, shortlist=replace(sift.shortlist, prior=head.lag_prior))
    denoises = plan.needs_denoised or head is not None
    if denoises and unconditional is None and not denoiser.has_unconditional:
        needs = f'method "{config.method.name}"' if plan.needs_denoised else "the rule shortlist"
        raise ConfigError(
            f"{needs} needs one unconditional denoising step, but the network "
            f"of model.checkpoint = {config.model.checkpoint!r} was trained without label dropout; "
            'set model.unconditional to an unconditional checkpoint, or method.name = "epndc" with '
            'sift.rule = "paired-z"'
        )
    _check_resolutions(config, plan, denoiser, unconditional or denoiser)
    return DiffusionBase(
        denoiser=denoiser,
        unconditional=unconditional or denoiser,
        plan=plan,
        sift=sift,
        sigma=sigma,
        seed=config.votes.seed,
        batch=config.numerics.batch,
        device=device,
        head=head,
    )


def _check_resolutions(
    config: Config, plan: MethodPlan, denoiser: Denoiser, unconditional: Denoiser
) -> None:
    """Only a network whose input is the denoised image alone may have another resolution."""
    if unconditional.image_shape == denoiser.image_shape or not plan.needs_denoised:
        return
    shapes = f"{tuple(unconditional.image_shape)} and {tuple(denoiser.image_shape)}"
    if config.model.resize is None:
        raise ConfigError(
            f"model.unconditional and model.checkpoint take images of {shapes}: set model.resize "
            '("area", "bilinear" or "bicubic") to resize after denoising, or take networks of one '
            "resolution"
        )
    if (plan.base, plan.target) != ("denoised", "denoised"):
        raise ConfigError(
            f'method "{config.method.name}" shows the noisy image to model.checkpoint, which takes '
            f"another resolution than model.unconditional ({shapes}): only method.name = "
            '"apndc" works with model.resize'
        )
