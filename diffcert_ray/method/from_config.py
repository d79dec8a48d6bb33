"""The noise levels of a configuration's votes at one sigma, and the rule that visits them."""

import numpy as np

from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import to_model_space
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.noise_levels import (
    LOWEST_LEVEL,
    NoiseLevels,
    noise_levels,
    reference_sifting,
)
from diffcert_ray.method.shortlist import Shortlist
from diffcert_ray.method.sift import (
    Sift,
    exact_sift,
    full_sift,
    paired_z_sift,
    shortlist_sift,
    threshold_sift,
)

SIFTING_POINTS = 126  # the grid that sifting levels are taken from, whatever is refined on


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
        race = {"z": rule.z, "first": rule.first_level}
        if rule.rule == "paired-z":
            return levels, paired_z_sift(levels.weights, first_ratio=rule.first_ratio, **race)
        if rule.rule == "shortlist":
            return levels, shortlist_sift(levels.weights, Shortlist(rule.least_p), **race)
        sifting = _sifting_levels(config, sigma)
    except ValueError as error:
        raise ConfigError(f"noise_levels at sigma {sigma}: {error}") from None
    sift = threshold_sift(
        levels.weights,
        sifting.weights,
        threshold=rule.threshold,
        keep=rule.keep,
        levels=rule.threshold_levels,
        ascending=config.noise_levels.weights == "reference",
    )
    joined = NoiseLevels(
        s=np.concatenate([levels.s, sifting.s]),
        weights=np.concatenate([levels.weights, sifting.weights]),
    )
    return joined, sift


def lowest_visited(config: Config) -> float:
    """The lowest noise level that networks are asked about, at any sigma, model space.

    That of the unconditional step, which all methods but dc may take, included.
    """
    sigma = min(config.votes.sigmas)
    lowest = _lowest(config, sigma)
    return lowest if config.method.name == "dc" else min(lowest, to_model_space(sigma))


def refines_as_released(config: Config) -> bool:
    """Whether votes are those of the released sift-and-refine, which has levels of its own."""
    reference = config.noise_levels.weights == "reference"
    return reference and config.sift.rule == "threshold" and config.method.name == "apndc"


def _grid(config: Config, sigma: float) -> NoiseLevels:
    grid = config.noise_levels
    return noise_levels(
        grid.grid,
        grid.weights,
        grid.levels,
        s_lo=_lowest(config, sigma),
        s_max=grid.max,
        method="sift-refine" if refines_as_released(config) else config.method.name,
        s_tau=to_model_space(sigma),
    )


def _sifting_levels(config: Config, sigma: float) -> NoiseLevels:
    """Levels for sifting, with the weight density at each in place of a weight."""
    grid, low = config.noise_levels, _lowest(config, sigma)
    if grid.weights == "reference":
        count = config.sift.threshold_levels
        if config.method.name in ("dc", "apndc"):
            return reference_sifting(count, s_lo=low, s_max=grid.max)
        # At s_tau itself there is no noise to add, and epndc's target is infinite.
        found = reference_sifting(count + 1, s_lo=low, s_max=grid.max)
        return NoiseLevels(s=found.s[1:], weights=found.weights[1:])
    levels = noise_levels(
        "linear",
        grid.weights,
        SIFTING_POINTS,
        s_lo=low,
        s_max=grid.max,
        method=config.method.name,
        s_tau=to_model_space(sigma),
    )
    spacing = (grid.max - low) / SIFTING_POINTS
    return NoiseLevels(s=levels.s, weights=levels.weights / spacing)


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
