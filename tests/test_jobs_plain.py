"""The jobs on plain certificates, in a Gaussian world whose slopes and boundaries are known."""

import argparse

import numpy as np
import pytest
import torch

from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.tools.exact_worlds import GaussianClasses
from jobs.attack_plain import Attacker, into_box
from jobs.lipschitz_constant import Measure, Score, climb, inside, measured, starts

TAU, S = 0.1, 1.0


@pytest.fixture(scope="module")
def world() -> GaussianClasses:
    """Three classes so near the middle of the box that nothing is ever clipped."""
    generator = torch.Generator().manual_seed(0)
    means = 0.2 * torch.randn((3, 1, 2, 2), generator=generator, dtype=torch.float64)
    return GaussianClasses(means, TAU)


def exact_slope(world: GaussianClasses, a: int, b: int) -> float:
    """Of l_b - l_a, which is linear in x: h - u = (s^2 (mu - u) + tau^2 s eps) / (s^2 + tau^2)."""
    shrink = S**2 / (S**2 + TAU**2)
    distance = float((world.means[a] - world.means[b]).norm())
    return shrink**2 * distance / world.dimensions  # 2 * 2 |mu_a - mu_b| / (4 D)


def test_measured_slope_is_the_exact_one_and_below_the_local_bound(world) -> None:
    score = Score(world, torch.tensor([S]), torch.Generator().manual_seed(1))
    how = Measure(points=2, direction_draws=8, slope_draws=64, chord=0.01, alpha=1e-3)
    x = torch.full((2, 1, 2, 2), 0.5)
    found = measured(score, x, torch.tensor([0, 1]), torch.tensor([1, 2]), how)
    expected = [exact_slope(world, 0, 1), exact_slope(world, 1, 2)]
    # The world's slope is the same for every draw: the interval is as narrow as float32 allows.
    np.testing.assert_allclose(found["slope"], expected, rtol=2e-3)
    assert (found["low"] <= found["local_bound"]).all()


def test_climb_raises_the_score_difference_inside_the_box(world) -> None:
    score = Score(world, torch.tensor([S]), torch.Generator().manual_seed(1))
    x = torch.full((1, 1, 2, 2), 0.5)
    a, b = torch.tensor([0]), torch.tensor([1])
    best, squared = climb(score, x, a, b, steps=3, step=10.0, draws=4)
    assert float(squared.sqrt()) == pytest.approx(exact_slope(world, 0, 1), rel=1e-3)
    assert ((best >= 0.01) & (best <= 0.99)).all()
    eps = score.noise(8)
    gap = (
        score.losses(x, a, b, eps).mean(dim=(0, 1))[1]
        - score.losses(x, a, b, eps).mean(dim=(0, 1))[0]
    )
    ahead = inside(x + 0.1 * (world.means[0] - world.means[1]).float())
    losses = score.losses(ahead, a, b, eps).mean(dim=(0, 1))
    assert float(losses[1] - losses[0]) > float(gap)


def test_starts_lie_in_the_box_with_two_different_classes() -> None:
    x, a, b = starts(30, seed=0)
    assert x.shape == (30, 1, 8, 8)
    assert ((x > 0.0) & (x < 1.0)).all()
    assert (a != b).all()


def attacker(world: GaussianClasses) -> Attacker:
    plan = PlainPlan(
        image_ids=np.array([0]),
        draws=64,
        unit=32,
        alpha=0.001,
        bound="local",
        s=np.array([S]),
        weights=np.array([1.0]),
        classes=3,
        dimensions=4,
    )
    options = argparse.Namespace(restarts=3, steps=6, draws=4, final_draws=16, most_draws=256)
    return Attacker(world, plan, options, torch.Generator().manual_seed(2))


def test_attack_finds_the_class_change_just_beyond_the_boundary_and_none_before(world) -> None:
    x = ((world.means[0] + 1) / 2).float()
    # The classes' losses are equal on the plane halfway; pixel distances are half of model ones.
    near = min((1, 2), key=lambda k: float((world.means[k] - world.means[0]).norm()))
    boundary = float((world.means[near] - world.means[0]).norm()) / 4
    tool = attacker(world)
    for radius, outcome in ((0.9 * boundary, "unchanged"), (1.1 * boundary, "changed")):
        (end,) = tool.closest(x, radius, 0, [near])
        assert float((end - x).norm()) < radius
        assert tool.verdict(end, 0)[0] == outcome


def test_attacked_point_stays_in_ball_and_box() -> None:
    x = torch.rand((1, 4, 4), generator=torch.Generator().manual_seed(0))
    delta = 5.0 * torch.randn((6, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    points = into_box(x, delta, 0.7)
    assert ((points >= 0.0) & (points <= 1.0)).all()
    assert ((points - x).flatten(1).norm(dim=1) < 0.7).all()
    small = 1e-3 * delta / delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(into_box(x.clamp(0.1, 0.9), small, 0.7) - x.clamp(0.1, 0.9), small)
