"""What weights "reference" promises: the class losses of the released code, by its formulas.

The formulas are written out here once more, level by level, in numpy, with a denoiser of their own.
lambda(s) = (s^2 + 0.25) / (0.5 s)^2; p is the log-normal density with the released slip, its
exponent times P_std^2 where the paper divides by it. On N grid points s_0 .. s_{N-1} with spacing
ds, and s_0 the smoothing noise s_tau (1e-4 for dc), the loss of class y is the sum over the levels
of a weight times the mean over the pixels of (D(z; s, y) - target)^2:

- dc, apndc: noise and network at s_j, weight lambda(s_j) p(s_{j-1}) ds, j = 1 .. N-2;
- apndc-posterior: the same at s_j with p(s_{j-2}), j = 2 .. N-2;
- epndc: network at s_{i+1}, i = 5 .. N-3, weight lambda(s_i) p(s_i) ds on the squared distance of
  the two posterior means, times (c - a) c / (4 (s_{i+1} - s_i)^2 (b - a)), which is
  (c - a)(s_i + s_{i+1})^2 / (4 c (b - a)) on ||D - r||^2;
  a = s_tau^2, b = s_i^2, c = s_{i+1}^2.

Its sift-and-refine, of apndc: one level after the other of 50 even ones from s_tau to 3, until at
most 10 classes are left, each class out whose sum of lambda(s) p(s) ds times its error is 5e-5
above the smallest (ds = 0.0025: sigma 0.25, 1001 points); then the best 10 on 126 even levels from
s_tau to 3, lambda and p at the level itself, sifting sums discarded.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special

from diffcert_ray.config.loading import load_config
from diffcert_ray.method.diffusion_base import DiffusionBase, base_classifier
from diffcert_ray.method.diffusion_classifier import (
    METHODS,
    class_logits,
    denoised_image,
    network_input,
    row_losses,
    target,
)
from diffcert_ray.tools.exact_worlds import GaussianClasses

SHAPE, CLASSES, TAU = (1, 2, 3), 24, 0.3
PIXELS = math.prod(SHAPE)


def quasi_normal(seed: float, *shape: int) -> np.ndarray:
    """Numbers that look like standard normal noise and are the same for ever."""
    index = np.arange(1, math.prod(shape) + 1)
    return special.ndtri((index * (math.sqrt(5) - 1) / 2 + seed) % 1.0).reshape(shape)


MEANS = 0.3 * quasi_normal(0.11, CLASSES, PIXELS)
IMAGE = MEANS[5] + 0.3 * quasi_normal(0.71, PIXELS)
SMOOTHING = quasi_normal(0.37, PIXELS)
WORLD = GaussianClasses(torch.tensor(MEANS).reshape(CLASSES, *SHAPE), TAU)


# ---- the formulas --------------------------------------------------------------------------------


def denoised(z: np.ndarray, s: float, label: int) -> np.ndarray:
    return (s * s * MEANS[label] + TAU * TAU * z) / (s * s + TAU * TAU)


def denoised_without_class(z: np.ndarray, s: float) -> np.ndarray:
    logs = [-np.sum((z - mean) ** 2) / (2 * (TAU**2 + s**2)) for mean in MEANS]
    posterior = np.exp(np.array(logs) - max(logs))
    posterior /= posterior.sum()
    return sum(p * denoised(z, s, k) for k, p in enumerate(posterior))


def lam(s: float) -> float:
    return (s * s + 0.5 * 0.5) / (s * 0.5) ** 2


def slipped(s: float) -> float:
    return math.exp(-((math.log(s) + 1.2) ** 2) / 2 * 1.2**2) / (s * 1.2 * math.sqrt(2 * math.pi))


def grid_of(points: int, lowest: float) -> list[float]:
    return [lowest + i * (3.0 - lowest) / (points - 1) for i in range(points)]


def losses_by_the_formulas(method: str, points: int, sigma: float, eps: np.ndarray) -> np.ndarray:
    """Loss of each class for the noise eps, one row a level, ascending."""
    s_tau = 2 * sigma
    u_tau = IMAGE + s_tau * SMOOTHING
    u_hat = denoised_without_class(u_tau, s_tau)
    s = grid_of(points, 1e-4 if method == "dc" else s_tau)
    ds, noise, found = s[1] - s[0], iter(eps), np.zeros(CLASSES)
    if method in ("dc", "apndc"):
        image = u_tau if method == "dc" else u_hat
        for j in range(1, points - 1):
            z = image + s[j] * next(noise)
            for y in range(CLASSES):
                error = np.mean((denoised(z, s[j], y) - image) ** 2)
                found[y] += lam(s[j]) * slipped(s[j - 1]) * ds * error
    elif method == "apndc-posterior":
        for j in range(2, points - 1):
            z = u_tau + math.sqrt(s[j] ** 2 - s_tau**2) * next(noise)
            for y in range(CLASSES):
                error = np.mean((denoised(z, s[j], y) - u_hat) ** 2)
                found[y] += lam(s[j]) * slipped(s[j - 2]) * ds * error
    else:
        for i in range(5, points - 2):
            a, b, c = s_tau**2, s[i] ** 2, s[i + 1] ** 2
            z = u_tau + math.sqrt(c - a) * next(noise)
            factor = c * (c - a) / 4 / (s[i + 1] - s[i]) ** 2 / (b - a)
            exact = ((c - b) * u_tau + (b - a) * z) / (c - a)
            for y in range(CLASSES):
                model = ((c - b) * denoised(z, s[i + 1], y) + b * z) / c
                error = np.mean((model - exact) ** 2)
                found[y] += lam(s[i]) * slipped(s[i]) * ds * factor * error
    assert next(noise, None) is None  # a row for every level, no more
    return found


# ---- this package --------------------------------------------------------------------------------

LEVELS = {
    ("dc", 126): 124,
    ("dc", 1001): 999,
    ("apndc", 126): 124,
    ("apndc", 1001): 999,
    ("apndc-posterior", 126): 123,
    ("apndc-posterior", 1001): 998,
    ("epndc", 126): 119,
    ("epndc", 1001): 994,
}


def classifier(method: str, points: int, sigma: float, **sift) -> DiffusionBase:
    """What a run with weights "reference" votes with."""
    tables = {
        "method": {"name": method},
        "noise_levels": {"grid": "linear", "weights": "reference", "levels": points},
        "sift": {"rule": "full"} | sift,
        "votes": {"sigmas": [sigma]},
    }
    return base_classifier(load_config(tables), WORLD, sigma)


def model_image(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values).reshape(1, *SHAPE)


def losses_here(method: str, points: int, sigma: float, eps: np.ndarray) -> np.ndarray:
    plan = classifier(method, points, sigma).plan
    u_tau = model_image(IMAGE + 2 * sigma * SMOOTHING)
    noise = torch.tensor(eps).reshape(1, len(eps), *SHAPE)
    return -class_logits(WORLD, u_tau, plan, noise, batch=8192)[0].numpy()


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("method", "points"), LEVELS)
def test_class_losses_are_the_formulas(method: str, points: int, sigma: float) -> None:
    if points > 126 and sigma != 0.25:
        points = 301
    count = LEVELS.get((method, points), LEVELS[method, 126] + points - 126)
    eps = quasi_normal(0.53, count, PIXELS)
    found = losses_here(method, points, sigma, eps)
    np.testing.assert_allclose(
        found, losses_by_the_formulas(method, points, sigma, eps), rtol=1e-10
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_weighs_the_levels_alike(method: str) -> None:
    weights = classifier(method, 126, 0.25).plan.weights
    for rule in ("full", "exact", "paired-z"):
        base = classifier(method, 126, 0.25, rule=rule)
        by_level = np.empty(len(weights))
        by_level[base.sift.order] = base.sift.coefficient
        np.testing.assert_array_equal(by_level, weights)
        np.testing.assert_array_equal(base.plan.weights, weights)


# Losses of classes 0, 5, 11 and 23 at sigma 0.25 on 126 points, for two noise tensors. The released
# functions, restated line by line and run in float32 on the same inputs, gave these within 5e-7.
PINNED = {
    ("dc", 0.53): (1.809492938, 1.052451398, 1.660796457, 1.585657501),
    ("dc", 0.29): (1.890295646, 1.098889288, 1.676351729, 1.601745060),
    ("apndc", 0.53): (0.2099221390, 0.08388087574, 0.1955712360, 0.1694551122),
    ("apndc", 0.29): (0.2223959316, 0.08590398993, 0.1990682536, 0.1715484890),
    ("apndc-posterior", 0.53): (0.1687620576, 0.06251194612, 0.1619748478, 0.1362689210),
    ("apndc-posterior", 0.29): (0.1742050118, 0.06346090317, 0.1622181129, 0.1361846049),
    ("epndc", 0.53): (0.6576657856, 0.4584937404, 0.6101088707, 0.5855140355),
    ("epndc", 0.29): (0.7357329117, 0.4902522068, 0.6533856994, 0.6212864207),
}


@pytest.mark.parametrize(("method", "seed"), PINNED)
def test_class_losses_of_two_noise_tensors_are_these_numbers(method: str, seed: float) -> None:
    eps = quasi_normal(seed, LEVELS[method, 126], PIXELS)
    found = losses_here(method, 126, 0.25, eps)[[0, 5, 11, 23]]
    np.testing.assert_allclose(found, PINNED[method, seed], rtol=1e-6)
    differences = np.subtract(PINNED[method, seed][1:], PINNED[method, seed][0])
    np.testing.assert_allclose(found[1:] - found[0], differences, rtol=1e-6)


# ---- sift-and-refine -----------------------------------------------------------------------------


def sifted_by_the_formulas(
    image: np.ndarray, threshold: float, sift_eps: np.ndarray, refine_eps: np.ndarray
) -> tuple[list[set[int]], dict[int, float]]:
    """Classes left after each sifting level, and the refined losses of those that are refined."""
    s_tau, ds = 0.5, 0.0025
    u_hat = denoised_without_class(image, s_tau)

    def term(s: float, y: int, eps: np.ndarray) -> float:
        error = np.mean((denoised(u_hat + s * eps, s, y) - u_hat) ** 2)
        return lam(s) * slipped(s) * ds * error

    left, sums, history = set(range(CLASSES)), np.zeros(CLASSES), []
    for i, s in enumerate(grid_of(50, s_tau)):
        if len(left) <= 10:
            break
        for y in left:
            sums[y] += term(s, y, sift_eps[i])
        best = min(sums[y] for y in left)
        left = {y for y in left if not sums[y] - best > threshold}
        history.append(left)
    left = set(sorted(left, key=lambda y: sums[y])[:10])
    history[-1] = left
    grid = grid_of(126, s_tau)
    return history, {y: sum(map(term, grid, [y] * 126, refine_eps)) for y in left}


def losses_at_every_level(base: DiffusionBase, u_tau: torch.Tensor, eps: np.ndarray) -> np.ndarray:
    """Unweighted losses [levels of the plan, K] for eps [levels of the plan, D]."""
    plan, noise = base.plan, torch.tensor(eps).reshape(len(eps), *SHAPE)
    u_hat = denoised_image(plan, WORLD, u_tau)
    index, u = torch.arange(len(eps)), u_tau.expand(len(eps), -1, -1, -1)
    z, wanted = (f(plan, index, u, u_hat.expand_as(u), noise) for f in (network_input, target))
    return np.stack(
        [
            row_losses(WORLD(z, torch.tensor(plan.s), torch.full((len(eps),), y)), wanted).numpy()
            for y in range(CLASSES)
        ],
        axis=1,
    )


# The released threshold, one that takes some levels to be reached, and one that never is.
@pytest.mark.parametrize("threshold", [5e-5, 3e-3, 1e3])
@pytest.mark.parametrize("image_of", range(0, 12, 3))
def test_votes_of_sift_and_refine_are_the_released_ones(image_of: int, threshold: float) -> None:
    base = classifier("apndc", 126, 0.25, rule="threshold", threshold=threshold / 0.0025)
    u_tau = MEANS[2 * image_of] + 0.3 * quasi_normal(0.2 + 0.05 * image_of, PIXELS)
    u_tau = u_tau + 0.5 * quasi_normal(0.3 + 0.03 * image_of, PIXELS)
    eps = quasi_normal(0.61 + 0.01 * image_of, 176, PIXELS)
    history, refined = sifted_by_the_formulas(u_tau, threshold, eps[126:], eps[:126])
    assert (len(history) == 50) == (threshold == 1e3)

    losses = losses_at_every_level(base, model_image(u_tau), eps)[base.sift.order][:, None]
    alive, winner, at, found = np.ones((1, CLASSES), bool), [-1], 0, []
    while winner[0] == -1:
        sifting = at < base.sift.refine_round
        alive, following, winner = base.sift.step(at, losses[: base.sift.rounds[at][1]], alive)
        if sifting:
            found.append(set(np.flatnonzero(alive[0])))
        at = int(following[0])
    assert found == history
    assert int(winner[0]) == min(refined, key=lambda y: refined[y])
    first = base.sift.rounds[base.sift.refine_round][0]
    terms = losses[first:, 0] * base.sift.coefficient[first:, None]
    sums = terms.sum(axis=0)[sorted(refined)] / (2.5 / 125) * 0.0025  # the spacing of 126 points
    np.testing.assert_allclose(sums, [refined[y] for y in sorted(refined)], rtol=1e-10)


@pytest.mark.parametrize("sigma", [0.25, 1.0])
@pytest.mark.parametrize("points", [126, 1001])
def test_sift_and_refine_visits_50_levels_upwards_and_then_126(points: int, sigma: float) -> None:
    base = classifier("apndc", points, sigma, rule="threshold")
    sifting = base.sift.rounds[base.sift.refine_round][0]
    visited = base.plan.s[base.sift.order]
    np.testing.assert_allclose(visited[:sifting], grid_of(50, 2 * sigma), rtol=1e-14)
    np.testing.assert_allclose(visited[sifting:], grid_of(126, 2 * sigma), rtol=1e-14)
    density = [lam(s) * slipped(s) for s in visited]
    np.testing.assert_allclose(base.sift.coefficient[:sifting], density[:sifting], rtol=1e-12)
    ratio = base.sift.coefficient[sifting:] / density[sifting:]
    np.testing.assert_allclose(ratio, (3 - 2 * sigma) / (points - 1), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 50])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_sift_above_s_tau_and_refine_on_their_own_levels(
    method: str, count: int
) -> None:
    base = classifier(method, 126, 0.25, rule="threshold", threshold_levels=count)
    refined = 126 if method == "apndc" else LEVELS[method, 126]
    assert len(base.plan.s) == refined + count
    sifting = base.plan.s[base.sift.order[:count]]
    assert (np.diff(sifting) > 0).all()
    assert count == 1 or sifting[-1] == 3.0
    assert {"dc": 1e-4, "apndc": 0.5}.get(method, sifting[0]) == sifting[0]
    assert np.isfinite(base.plan.target_scale).all()
