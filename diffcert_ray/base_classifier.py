"""The base classifier at one sigma: networks, method, noise levels and sifting rule together."""

from dataclasses import dataclass

import numpy as np

from diffcert_ray.classifier import MethodPlan, method_plan
from diffcert_ray.config import Config, ConfigError
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.noise_levels import NoiseLevels, noise_levels, to_model_space
from diffcert_ray.sift import Sift, exact_sift, full_sift, paired_z_sift, threshold_sift

SIFTING_POINTS = 126  # the paper's grid for sifting, whatever the grid for refining


@dataclass(frozen=True)
class BaseClassifier:
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

    @property
    def smoothed_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that smoothing noise is added to; radii are in their l2 norm."""
        network = self.unconditional if self.plan.needs_denoised else self.denoiser
        return network.image_shape


def base_classifier(
    config: Config,
    denoiser: Denoiser,
    sigma: float,
    *,
    unconditional: Denoiser | None = None,
    device: str = "cpu",
) -> BaseClassifier:
    """Put a configuration and its networks together at one sigma.

    Args:
        config: the run's configuration.
        denoiser: class-conditional, on ``device``.
        sigma: smoothing noise, pixel units; 2 * sigma must lie below ``noise_levels.max``.
        unconditional: network for the unconditional step of the apndc methods; by default the
            denoiser itself, which then must have been trained with label dropout.
        device: where the networks live.

    Returns:
        The base classifier.

    Raises:
        ConfigError: no network for the unconditional step, one at another resolution, or a grid
            that does not fit sigma.
    """
    levels, sift = levels_and_sift(config, sigma)
    plan = method_plan(config.method.name, levels, to_model_space(sigma))
    if plan.needs_denoised and unconditional is None and not denoiser.has_unconditional:
        raise ConfigError(
            f'method "{config.method.name}" needs one unconditional denoising step, but the '
            "network "
            f"of model.checkpoint = {config.model.checkpoint!r} was trained without label dropout; "
            'set model.unconditional to an unconditional checkpoint, or method.name = "epndc"'
        )
    _check_resolutions(config, plan, denoiser, unconditional or denoiser)
    return BaseClassifier(
        denoiser=denoiser,
        unconditional=unconditional or denoiser,
        plan=plan,
        sift=sift,
        sigma=sigma,
        seed=config.votes.seed,
        batch=config.numerics.batch,
        device=device,
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


def levels_and_sift(config: Config, sigma: float) -> tuple[NoiseLevels, Sift]:
    """The noise levels of a run at one sigma, and the rule that visits them.

    For the rule ``threshold`` the sifting levels, on a grid of their own with noise of their own,
    follow the refining ones.

    Raises:
        ConfigError: the grid does not fit sigma or method.
    """
    rule = config.sift
    try:
        levels = _grid(config, sigma)
        if rule.rule == "full":
            return levels, full_sift(levels.weights)
        if rule.rule == "exact":
            return levels, exact_sift(levels.weights)
        if rule.rule == "paired-z":
            sift = paired_z_sift(
                levels.weights, z=rule.z, first_ratio=rule.first_ratio, first=rule.first_level
            )
            return levels, sift
        sifting, densities = _sifting_grid(config, sigma)
    except ValueError as error:
        raise ConfigError(f"noise_levels at sigma {sigma}: {error}") from None
    sift = threshold_sift(
        levels.weights,
        densities,
        threshold=rule.threshold,
        keep=rule.keep,
        levels=rule.threshold_levels,
    )
    joined = NoiseLevels(
        s=np.concatenate([levels.s, sifting]), weights=np.concatenate([levels.weights, densities])
    )
    return joined, sift


def largest_evaluations(config: Config, sigma: float, classes: int) -> int:
    """Evaluations of one vote that drops no class early: the ceiling that a plan can promise.

    Args:
        config: the run's configuration.
        sigma: smoothing noise, pixel units.
        classes: number of classes K.
    """
    levels, _ = levels_and_sift(config, sigma)
    denoising = 1 if config.method.name.startswith("apndc") else 0
    return denoising + len(levels.s) * classes


def _grid(config: Config, sigma: float) -> NoiseLevels:
    grid = config.noise_levels
    return noise_levels(
        grid.grid,
        grid.weights,
        grid.levels,
        s_lo=_lowest(config, sigma),
        s_max=grid.max,
        method=config.method.name,
        s_tau=to_model_space(sigma),
    )


def _sifting_grid(config: Config, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Levels for sifting and the weight density at each, without the spacing."""
    grid = config.noise_levels
    low = _lowest(config, sigma)
    reference = grid.weights == "reference"
    levels = noise_levels(
        "linear",
        grid.weights,
        SIFTING_POINTS,
        s_lo=low,
        s_max=grid.max,
        method="sift-refine" if reference else config.method.name,
        s_tau=to_model_space(sigma),
    )
    spacing = (grid.max - low) / (SIFTING_POINTS - 1 if reference else SIFTING_POINTS)
    s, density = levels.s, levels.weights / spacing
    if reference and config.method.name != "dc":  # the released code's first level is s_tau itself
        s, density = s[1:], density[1:]
    return s, density


def _lowest(config: Config, sigma: float) -> float:
    grid, s_tau = config.noise_levels, to_model_space(sigma)
    if grid.min is not None:
        return grid.min
    if config.method.name == "dc":
        return 1e-4
    if config.method.name == "epndc" and grid.weights != "reference":
        # The exact weight is infinite at s_tau; the paper's code skips the first five of 125 steps.
        return s_tau + 0.04 * (grid.max - s_tau)
    return s_tau
