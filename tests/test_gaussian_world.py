"""Exact Gaussian worlds: denoiser and scores against closed forms, orders of convergence measured.

Scores under the `elbo` density are compared with the finite-range identity: over (s_lo, s_max) the
integral of the score is, up to one number for all classes, E log p_{s_lo}(z) - E log p_{s_max}(z).
The expectations over eps are exact (closed form or Gauss-Hermite), so nothing here is random but
the choice of means and images.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.method.diffusion_classifier import MethodPlan, method_plan
from diffcert_ray.method.noise_levels import NoiseLevels, noise_levels
from diffcert_ray.tools.exact_worlds import (
    GaussianClasses,
    expected_squared_errors,
    finite_range_scores,
    gaussian_world,
    labelled_images,
)

S_TAU, S_LO, S_MAX = 0.5, 0.55, 3.0
SIZES = 2 ** np.arange(2, 10)  # T = 4 .. 512


def line_world() -> tuple[GaussianClasses, Tensor]:
    means = torch.tensor([-0.4, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    return GaussianClasses(means, 0.3), torch.full((1, 1, 1), 0.35, dtype=torch.float64)


def exact_scores(world: GaussianClasses, u: Tensor, plan: MethodPlan) -> Tensor:
    """Class scores [K] with exact expectations, squared errors summed over the dimensions."""
    errors = expected_squared_errors(
        world,
        torch.from_numpy(plan.s),
        base=u,
        target=u,
        noise_scale=torch.from_numpy(plan.noise_scale),
        target_scale=torch.from_numpy(plan.target_scale),
    )
    return -(torch.from_numpy(plan.weights)[:, None] * errors).sum(dim=0)


def errors_against_identity(
    worlds: list[GaussianClasses], u: Tensor, *, grid: str, method: str, s_tau: float
) -> tuple[np.ndarray, float]:
    """Largest error of a class difference for each T of SIZES, and the largest difference."""
    exact = torch.cat([finite_range_scores(w, u[None], S_LO, S_MAX, s_tau)[0] for w in worlds])
    found = []
    for size in SIZES:
        levels = noise_levels(
            grid, "elbo", int(size), s_lo=S_LO, s_max=S_MAX, method=method, s_tau=s_tau
        )
        plan = method_plan(method, levels, s_tau)
        scores = torch.cat([exact_scores(world, u, plan) for world in worlds])
        wrong = (scores - scores[0]) - (exact - exact[0])
        found.append(float(wrong.abs().max()))
    return np.array(found), float((exact - exact[0]).abs().max())


@pytest.mark.parametrize("dimensions", [1, 2, 64])
@pytest.mark.parametrize(("method", "s_tau"), [("epndc", S_TAU), ("dc", 0.0)])
@pytest.mark.parametrize(("grid", "order"), [("quantile", 2), ("linear", 1)])
def test_scores_converge_to_the_finite_range_identity(
    dimensions: int, method: str, s_tau: float, grid: str, order: int
) -> None:
    """Classes of different tau, so that input noise and moved target do not cancel in them."""
    worlds = [gaussian_world(2, dimensions, tau, 0.5, seed=4) for tau in (0.3, 0.4)]
    u = labelled_images(worlds[0], 1, seed=5)[0][0]
    errors, scale = errors_against_identity(worlds, u, grid=grid, method=method, s_tau=s_tau)
    orders = np.log2(errors[:-1] / errors[1:])
    assert orders[-1] == pytest.approx(order, abs=0.02)
    assert orders[3:] == pytest.approx(order, abs=0.15)
    assert errors[-1] < (1e-5 if order == 2 else 2e-2) * scale


def test_quantile_grid_needs_the_density_integral_in_its_weights() -> None:
    world, u = line_world()
    levels = noise_levels("quantile", "elbo", 512, s_lo=S_LO, s_max=S_MAX, method="dc")
    shares = NoiseLevels(s=levels.s, weights=np.full(512, 1 / 512))
    exact = finite_range_scores(world, u[None], S_LO, S_MAX)[0].diff()
    wrong = exact_scores(world, u, method_plan("dc", shares, 0.0)).diff() - exact
    assert abs(float(wrong / exact)) > 0.3


@pytest.mark.parametrize(
    ("method", "s_tau", "published"), [("dc", 0.0, -3.0), ("epndc", 0.5, -0.79412)]
)
def test_integral_over_all_levels_is_the_log_density_ratio(
    method: str, s_tau: float, published: float
) -> None:
    world, u = line_world()

    def integrand(s: float) -> float:
        one = NoiseLevels(s=np.array([s]), weights=np.array([s**-3.0]))
        scores = exact_scores(world, u, method_plan(method, one, s_tau))
        return float(scores[0] - scores[1])

    parts = [quad(integrand, a, b, epsabs=1e-10)[0] for a, b in ((s_tau, 3.0), (3.0, math.inf))]
    log_ratio = -world.log_densities(u[None], s_tau)[0].diff()
    assert sum(parts) == pytest.approx(float(log_ratio), abs=1e-7)
    assert sum(parts) == pytest.approx(published, abs=5e-6)
    # What the paper's upper end at 3 cuts off, in this world.
    lost = {0.0: 0.010, 0.5: 0.037}[s_tau]
    assert parts[1] / sum(parts) == pytest.approx(lost, abs=5e-4)


def test_two_means_form_is_the_moved_target_form() -> None:
    """The paper's EPNDC, KL of two Gaussian posteriors per interval, against what is evaluated."""
    world = gaussian_world(5, 12, 0.3, 0.5, seed=1, image_shape=(3, 2, 2))
    u_tau = labelled_images(world, 1, seed=2)[0] + 0.1
    grid = np.linspace(S_TAU, S_MAX, 126)[1:]  # the first interval has an infinite weight
    a, b, c = S_TAU**2, grid[:-1] ** 2, grid[1:] ** 2
    exact = NoiseLevels(s=grid[1:], weights=(c - a) * (c - b) / (2 * (b - a) * c**2))
    plan = method_plan("epndc", exact, S_TAU)
    generator = torch.Generator().manual_seed(3)
    for index, (lower, upper) in enumerate(pairwise(grid)):
        b, c = lower**2, upper**2
        eps = torch.randn(u_tau.shape, generator=generator, dtype=torch.float64)
        z = u_tau + math.sqrt(c - a) * eps
        s = torch.full((5,), upper, dtype=torch.float64)
        out = world(z.expand(5, -1, -1, -1), s, torch.arange(5))
        # Law of the image at level b: given its values at a and c, and given c and the clean image.
        mean_posterior = ((c - b) * u_tau + (b - a) * z) / (c - a)
        mean_model = (b * z + (c - b) * out) / c
        variance = (b - a) * (c - b) / (c - a)
        divergence = (mean_posterior - mean_model).square().flatten(1).sum(1) / (2 * variance)
        moved = u_tau + plan.target_scale[index] * eps
        evaluated = plan.weights[index] * (out - moved).square().flatten(1).sum(1)
        torch.testing.assert_close(evaluated, divergence, rtol=1e-9, atol=0)
        assert plan.noise_scale[index] == pytest.approx(math.sqrt(c - a), rel=1e-12)


def test_identity_holds_for_mixtures_in_two_dimensions() -> None:
    """Two classes that are themselves mixtures: nothing Gaussian about their denoisers."""
    generator = torch.Generator().manual_seed(0)
    classes = [
        GaussianClasses(torch.randn(k, 1, 1, 2, generator=generator, dtype=torch.float64), tau)
        for k, tau in ((2, 0.4), (3, 0.3))
    ]
    u_tau = torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(1, 1, 1, 2)
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    masses = masses / masses.sum()
    eps = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 1, 1, 2))
    mass = torch.from_numpy(np.outer(masses, masses).reshape(-1))

    def expected_log_ratio(s: float) -> float:
        z = u_tau + math.sqrt(s**2 - S_TAU**2) * eps
        densities = [mass @ world.log_mixture_density(z, s) for world in classes]
        return float(densities[0] - densities[1])

    # Gauss-Legendre in ln s: 40 nodes are enough for 1e-12 on this short and smooth range.
    points, lengths = np.polynomial.legendre.leggauss(40)
    span = math.log(S_MAX / S_LO)
    s = S_LO * np.exp(0.5 * span * (points + 1.0))
    levels = NoiseLevels(s=s, weights=0.5 * span * lengths * s * s**-3.0)
    plan = method_plan("epndc", levels, S_TAU)
    difference = 0.0
    for level, weight, noise, moved in zip(
        plan.s, plan.weights, plan.noise_scale, plan.target_scale, strict=True
    ):
        z = u_tau + noise * eps
        wanted = u_tau + moved * eps
        outs = [world(z, torch.full((len(z),), level, dtype=torch.float64)) for world in classes]
        losses = [mass @ (out - wanted).square().flatten(1).sum(1) for out in outs]
        difference -= weight * float(losses[0] - losses[1])
    exact = expected_log_ratio(S_LO) - expected_log_ratio(S_MAX)
    assert abs(exact) > 0.05
    assert difference == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("method", ["dc", "epndc", "apndc", "apndc-posterior"])
def test_expected_error_is_the_mean_of_sampled_errors(method: str) -> None:
    """False alarm: 12 normal means beyond 5 standard errors, under 1e-5."""
    world = gaussian_world(3, 6, 0.3, 0.5, seed=6)
    u, u_hat = labelled_images(world, 2, seed=7)[0].unbind(0)
    levels = NoiseLevels(s=np.array([0.6, 2.0]), weights=np.ones(2))
    plan = method_plan(method, levels, S_TAU)
    base, wanted = (u if name == "noisy" else u_hat for name in (plan.base, plan.target))
    scales = {
        name: torch.from_numpy(getattr(plan, name)) for name in ("noise_scale", "target_scale")
    }
    exact = expected_squared_errors(
        world, torch.from_numpy(plan.s), base=base, target=wanted, **scales
    )
    eps = torch.randn(
        (20_000, *u.shape), generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    for t in range(2):
        s = torch.full((len(eps),), plan.s[t], dtype=torch.float64)
        for k in range(3):
            out = world(base + plan.noise_scale[t] * eps, s, torch.full((len(eps),), k))
            errors = (out - wanted - plan.target_scale[t] * eps).square().flatten(1).sum(1)
            deviation = float(errors.mean() - exact[t, k])
            assert abs(deviation) < 5 * float(errors.std()) / math.sqrt(len(eps))


def test_denoiser_is_the_posterior_mean_by_tweedie() -> None:
    """D(u; s) = u + s^2 grad log p_s(u), for every class and for the mixture."""
    world = gaussian_world(4, 6, 0.3, 0.5, seed=9, image_shape=(1, 2, 3))
    u = labelled_images(world, 5, seed=10)[0].requires_grad_(True)
    s = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    (slope,) = torch.autograd.grad(world.log_mixture_density(u, s).sum(), u)
    tweedie = u + s.reshape(-1, 1, 1, 1) ** 2 * slope
    torch.testing.assert_close(world(u, s), tweedie, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(world(u, s, torch.full((5,), -1)), world(u, s), rtol=0, atol=0)
    for k in range(4):
        (slope,) = torch.autograd.grad(world.log_densities(u, s)[:, k].sum(), u)
        tweedie = u + s.reshape(-1, 1, 1, 1) ** 2 * slope
        out = world(u, s, torch.full((5,), k))
        torch.testing.assert_close(out, tweedie, rtol=1e-10, atol=1e-10)


def test_log_densities_are_those_of_scipy() -> None:
    world = gaussian_world(3, 4, 0.3, 0.5, seed=11)
    u = labelled_images(world, 2, seed=12)[0]
    for s in (0.0, 0.7):
        expected = [
            multivariate_normal.logpdf(u.flatten(1), mean.flatten(), 0.3**2 + s**2)
            for mean in world.means
        ]
        torch.testing.assert_close(world.log_densities(u, s), torch.tensor(np.array(expected)).T)
        mixture = torch.tensor(np.exp(expected).mean(axis=0)).log()
        torch.testing.assert_close(world.log_mixture_density(u, s), mixture)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    world = gaussian_world(1000, 192, 0.3, 0.2, seed=0, image_shape=(3, 8, 8))
    u = labelled_images(world, 150, seed=1)[0]
    s = torch.linspace(0.1, 3.0, 150, dtype=torch.float64)
    y = torch.arange(150) * 6 - 1
    y[::3] = -1
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    for dtype in (torch.float32, torch.float64):
        rows = (u.to(dtype), s.to(dtype), y)
        together = world(*rows)
        assert together.dtype == dtype
        assert torch.equal(world(*(v[order] for v in rows)), together[order])
        mixed = world(*rows[:2])
        for i in range(0, 150, 7):
            one = [v[i : i + 1] for v in rows]
            assert torch.equal(world(*one), together[i : i + 1])
            assert torch.equal(world(*one[:2]), mixed[i : i + 1])


def test_world_satisfies_the_denoiser_protocol() -> None:
    world = gaussian_world(3, 12, 0.3, 0.5, seed=0, image_shape=(3, 2, 2))
    assert isinstance(world, Denoiser)
    assert (world.image_shape, world.num_classes, world.has_unconditional) == ((3, 2, 2), 3, True)
    assert gaussian_world(2, 5, 0.3, 0.5, seed=0).image_shape == (1, 1, 5)


def test_labelled_images_follow_their_classes() -> None:
    """False alarm: two chi-square statistics beyond 5 standard deviations, under 1e-5."""
    world = gaussian_world(10, 16, 0.3, 0.5, seed=0)
    u, labels = labelled_images(world, 4000, seed=1)
    squares = (u - world.means[labels]).square().sum() / 0.3**2
    assert abs(float(squares) - 64_000) < 5 * math.sqrt(2 * 64_000)
    counts = torch.bincount(labels, minlength=10).double()
    assert abs(float((counts - 400).square().sum() / 400) - 9) < 5 * math.sqrt(18)
    assert torch.equal(labelled_images(world, 4000, seed=1)[0], u)
    assert not torch.equal(labelled_images(world, 4000, seed=2)[1], labels)


def test_bad_worlds_and_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="C\\*H\\*W equal to dimensions"):
        gaussian_world(3, 12, 0.3, 0.5, seed=0, image_shape=(3, 2, 3))
    with pytest.raises(ValueError, match="tau is 0"):
        gaussian_world(3, 12, 0.0, 0.5, seed=0)
    with pytest.raises(ValueError, match="float64"):
        GaussianClasses(torch.zeros(2, 1, 1, 3), 0.3)
    world = gaussian_world(3, 4, 0.3, 0.5, seed=0)
    u, s = torch.zeros(2, 1, 1, 4), torch.ones(2)
    with pytest.raises(ValueError, match="y goes from 0 to 3"):
        world(u, s, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="u has shape"):
        world(torch.zeros(2, 1, 1, 5), s, None)
