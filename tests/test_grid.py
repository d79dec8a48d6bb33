"""Noise on a grid: no false certificate, the sampler's distance from the ideal, what is left."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.radius import certificate
from diffcert_ray.certificates.reach import required_n
from diffcert_ray.datasets.pixel_grid import STEPS, off_grid, to_grid
from diffcert_ray.method.grid import MIDDLE, check_sigma_on_grid, rounding_radius, slack
from diffcert_ray.method.noise import NoiseSource, noisy_model_images, philox4x32


def shown(x: float, sigma: float, image_id: int, votes: int) -> np.ndarray:
    """What votes of an image of one pixel are shown, model space."""
    at = np.arange(votes)
    source = NoiseSource(0, sigma, 1)
    steps = source.steps(np.full_like(at, image_id), np.ones_like(at), at)
    points = torch.from_numpy(to_grid(np.float32([[x]])))
    return noisy_model_images(points, steps).numpy().ravel()


def multiple_of(u: np.ndarray, power: int) -> np.ndarray:
    """Votes of a base classifier of one pixel that reads the last bits of what it is shown."""
    scaled = u.astype(np.float64) * 2.0**power
    return scaled == np.round(scaled)


@pytest.mark.parametrize("power", [20, 22, 23, 24, 25, 26, 28])
def test_no_classifier_of_the_last_bits_is_certified_beyond_where_it_changes(power):
    """Of float noise it was: certified 0.32 from 0.25, where P(A) is 0.41 at a distance of 0.25.

    False alarm: 1e-3 for a certificate, and 100,000 votes tell 0.4 from 0.5 with certainty.
    """
    sigma, n = 0.1, 10_000
    for x in (0.25, 0.5, 0.1, 64 / 255):
        hits = int(multiple_of(shown(x, sigma, 0, n), power).sum())
        for count, other in ((hits, False), (n - hits, True)):
            found = certificate(count, n, sigma=sigma)
            for step in (0.05, 0.1, 0.2, 0.25, 0.3):
                if step < found.radius:
                    votes = multiple_of(shown(x + step, sigma, 1, 100_000), power) != other
                    assert votes.mean() > 0.495, f"radius {found.radius} from {x}, at {step}"


def test_a_shift_of_the_image_is_a_shift_of_what_is_shown_bit_by_bit():
    """So votes at a shifted point are those of the same function of X + K: the theorem's case."""
    at = np.arange(2000)
    steps = NoiseSource(3, 0.25, 5).steps(at, np.ones_like(at), at)
    points = torch.randint(0, STEPS + 1, steps.shape, dtype=torch.int32)
    shift = torch.randint(-9000, 9000, steps.shape, dtype=torch.int32)
    moved = noisy_model_images(points + shift, steps - shift)
    assert torch.equal(moved, noisy_model_images(points, steps))
    exact = (points.double() + steps.double() - MIDDLE) / MIDDLE
    assert (moved.double() - exact).abs().max() <= 2.0**-22


def test_steps_are_the_rounded_gaussian_of_64_bit_uniforms():
    """Against mpmath: the slack bounds how often the computed integer is not the exact one."""
    sigma, votes = 0.25, 2500
    source, at = NoiseSource(11, sigma, 4), np.arange(votes)
    steps = source.steps(at + 9, np.ones_like(at), at).numpy()
    block = torch.arange(2)[None, :]
    address = [torch.tensor(a)[:, None] for a in (at, at + 9, np.full(votes, 1 << 24))]
    words = np.stack([w.numpy() for w in philox4x32((block, *address), source.key)], -1)
    mpmath.mp.dps = 40
    scale, wrong, error = mpmath.mpf(sigma) * STEPS, 0, mpmath.mpf(0)
    for row, expected in zip(words.reshape(-1, 4).tolist(), steps.reshape(-1, 2), strict=True):
        u, v = (mpmath.mpf(2**33 * a + 2 * b + 1) / 2**65 for a, b in (row[:2], row[2:]))
        radius, angle = mpmath.sqrt(-2 * mpmath.log(u)), 2 * mpmath.pi * (v - mpmath.mpf(1) / 2)
        for trig, found in ((mpmath.cos, expected[0]), (mpmath.sin, expected[1])):
            exact = scale * radius * trig(angle)
            wrong += int(mpmath.nint(exact)) != int(found)
            error += abs(exact - float(scale) * float(radius) * float(trig(angle)))
    assert wrong == 0  # 10,000 numbers at a probability below 4e-11 each: false alarm 4e-7
    assert 2 * error / (4 * votes) < slack(sigma, 1)


def test_the_slack_is_small_where_people_work_and_grows_with_sigma_and_dimensions():
    assert slack(0.25, 1) < 5e-11
    assert slack(0.25, 3072) < 1.3e-7
    assert slack(0.5, 64) == pytest.approx(2 * slack(0.25, 64), rel=1e-3)
    assert slack(0.25, 128) == pytest.approx(2 * slack(0.25, 64))


def test_images_of_eight_bits_and_of_sixteenths_lie_on_the_grid():
    for levels in (255, 16, 15):
        pixels = np.arange(levels + 1, dtype=np.float64) / levels
        for stored in (pixels.astype(np.float32), np.float32(np.arange(levels + 1)) / levels):
            assert off_grid(np.float32(stored)) == 0.0
            assert (to_grid(stored) * levels == np.arange(levels + 1) * STEPS).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_an_image_off_the_grid_is_at_most_the_rounding_radius_from_it(values):
    pixels = np.float32(values)
    distance = off_grid(pixels)
    exact = math.dist(pixels.astype(np.float64), to_grid(pixels) / STEPS)
    assert distance == 0.0 or exact <= distance <= rounding_radius(len(values)) + 1e-12
    assert exact - distance <= 2.0**-25 * math.sqrt(len(values))  # float32's own rounding


@pytest.mark.parametrize(
    ("dimensions", "expected"), [(64, (47, 351, 5982)), (3072, (47, 353, 6011))]
)
def test_unanimous_votes_that_a_stored_radius_of_one_two_and_three_sigma_needs(
    dimensions, expected
):
    off = {"slack": slack(0.25, dimensions), "taken_off": rounding_radius(dimensions)}
    needed = [required_n(r * 0.25, 0.25, 0.001, "sequential", **off) for r in (1, 2, 3)]
    assert tuple(needed) == expected
    pure = [required_n(r * 0.25, 0.25, 0.001, "sequential", slack=0.0, taken_off=0.0)
            for r in (1, 2, 3)]  # fmt: skip
    assert pure == [47, 351, 5977]


@pytest.mark.parametrize("sigma", [1e-5, 14.0, 100.0])
def test_a_sigma_that_the_grid_cannot_hold_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma=.* must lie in 0\.000245 to 13\.\d+"):
        check_sigma_on_grid(sigma)
    at = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="must lie in"):
        NoiseSource(0, sigma, 3).steps(at, at, at)


def test_where_nothing_is_left_the_radius_is_zero_and_no_abstention():
    found = executed_certificate(600, 1000, sigma=0.25, slack=1e-9, taken_off=0.5)
    assert (found.radius, found.abstained) == (0.0, False)
    assert executed_certificate(500, 1000, sigma=0.25, slack=1e-9, taken_off=0.0).abstained
    barely = certificate(552, 1000, sigma=0.25)
    assert not barely.abstained
    assert executed_certificate(552, 1000, sigma=0.25, slack=0.01, taken_off=0.0).abstained
