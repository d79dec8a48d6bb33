"""How often a certificate claims more than is true, counted in worlds with a known exact radius.

At least 200,000 certificates for each bound and alpha. A test fails when the count of
over-certified ones is larger than a binomial law with success probability alpha allows with
probability 1e-6: that is its false-alarm rate if the true rate were alpha itself (for all tests
of this file together below 1e-4), and less where it is smaller.
"""

from functools import cache

import numpy as np
import pytest
from scipy import special, stats

from diffcert_ray.certificates.radius import certificate
from diffcert_ray.certificates.sequential import sequential_q_bound
from diffcert_ray.certificates.stopping import SequentialLooks

SIGMA = 0.25
FALSE_ALARM = 1e-6
ALPHAS = (0.05, 0.01)
# Exact radii of the linear world, in sigmas: the distance of the image to the plane.
DISTANCES = (0.0, 0.3, 1.0, 1.5, 2.0)
IMAGES = 40_000  # for each distance


def too_many(over, trials, alpha):
    """Whether a rate of at most alpha is refuted at the false-alarm rate."""
    return stats.binom.sf(over - 1, trials, alpha) < FALSE_ALARM


@cache
def fixed_n_radii(n, alpha):
    return np.array([certificate(k, n, sigma=SIGMA, alpha=alpha).radius for k in range(n + 1)])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [100, 1000])
def test_clopper_pearson_over_certifies_at_most_alpha(n, alpha):
    rng = np.random.default_rng([1, n])
    total = 0
    for distance in DISTANCES:
        n_a = rng.binomial(n, special.ndtr(distance), size=IMAGES)
        over = int(np.sum(fixed_n_radii(n, alpha)[n_a] > distance * SIGMA))
        assert not too_many(over, IMAGES, alpha)
        total += over
    assert total > 0
    assert not too_many(total, IMAGES * len(DISTANCES), alpha)


def test_the_referee_convicts_fixed_n_at_repeated_looks_and_a_plain_frequency():
    rng = np.random.default_rng(2)
    steps = rng.binomial(100, special.ndtr(1.0), size=(IMAGES, 10))
    n_a = np.cumsum(steps, axis=1)
    looks = [fixed_n_radii(100 * (i + 1), 0.05)[n_a[:, i]] > SIGMA for i in range(10)]
    assert too_many(int(np.any(looks, axis=0).sum()), IMAGES, 0.05)
    assert too_many(int(np.sum(n_a[:, -1] / 1000 > special.ndtr(1.0))), IMAGES, 0.05)


def votes_cumulated(rng, probability, images, n):
    votes = rng.random((images, n), dtype=np.float32) < np.float32(probability)
    return np.cumsum(votes, axis=1, dtype=np.int16)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sequential_over_certifies_at_most_alpha_at_the_worst_time_to_stop(alpha):
    # A look after every vote, and the image stops as soon as its certificate is wrong.
    rng = np.random.default_rng(3)
    n = np.arange(1, 257)
    k = np.arange(257)[:, None]
    bounds = 1 - sequential_q_bound(np.minimum(k, n), n, alpha)
    total = 0
    for distance in DISTANCES:
        p = special.ndtr(distance)
        smallest_wrong = np.sum(bounds <= p, axis=0)  # at each n, the least k whose bound is > p
        smallest_wrong[smallest_wrong > n] = 10_000
        over = 0
        for _ in range(4):
            n_a = votes_cumulated(rng, p, IMAGES // 4, n.size)
            over += int(np.sum(np.any(n_a >= smallest_wrong, axis=1)))
        assert not too_many(over, IMAGES, alpha)
        total += over
    assert total > 0.1 * alpha * IMAGES * len(DISTANCES)  # the world is hard enough to tell
    assert not too_many(total, IMAGES * len(DISTANCES), alpha)


class StoppingImage:
    """Runs many images of one sequential plan to their own stop, from tables over the counts."""

    def __init__(self, alpha):
        self.plan = {"cap": 200, "sigma": SIGMA, "alpha": alpha, "futility_level": 1e-4,
                     "slack": 0.0, "taken_off": 0.0}  # fmt: skip
        self.radii = (SIGMA, 1.5 * SIGMA)
        self.looks = np.arange(20, 201, 20)
        k = np.arange(201)
        self.q = [sequential_q_bound(np.minimum(k, n), n, alpha) for n in self.looks]
        self.decide = cache(self._decide)

    def _decide(self, k, n, first_done):
        """The decision given what the earlier looks certified: only what is missing is asked."""
        radii = self.radii[1:] if first_done else self.radii
        return SequentialLooks(radii=radii, **self.plan).look(k, n)

    def run(self, n_a):
        """n_a [images, looks]; returns the radius at the stop, and the index of the last look."""
        best_q = np.ones(len(n_a))
        stopped = np.full(len(n_a), -1)
        for i, n in enumerate(self.looks):
            open_ones = np.flatnonzero(stopped < 0)
            if open_ones.size == 0:
                break
            k = n_a[open_ones, i]
            first_done = -special.ndtri(best_q[open_ones]) * SIGMA >= self.radii[0]
            best_q[open_ones] = np.minimum(best_q[open_ones], self.q[i][k])
            keys, where = np.unique(np.stack([k, first_done]), axis=1, return_inverse=True)
            ends = [self.decide(int(k), int(n), bool(done)) != "continue" for k, done in keys.T]
            stopped[open_ones[np.array(ends)[where]]] = i
        return np.maximum(-SIGMA * special.ndtri(best_q), 0.0), stopped


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sequential_over_certifies_at_most_alpha_at_its_own_time_to_stop(alpha):
    rng = np.random.default_rng(4)
    images = StoppingImage(alpha)
    total = 0
    for distance in DISTANCES:
        steps = rng.binomial(20, special.ndtr(distance), size=(IMAGES, images.looks.size))
        n_a = np.cumsum(steps, axis=1)
        radius, stopped = images.run(n_a)
        assert len(np.unique(stopped)) > 3  # the time to stop depends on the votes
        for image in range(10):  # the tables tell what the functions tell of the whole history
            i = stopped[image] + 1
            history = n_a[image, :i], images.looks[:i]
            looks = SequentialLooks(radii=images.radii, **images.plan)
            decisions = [looks.look(int(k), int(n)) for k, n in zip(*history, strict=True)]
            assert decisions[:-1] == ["continue"] * (i - 1)
            assert decisions[-1] != "continue"
            stored = certificate(*history, sigma=SIGMA, alpha=alpha, bound="sequential")
            assert stored.radius == pytest.approx(radius[image], rel=1e-12)
        over = int(np.sum(radius > distance * SIGMA))
        assert not too_many(over, IMAGES, alpha)
        total += over
    assert total > 0
    assert not too_many(total, IMAGES * len(DISTANCES), alpha)


# The slab world: A where v.x < a, B where v.x > b, the middle cut into MIDDLE classes; the image
# at v.x = 0; unresolved votes are taken out of all classes alike.
MIDDLE = 20
SLABS = {
    "A and B equal": (-0.25, 0.25, 0.0),
    "A ahead by little": (-0.1, 0.3, 0.0),
    "A without a majority": (-0.1, 0.9, 0.0),
    "A far ahead": (1.0, 1.6, 0.0),
    "A ahead, 1 in 20 unresolved": (0.2, 0.8, 0.05),
}


def slab_probabilities(a, b, unresolved, shift=0.0):
    """Probabilities of A, B, the middle classes and unresolved, all in units of sigma."""
    edges = np.concatenate([[-np.inf], np.linspace(a, b, MIDDLE + 1), [np.inf]]) - shift
    slabs = np.diff(special.ndtr(edges)) * (1 - unresolved)
    return np.concatenate([[slabs[0], slabs[-1]], slabs[1:-1], [unresolved]])


@pytest.mark.parametrize("world", SLABS)
def test_exact_radius_of_the_slab_world_is_where_another_class_first_reaches_a(world):
    a, b, unresolved = SLABS[world]
    exact = (a + b) / 2
    shifts = np.linspace(0, exact, 200)
    for shift in shifts[shifts < exact]:
        p = slab_probabilities(a, b, unresolved, shift)
        assert p[0] > p[1:-1].max()
    p = slab_probabilities(a, b, unresolved, exact)
    assert p[0] == pytest.approx(p[1], rel=1e-12)
    assert p[1] == p[1:-1].max()


@cache
def two_class_radius(n_a, n_b, n, alpha):
    return certificate(n_a, n, n_b=n_b, sigma=SIGMA, alpha=alpha, bound="two-class").radius


def slab_over_certified(rng, world, *, images, n0, n, alpha):
    """Whether each image's certificate claims too much: wrong class at any radius, or too far."""
    a, b, unresolved = SLABS[world]
    p = slab_probabilities(a, b, unresolved)
    selected = np.argmax(rng.multinomial(n0, p, size=images)[:, :-1], axis=1)
    counts = rng.multinomial(n, p, size=images)
    each = np.arange(images)
    n_a = counts[each, selected]
    rivals = counts[:, :-1].copy()
    rivals[each, selected] = -1
    n_b = rivals.max(axis=1) + counts[:, -1]
    pairs, where = np.unique(np.stack([n_a, n_b]), axis=1, return_inverse=True)
    radius = np.array([two_class_radius(int(k), int(m), n, alpha) for k, m in pairs.T])[where]
    exact = np.where(selected == 0, (a + b) / 2 * SIGMA, 0.0)
    return radius > exact + 1e-12  # a + b is exact to the last digit or so only


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_class_over_certifies_at_most_alpha(alpha):
    rng = np.random.default_rng(6)
    total = 0
    for world in SLABS:
        over = slab_over_certified(rng, world, images=IMAGES, n0=20, n=200, alpha=alpha).sum()
        assert not too_many(over, IMAGES, alpha)
        total += int(over)
    assert total > 0.01 * alpha * IMAGES * len(SLABS)
    assert not too_many(total, IMAGES * len(SLABS), alpha)
