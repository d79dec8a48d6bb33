"""Methods against their formulas written out one by one, and what scores and losses must keep."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcert_ray.method.diffusion_classifier import (
    METHODS,
    class_logits,
    denoised_image,
    method_plan,
    network_input,
    row_losses,
    target,
    to_model_image,
)
from diffcert_ray.method.noise_levels import NoiseLevels, noise_levels
from diffcert_ray.tools.exact_worlds import (
    GaussianClasses,
    finite_range_scores,
    gaussian_world,
    labelled_images,
)

S_TAU = 0.5
LEVELS = NoiseLevels(s=np.array([0.6, 1.0, 2.5]), weights=np.array([0.5, 2.0, 0.25]))


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def small_world() -> GaussianClasses:
    return gaussian_world(4, 12, 0.3, 0.5, seed=0, image_shape=(3, 2, 2))


def written_out(method: str, s: float, u: Tensor, u_hat: Tensor, eps: Tensor) -> tuple:
    """(network input, target) of one row, from the formulas of the paper in squares a and c."""
    a, c = S_TAU**2, s**2
    further = u + math.sqrt(c - a) * eps
    return {
        "dc": (u + s * eps, u),
        "epndc": (further, (c * u - a * further) / (c - a)),
        "apndc": (u_hat + s * eps, u_hat),
        "apndc-posterior": (further, u_hat),
    }[method]


def scores_one_by_one(world: GaussianClasses, method: str, u: Tensor, eps: Tensor) -> Tensor:
    """Scores [B, K] for eps [B, M, T, C, H, W], by plain loops."""
    scores = torch.zeros(len(u), world.num_classes, dtype=torch.float64)
    tau_level = torch.tensor([S_TAU], dtype=torch.float64)
    for i, image in enumerate(u):
        u_hat = world(image[None], tau_level)[0]
        for k in range(world.num_classes):
            for t, (s, weight) in enumerate(zip(LEVELS.s, LEVELS.weights, strict=True)):
                for draw in eps[i, :, t]:
                    z, wanted = written_out(method, s, image, u_hat, draw)
                    level = torch.tensor([s], dtype=torch.float64)
                    out = world(z[None], level, torch.tensor([k]))[0]
                    scores[i, k] -= weight * (out - wanted).square().mean() / eps.shape[1]
    return scores


def test_there_are_four_methods() -> None:
    assert METHODS == ("dc", "epndc", "apndc", "apndc-posterior")


@pytest.mark.parametrize("method", METHODS)
def test_input_and_target_are_the_formulas(method: str) -> None:
    plan = method_plan(method, LEVELS, S_TAU)
    u, u_hat, eps = (normal(5, 3, 2, 2, seed=seed) for seed in (1, 2, 3))
    index = torch.tensor([2, 0, 1, 0, 2])
    z = network_input(plan, index, u, u_hat, eps)
    wanted = target(plan, index, u, u_hat, eps)
    for row, t in enumerate(index):
        expected = written_out(method, LEVELS.s[t], u[row], u_hat[row], eps[row])
        torch.testing.assert_close(z[row], expected[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(wanted[row], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_only_apndc_methods_need_the_denoised_image(method: str) -> None:
    plan = method_plan(method, LEVELS, S_TAU)
    u, eps, index = normal(1, 3, 2, 2, seed=1), normal(1, 3, 2, 2, seed=2), torch.tensor([0])
    assert plan.needs_denoised == method.startswith("apndc")
    if plan.needs_denoised:
        with pytest.raises(ValueError, match="needs u_hat"):
            target(plan, index, u, None, eps)
    else:
        network_input(plan, index, u, None, eps)
        target(plan, index, u, None, eps)


@pytest.mark.parametrize("method", METHODS)
def test_without_smoothing_noise_every_method_is_dc(method: str) -> None:
    world, u = small_world(), normal(2, 3, 2, 2, seed=4)
    eps = normal(2, 3, 3, 2, 2, seed=5)
    dc = class_logits(world, u, method_plan("dc", LEVELS, 0.0), eps)
    assert torch.equal(class_logits(world, u, method_plan(method, LEVELS, 0.0), eps), dc)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [5, 1024])
def test_logits_are_the_scores_computed_one_by_one(method: str, batch: int) -> None:
    world = small_world()
    u = labelled_images(world, 2, seed=1)[0] + S_TAU * normal(2, 3, 2, 2, seed=2)
    plan = method_plan(method, LEVELS, S_TAU)
    own = normal(2, 4, 3, 3, 2, 2, seed=3)
    found = class_logits(world, u, plan, own, batch=batch)
    torch.testing.assert_close(
        found, scores_one_by_one(world, method, u, own), rtol=1e-11, atol=1e-12
    )
    shared = class_logits(world, u, plan, own[0], batch=batch)
    torch.testing.assert_close(shared[0], found[0], rtol=0, atol=0)
    assert not torch.allclose(shared[1], found[1])
    some = class_logits(world, u, plan, own, classes=torch.tensor([3, 1]), batch=batch)
    torch.testing.assert_close(some, found[:, [3, 1]], rtol=0, atol=0)


def test_same_noise_serves_all_classes() -> None:
    """Classes with one mean score exactly alike, and the network sees one input for each level."""
    means = normal(1, 3, 2, 2, seed=6).repeat(3, 1, 1, 1)
    seen: list[Tensor] = []

    class Recorded(GaussianClasses):
        def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
            seen.append(u)
            return super().__call__(u, s, y)

    u, eps = normal(1, 3, 2, 2, seed=7), normal(1, 3, 3, 2, 2, seed=8)
    logits = class_logits(Recorded(means, 0.3), u, method_plan("epndc", LEVELS, S_TAU), eps)
    assert torch.equal(logits[0], logits[0, :1].expand(3))
    inputs = torch.cat(seen)
    assert len(inputs) == 3 * 3  # every level with every class, whatever the order
    assert len(inputs.unique(dim=0)) == 3


def test_unconditional_step_uses_the_other_network_when_given() -> None:
    world = small_world()
    other = GaussianClasses(world.means + 1.0, world.tau)
    u = normal(2, 3, 2, 2, seed=9)
    plan = method_plan("apndc", LEVELS, S_TAU)
    level = torch.full((2,), S_TAU, dtype=torch.float64)
    assert torch.equal(denoised_image(plan, other, u), other(u, level, None))
    eps = normal(1, 3, 3, 2, 2, seed=10)
    own, lent = (
        class_logits(world, u, plan, eps, unconditional=network) for network in (None, other)
    )
    assert not torch.allclose(own, lent)


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_differentiable_in_the_image(method: str) -> None:
    world, plan = small_world(), method_plan(method, LEVELS, S_TAU)
    u = labelled_images(world, 1, seed=11)[0].requires_grad_(True)
    eps = normal(2, 3, 3, 2, 2, seed=12)
    assert torch.autograd.gradcheck(lambda v: class_logits(world, v, plan, eps), (u,))


def test_bayes_probabilities_from_elbo_scores() -> None:
    """With the elbo density, its spacing and temperature 1/D the softmax is the posterior.

    Noise: paired draws; at 5 standard deviations of the log odds the false alarm is under 1e-5.
    """
    world = small_world()
    u_tau = labelled_images(world, 1, seed=13)[0] + S_TAU * normal(1, 3, 2, 2, seed=14)
    levels = noise_levels(
        "quantile", "elbo", 64, s_lo=0.505, s_max=200.0, method="epndc", s_tau=S_TAU
    )
    plan, draws = method_plan("epndc", levels, S_TAU), 64
    parts = torch.cat(
        [
            class_logits(world, u_tau, plan, normal(1, 64, 3, 2, 2, seed=100 + i), batch=4096)
            for i in range(draws)
        ]
    )
    log_prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    logits = parts.mean(dim=0)
    found = torch.log_softmax(12 * logits.double() + log_prior, dim=-1)  # means, not sums, over 12
    exact = torch.log_softmax(world.log_densities(u_tau, S_TAU)[0] + log_prior, dim=0)
    error = (found - found[0] - exact + exact[0]).abs()[1:]
    standard_error = 12 * (parts - parts[:, :1]).std(dim=0)[1:] / math.sqrt(draws)
    cut = finite_range_scores(world, u_tau, 0.505, 200.0)[0]
    cut = (cut - world.log_densities(u_tau, S_TAU)[0]).diff().abs().sum()
    assert (error < 5 * standard_error + cut).all()
    assert (standard_error < 0.2).all()
    assert found.exp().sum() == pytest.approx(1.0)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 192, 3072, 1000])
def test_row_losses_are_exact_means_whatever_the_batch(dimensions: int) -> None:
    out, wanted = (normal(70, 1, 1, dimensions, seed=seed).float() for seed in (1, 2))
    losses = row_losses(out, wanted)
    assert losses.dtype == torch.float64
    for i in range(0, 70, 7):
        squares = (out[i].double() - wanted[i].double()).square().flatten().tolist()
        assert float(losses[i]) == pytest.approx(math.fsum(squares) / dimensions, rel=1e-15)
        assert torch.equal(row_losses(out[i : i + 1], wanted[i : i + 1])[0], losses[i])
    assert torch.equal(row_losses(out.flip(0), wanted.flip(0)).flip(0), losses)


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_their_neighbours(method: str) -> None:
    plan = method_plan(method, LEVELS, S_TAU)
    u, u_hat, eps = (normal(67, 3, 5, 7, seed=seed).float() for seed in (1, 2, 3))
    index = torch.arange(67) % 3
    for function in (network_input, target):
        together = function(plan, index, u, u_hat, eps)
        assert together.dtype == torch.float32
        for i in (0, 1, 33, 66):
            one = slice(i, i + 1)
            alone = function(plan, index[one], u[one], u_hat[one], eps[one])
            assert torch.equal(alone, together[one])


def test_one_row_of_noise_moves_only_its_own_level() -> None:
    world, plan = small_world(), method_plan("dc", LEVELS, 0.0)
    u, eps = normal(1, 3, 2, 2, seed=15), normal(1, 3, 3, 2, 2, seed=16)
    other = eps.clone()
    other[0, 1] = normal(3, 2, 2, seed=17)
    silent = replace(plan, weights=np.array([1.0, 0.0, 1.0]))
    assert torch.equal(class_logits(world, u, silent, eps), class_logits(world, u, silent, other))
    assert not torch.equal(class_logits(world, u, plan, eps), class_logits(world, u, plan, other))


def test_pixels_become_model_images() -> None:
    assert torch.equal(to_model_image(torch.tensor([0.0, 0.25, 1.0])), torch.tensor([-1, -0.5, 1]))


def test_bad_plans_and_noise_are_refused() -> None:
    with pytest.raises(ValueError, match='did you mean "epndc"'):
        method_plan("epdnc", LEVELS, S_TAU)
    for method, s_tau in (("epndc", 0.6), ("apndc-posterior", 0.6), ("apndc", 0.61)):
        with pytest.raises(ValueError, match=rf"the lowest level is 0\.6 and s_tau is {s_tau}"):
            method_plan(method, LEVELS, s_tau)
    for method in ("dc", "apndc"):  # their noise is added to an image that counts as clean
        assert method_plan(method, LEVELS, 0.6).noise_scale[0] == 0.6
    plan, u = method_plan("dc", LEVELS, 0.0), torch.zeros(2, 3, 2, 2)
    for shape in ((1, 2, 3, 2, 2), (1, 3, 3, 2, 1), (3, 3, 2, 2), (5, 1, 3, 3, 2, 2)):
        with pytest.raises(ValueError, match="eps has shape"):
            class_logits(small_world(), u, plan, torch.zeros(shape))
