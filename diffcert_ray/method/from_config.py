"""The noise levels of a configuration's votes at one sigma, and the rule that visits them."""

import numpy as np

from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import to_model_space
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.noise_levels import LOWEST_LEVEL, NoiseLevels, noise_levels
from diffcert_ray.method.sift import Sift, exact_sift, full_sift, paired_z_sift, threshold_sift

SIFTING_POINTS = 126  # the paper's grid for sifting, whatever the grid for refining


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
        return LOWEST_LEVEL
    if config.method.name == "epndc" and grid.weights != "reference":
        # The exact weight is infinite at s_tau; the paper's code skips the first five of 125 steps.
        return s_tau + 0.04 * (grid.max - s_tau)
    return s_tau
