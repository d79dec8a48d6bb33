import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.integrate import solve_ivp
from scipy.stats import norm

from diffcert_ray.certificates.betting import UnitSums, betting_bound
from diffcert_ray.certificates.lipschitz import (
    constant_radius,
    lipschitz_constant,
    local_radius,
    local_slope,
    local_table,
    plain_certificate,
)

MANY = 10**30  # dimensions: the Cauchy-Schwarz term vanishes
WIDE = 1e12  # noise level: the isoperimetric term vanishes


# --- the slope ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [1e-15, 1e-6, 0.01, 0.4, 0.5, 0.9, 1 - 1e-9])
def test_slope_agrees_with_its_formula_in_high_precision(loss):
    mp.dps = 60
    quantile = mp.sqrt(2) * mp.erfinv(2 * mpf(loss) - 1)
    exact = mp.npdf(quantile) / mpf(0.7) + 2 * mp.sqrt(mpf(loss) / 64)
    assert float(local_slope(loss, 0.7, 64)) == pytest.approx(float(exact), rel=1e-9)


def test_slope_vanishes_at_zero_loss_only():
    assert float(local_slope(0.0, 0.5, 64)) == 0.0
    assert float(local_slope(1.0, 0.5, 64)) == pytest.approx(2 / 8)


def test_constant_matches_a_hand_count():
    constant = lipschitz_constant([0.5, 2.0], [0.25, 0.75], 16)
    by_hand = 0.25 * (0.7978845608 / 0.5 + 0.5) + 0.75 * (0.7978845608 / 2 + 0.5)
    assert constant == pytest.approx(by_hand, rel=1e-9)
    assert constant_radius(0.3, constant) == pytest.approx(0.3 / by_hand, rel=1e-9)
    assert constant_radius(-0.3, constant) == 0.0


# --- travel distances: closed forms and differential equations ----------------------------------


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e-3), (1e-3, 0.4), (0.02, 0.97), (0.6, 0.999)])
def test_table_follows_the_gaussian_closed_form_and_is_never_too_long(low, high):
    """With the first term alone, l(r) = Phi(Phi^-1(l0) + r / sigma)."""
    exact = 0.7 * (norm.ppf(high) - norm.ppf(low))
    tabulated = np.diff(local_table([0.7], MANY).travelled(np.array([[low, high]]))).item()
    assert exact * (1 - 2e-3) <= tabulated <= exact


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-6), (0.0, 0.3), (1e-8, 1e-3), (0.1, 1.0)])
def test_table_follows_the_square_root_closed_form_also_from_zero(low, high):
    """With the second term alone, sqrt(l(r)) = sqrt(l0) + r / sqrt(D), although psi(0) = 0."""
    exact = 8.0 * (math.sqrt(high) - math.sqrt(low))
    tabulated = np.diff(local_table([WIDE], 64).travelled(np.array([[low, high]]))).item()
    assert exact * (1 - 3e-3) <= tabulated <= exact


@pytest.mark.parametrize("start", [1e-6, 0.003, 0.05, 0.3])
@pytest.mark.parametrize(("sigma", "dimensions"), [(0.25, 3072), (0.5, 64), (1.5, 2)])
def test_losses_move_as_the_differential_equation_says_rounded_outwards(start, sigma, dimensions):
    radii = np.linspace(0.0, 0.3, 13)

    def solve(sign):
        def slope(_, loss):
            return sign * local_slope(np.clip(loss, 0.0, 1.0), sigma, dimensions)

        def ended(_, loss):
            return (1 - 1e-7 - loss[0]) if sign > 0 else (loss[0] - 1e-9)

        ended.terminal = True
        return solve_ivp(
            slope, (0, 0.3), [start], "DOP853", radii, events=ended, rtol=1e-11, atol=1e-14
        )

    table = local_table([sigma], dimensions)
    begin = table.travelled(np.array([[start]]))
    for sign in (1, -1):
        solution = solve(sign)
        moved = table.reached(begin + sign * solution.t)[0]
        exact = solution.y[0]
        outward = sign * (moved - exact)
        assert np.all(outward >= -1e-9 * exact - 1e-13)
        changed = np.abs(exact - start) + np.minimum(exact, 1 - exact) * 3
        assert np.all(outward <= 3e-3 * changed + 1e-9)


def test_local_radius_meets_the_exact_crossing_from_below():
    """One level and far more dimensions than matter: the losses meet half way in Phi^-1."""
    for loss_a, loss_b in [(1e-4, 0.01), (0.01, 0.02), (0.2, 0.7), (0.03, 0.99)]:
        exact = 0.4 * (norm.ppf(loss_b) - norm.ppf(loss_a)) / 2
        found = local_radius([loss_a], [[loss_b]], sigma_t=[0.4], weights=[1.0], dimensions=MANY)
        assert exact * (1 - 3e-3) <= found <= exact


def test_local_radius_with_several_levels_meets_the_integrated_crossing():
    sigma, weights, dimensions = np.array([0.5, 1.0, 1.5]), np.array([0.2, 0.3, 0.5]), 64
    l_a, l_b = np.array([0.004, 0.01, 0.02]), np.array([0.02, 0.03, 0.05])

    def slope(_, both):
        losses = np.clip(both, 0, 1).reshape(2, 3)
        speed = local_slope(losses, sigma, dimensions)
        return np.concatenate([speed[0], -speed[1]])

    def met(_, both):
        return weights @ (both[3:] - both[:3])

    met.terminal = True
    start = np.concatenate([l_a, l_b])
    exact = solve_ivp(slope, (0, 5), start, events=met, rtol=1e-11, atol=1e-13).t_events[0][0]
    found = local_radius(l_a, l_b, sigma_t=sigma, weights=weights, dimensions=dimensions)
    assert exact * (1 - 3e-3) <= found <= exact


# --- the bound against real loss functions, with exact Gaussian expectations --------------------


def boxes_loss(points, edges, values, sigma):
    """Losses at points [P, D] of an estimate constant on boxes, values [cells]*D + [D]: exact."""
    dimensions = points.shape[1]
    cumulative = norm.cdf((edges[None, :, None] - points[:, None, :]) / sigma)
    shares = np.diff(cumulative, axis=1)  # [P, cells, D]
    if dimensions == 1:
        probability = shares[:, :, 0]
    else:
        probability = np.einsum("pi,pj->pij", shares[:, :, 0], shares[:, :, 1])
    flat = values.reshape(-1, dimensions)
    squared = ((flat[None] - points[:, None, :]) ** 2).sum(axis=2) / dimensions
    return (probability.reshape(len(points), -1) * squared).sum(axis=1)


def random_boxes(rng, dimensions):
    cells = int(rng.integers(2, 9))
    edges = np.concatenate([[-np.inf], np.sort(rng.normal(0.5, 0.7, cells - 1)), [np.inf]])
    shape = (cells,) * dimensions + (dimensions,)
    kind = rng.integers(3)
    if kind == 0:  # only corners of the box: the largest swings
        return edges, rng.integers(0, 2, shape).astype(float)
    if kind == 1:
        return edges, rng.random(shape)
    return edges, np.clip(rng.normal(rng.random(), 0.1, shape), 0, 1)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_no_loss_changes_faster_than_the_bound_says(dimensions):
    """600 random estimates, 40 points each on a line through the box and beyond it."""
    rng = np.random.default_rng(11)
    tightest = 0.0
    for _ in range(600):
        sigma = float(np.exp(rng.uniform(np.log(0.05), np.log(2))))
        edges, values = random_boxes(rng, dimensions)
        origin = rng.random(dimensions)
        direction = rng.normal(size=dimensions)
        steps = np.linspace(0, 1.2, 40)
        line = origin + steps[:, None] * direction / np.linalg.norm(direction)
        losses = np.clip(boxes_loss(np.clip(line, 0, 1), edges, values, sigma), 0, 1)
        table = local_table([sigma], dimensions)
        begin = table.travelled(losses[None, :1])
        assert np.all(losses <= table.reached(begin + steps)[0] + 1e-12)
        assert np.all(losses >= table.reached(begin - steps)[0] - 1e-12)
        slopes = np.abs(np.diff(losses)) / np.diff(steps)
        # Between two points the loss may pass through values of larger slope; 1.2/39 is a step.
        nearby = np.clip(losses[:-1, None] + np.linspace(-0.2, 0.2, 41), 0, 1)
        allowed = local_slope(nearby, sigma, dimensions).max(axis=1)
        assert np.all(slopes <= allowed + 1e-9)
        tightest = max(tightest, float((slopes / allowed).max()))
    assert tightest > 0.4  # the comparison is not idle


def test_a_half_space_estimate_uses_up_the_first_term():
    """h jumps from 0 to 1 in its first of 10^6 equal pixels: the bound is nearly reached."""
    sigma, side = 0.3, 10**6
    loss = norm.cdf(-0.8)  # x' = 0, h = all ones where u.eps > 0.8, so g is an indicator
    step = 1e-6
    risen = norm.cdf(-0.8 + step / sigma)
    assert (risen - loss) / step == pytest.approx(float(local_slope(loss, sigma, side)), rel=5e-3)


# --- end to end in worlds whose losses are known exactly ----------------------------------------


def clipped_moments(mean, spread):
    """E[c] and E[c^2] of c = clip(N(mean, spread^2), 0, 1)."""
    low, high = (0 - mean) / spread, (1 - mean) / spread
    inside = norm.cdf(high) - norm.cdf(low)
    above = norm.sf(high)
    drop = norm.pdf(low) - norm.pdf(high)
    second = (mean**2 + spread**2) * inside + 2 * mean * spread * drop
    second += spread**2 * (low * norm.pdf(low) - high * norm.pdf(high))
    return mean * inside + spread * drop + above, second + above


def gaussian_world_losses(points, means, tau, sigma_t):
    """[P, T, K] exact losses of Gaussian classes: projected points, clipped exact estimates."""
    x = np.clip(points, 0, 1)[:, None, None, :]
    s = np.asarray(sigma_t)[None, :, None, None]
    shrink = tau**2 / (tau**2 + s**2)
    estimate = shrink * x + (1 - shrink) * means[None, None]
    first, second = clipped_moments(estimate, shrink * s)
    return (second - 2 * x * first + x**2).mean(axis=3)


def gaussian_world_draws(rng, point, means, tau, sigma_t, count):
    x = np.clip(point, 0, 1)
    s = np.asarray(sigma_t)[None, :, None, None]
    eps = rng.normal(size=(count, len(sigma_t), 1, len(point)))
    shrink = tau**2 / (tau**2 + s**2)
    estimate = np.clip(shrink * (x + s * eps) + (1 - shrink) * means[None, None], 0, 1)
    return ((estimate - x) ** 2).mean(axis=3)


def disc(centre, radius):
    """Points [P, 2] in the ball around the centre, its edge included, also outside the box."""
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    lengths = radius * np.array([0.2, 0.5, 0.8, 0.95, 1.0])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([centre + length * unit for length in lengths])


WORLD = {
    "means": np.array([[0.1, 0.2], [0.8, 0.3], [0.5, 0.9], [0.3, 0.6]]),
    "tau": 0.15,
}
LEVELS, SHARES = np.array([0.25, 0.5, 1.0]), np.array([0.2, 0.3, 0.5])


def test_sampled_losses_have_the_exact_means():
    """False alarm below 1e-6: 12 means within 6 standard errors."""
    rng = np.random.default_rng(2)
    point = np.array([0.2, 1.3])
    draws = gaussian_world_draws(rng, point, sigma_t=LEVELS, count=20_000, **WORLD)
    exact = gaussian_world_losses(point[None], sigma_t=LEVELS, **WORLD)[0]
    errors = (draws.mean(axis=0) - exact) / (draws.std(axis=0) / math.sqrt(20_000))
    assert np.abs(errors).max() < 6


def test_no_class_changes_inside_the_certified_ball_of_a_gaussian_world():
    """Exact losses, 40 images (some outside the box), 600 perturbations each, both bounds."""
    rng = np.random.default_rng(4)
    ratio = []
    for _ in range(40):
        image = rng.uniform(-0.1, 1.1, 2)
        losses = gaussian_world_losses(image[None], sigma_t=LEVELS, **WORLD)[0]
        scores = SHARES @ losses
        chosen = int(np.argmin(scores))
        others = np.delete(losses, chosen, axis=1)
        radius = local_radius(
            losses[:, chosen], others, sigma_t=LEVELS, weights=SHARES, dimensions=2
        )
        margin = float(np.delete(scores, chosen).min() - scores[chosen])
        constant = constant_radius(margin, lipschitz_constant(LEVELS, SHARES, 2))
        assert radius > 0
        ratio.append(radius / constant)
        around = disc(image, max(radius, constant))
        near = np.tensordot(
            SHARES, gaussian_world_losses(around, sigma_t=LEVELS, **WORLD), axes=(0, 1)
        )
        assert np.all(near.argmin(axis=1) == chosen)
    assert np.median(ratio) > 1.2


def test_no_class_changes_inside_the_certified_interval_of_random_estimates():
    """One dimension, two or three classes of random step estimates: 150 images, dense points."""
    rng = np.random.default_rng(9)
    used = []
    for _ in range(150):
        classes = int(rng.integers(2, 4))
        sigma = rng.uniform(0.05, 1.0, 2)
        boxes = [[random_boxes(rng, 1) for _ in range(classes)] for _ in sigma]
        image = rng.uniform(0, 1)
        line = np.clip(image + np.linspace(-3, 3, 3001), 0, 1)[:, None]
        losses = np.array(
            [
                [boxes_loss(line, *boxes[t][k], s) for k in range(classes)]
                for t, s in enumerate(sigma)
            ]
        ).clip(0, 1)
        here = losses[:, :, 1500]
        chosen = int(here.mean(axis=0).argmin())
        radius = local_radius(
            here[:, chosen],
            np.delete(here, chosen, axis=1),
            sigma_t=sigma,
            weights=[0.5, 0.5],
            dimensions=1,
        )
        changed = losses.mean(axis=0).argmin(axis=0) != chosen
        distance = np.abs(np.linspace(-3, 3, 3001))
        if changed.any():
            assert distance[changed].min() >= radius
            used.append(radius / distance[changed].min())
    assert max(used) > 0.4  # some images come close: the test can fail


@pytest.mark.parametrize("bound", ["local", "lipschitz"])
def test_certificates_from_draws_stay_below_the_radius_of_the_exact_losses(bound):
    """100 certificates at alpha 0.05 on a hard image; false alarm below 1e-4 (16 misses)."""
    rng = np.random.default_rng(21)
    too_large = 0
    certified = 0
    image = np.array([0.25, 0.3])
    exact = gaussian_world_losses(image[None], sigma_t=LEVELS, **WORLD)[0]
    order = np.argsort(SHARES @ exact)
    others = np.delete(exact, order[0], axis=1)
    options = {"sigma_t": LEVELS, "weights": SHARES, "dimensions": 2}
    margin = float((SHARES @ others).min() - SHARES @ exact[:, order[0]])
    limit = (
        local_radius(exact[:, order[0]], others, **options)
        if bound == "local"
        else constant_radius(margin, lipschitz_constant(LEVELS, SHARES, 2))
    )
    for _ in range(100):
        draws = gaussian_world_draws(rng, image, sigma_t=LEVELS, count=800, **WORLD)
        found = plain_certificate(draws, alpha=0.05, bound=bound, **options)
        if not found.abstained:
            certified += 1
            too_large += found.predicted != order[0] or found.radius > limit
    assert too_large < 16
    assert certified > 50


# --- how certificates respond to their inputs ---------------------------------------------------


def drawn_losses(seed=0, count=1024, levels=3, classes=5):
    rng = np.random.default_rng(seed)
    means = rng.uniform(0.03, 0.05, (levels, classes))
    means[:, 2] = 0.01
    size = (1 - means) / (means * 0.09) - 1
    return rng.beta(means * size, (1 - means) * size, (count, levels, classes))


OPTIONS = {"sigma_t": LEVELS, "weights": SHARES, "dimensions": 64}


def test_certificate_reports_class_radius_and_labelled_estimate():
    draws = drawn_losses()
    found = plain_certificate(draws, alpha=0.001, bound="local", **OPTIONS)
    means = draws.mean(axis=0)
    estimate = local_radius(means[:, 2], np.delete(means, 2, axis=1), **OPTIONS)
    assert found.predicted == 2
    assert not found.abstained
    assert 0 < found.radius < found.estimated_radius == pytest.approx(estimate)
    assert (found.bound, found.alpha, found.draws) == ("local", 0.001, 1024)


def test_alpha_is_shared_by_both_sides_of_all_cells_of_the_union_bound():
    draws, bounds = drawn_losses(), 2 * 3 * 5
    upper = betting_bound(draws[:, :, 2], 0.01 / bounds, side="upper")
    lower = betting_bound(np.delete(draws, 2, axis=2), 0.01 / bounds, side="lower")
    for bound in ("local", "lipschitz"):
        expected = local_radius(upper, lower, **OPTIONS)
        if bound == "lipschitz":
            margin = float((SHARES @ (lower - upper[:, None])).min())
            expected = constant_radius(margin, lipschitz_constant(**OPTIONS))
        found = plain_certificate(draws, alpha=0.01, bound=bound, **OPTIONS)
        assert found.radius == pytest.approx(expected, rel=1e-12)


def test_small_losses_get_several_times_the_constant_radius_from_the_same_intervals():
    draws = drawn_losses()
    local = plain_certificate(draws, bound="local", **OPTIONS)
    constant = plain_certificate(draws, bound="lipschitz", **OPTIONS)
    assert local.radius > 2.5 * constant.radius > 0


def test_sums_over_units_keep_most_of_the_radius_and_never_add_to_it():
    draws = drawn_losses(count=2048)
    single = plain_certificate(draws, **OPTIONS)
    for size, kept in ((8, 0.95), (32, 0.9), (100, 0.8)):
        units = plain_certificate(UnitSums.from_draws(draws, size), **OPTIONS)
        assert kept * single.radius < units.radius < single.radius
        assert units.estimated_radius == pytest.approx(single.estimated_radius)
        assert units.draws == 2048


def test_indistinguishable_classes_lead_to_abstention():
    draws = drawn_losses()
    draws[:, :, 3] = draws[:, :, 2]
    for bound in ("local", "lipschitz"):
        found = plain_certificate(draws, bound=bound, **OPTIONS)
        assert found.abstained
        assert found.radius == 0.0


def test_radius_grows_with_draws_and_alpha_and_a_lower_ceiling():
    draws = drawn_losses(count=4096)
    radius = plain_certificate(draws[:1024], alpha=0.001, **OPTIONS).radius
    assert plain_certificate(draws, alpha=0.001, **OPTIONS).radius > radius
    assert plain_certificate(draws[:1024], alpha=0.05, **OPTIONS).radius > radius
    assert plain_certificate(draws[:1024], alpha=0.001, ceiling=0.6, **OPTIONS).radius > radius


def test_levels_of_weight_zero_change_nothing():
    draws = drawn_losses()
    padded = np.concatenate([draws, np.ones((1024, 1, 5))], axis=1)
    with_idle = plain_certificate(
        padded, sigma_t=[*LEVELS, 2.0], weights=[*SHARES, 0.0], dimensions=64
    )
    assert with_idle == plain_certificate(draws, **OPTIONS)


losses_of_two_levels = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(losses_of_two_levels, losses_of_two_levels, st.floats(0.0, 0.2), st.floats(1.0, 3.0))
def test_radius_is_monotone_in_losses_noise_and_dimensions(l_a, l_b, change, factor):
    def radius(a, b, sigma=1.0, dimensions=64):
        levels = np.array([0.3, 0.8]) * sigma
        return local_radius(
            a, [[v] for v in b], sigma_t=levels, weights=[0.4, 0.6], dimensions=dimensions
        )

    plain = radius(l_a, l_b)
    tolerance = 1e-7
    assert math.isfinite(plain)
    raised = [min(v + change, 1.0) for v in l_a]
    assert radius(raised, l_b) <= plain + tolerance
    assert radius(l_a, [max(v - change, 0.0) for v in l_b]) <= plain + tolerance
    assert radius(l_a, l_b, sigma=factor) >= plain - tolerance
    assert radius(l_a, l_b, dimensions=64 * factor) >= plain - tolerance


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.06), st.floats(0.001, 0.06), st.floats(0.1, 2.0))
def test_local_radius_is_at_least_the_constant_one_for_small_losses(loss, gap, sigma):
    local = local_radius([loss], [[loss + gap]], sigma_t=[sigma], weights=[1.0], dimensions=64)
    constant = constant_radius(gap, lipschitz_constant([sigma], [1.0], 64))
    assert local >= constant * (1 - 1e-6)


def test_extra_classes_can_only_shrink_the_radius_to_that_of_the_nearest():
    both = local_radius([0.01] * 3, [[0.05, 0.04]] * 3, **OPTIONS)
    near = local_radius([0.01] * 3, [[0.04]] * 3, **OPTIONS)
    assert both == near < local_radius([0.01] * 3, [[0.05]] * 3, **OPTIONS)


def test_class_without_the_smallest_loss_gets_no_radius():
    assert local_radius([0.04] * 3, [[0.04, 0.1]] * 3, **OPTIONS) == 0.0
    assert local_radius([0.05] * 3, [[0.04, 0.1]] * 3, **OPTIONS) == 0.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bound": "constant"}, "'constant'"),
        ({"weights": [0.2, 0.3, 0.6]}, "divide them by their sum"),
        ({"weights": [0.7, 0.5, -0.2]}, "-0.2"),
        ({"weights": [0.5, 0.5]}, "one weight a level"),
        ({"sigma_t": [0.0, 0.5, 1.0]}, "positive and finite"),
        ({"sigma_t": [0.5, 1.0], "weights": [0.5, 0.5]}, "2 levels"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"observations": np.full((4, 3, 1), 0.1)}, "at least 2 classes"),
        ({"observations": np.full((0, 3, 2), 0.1)}, "at least one draw"),
        ({"observations": np.full((4, 3, 2), 7.0)}, "divide losses"),
        ({"observations": np.full((4, 3, 2), np.nan)}, "nan"),
        ({"observations": np.float64(0.1)}, "at least one draw"),
        ({"observations": np.full((4, 3), 0.1)}, "give .draws"),
    ],
)
def test_bad_input_is_named(changes, named):
    arguments = {"observations": drawn_losses(count=16), **OPTIONS} | changes
    with pytest.raises(ValueError, match=named):
        plain_certificate(**arguments)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: local_slope(1.2, 0.5, 64), "1.2"),
        (lambda: local_slope(0.2, -0.5, 64), "positive"),
        (lambda: constant_radius(1.5, 1.0), "margin is 1.5"),
        (lambda: constant_radius(0.5, 0.0), "constant is 0.0"),
        (lambda: lipschitz_constant([], [], 64), "positive"),
        (lambda: local_radius([0.1] * 2, [[0.2]] * 3, **OPTIONS), "l_a has shape"),
        (lambda: local_radius([0.1] * 3, np.empty((3, 0)), **OPTIONS), "at least one class"),
        (lambda: local_radius([0.1] * 3, [[-0.2]] * 3, **OPTIONS), "l_b ranges from -0.2"),
        (lambda: local_radius([np.nan] * 3, [[0.2]] * 3, **OPTIONS), "l_a ranges from nan"),
    ],
)
def test_bad_arguments_of_the_parts_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
