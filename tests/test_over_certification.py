"""How often a certificate claims more than is true, counted in worlds with a known exact radius.

At least 200,000 certificates for each bound, alpha and execution. A test fails when the count of
over-certified ones is larger than a binomial law with success probability alpha allows with
probability 1e-6: that is its false-alarm rate if the true rate were alpha itself (for all tests
of this file together below 2e-4), and less where it is smaller.

An execution says how far a program may be from theory. In its world everything allowed goes against
the certificate: votes for the class are more probable by ``slack`` than the smoothed classifier's,
and the class changes ``taken_off`` nearer than where its probability says.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from scipy import special, stats

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.sequential import sequential_q_bound
from diffcert_ray.certificates.stopping import SequentialLooks

SIGMA = 0.25
FALSE_ALARM = 1e-6
ALPHAS = (0.05, 0.01)
# Where the linear world's plane is, in sigmas: the exact radii of a program as in theory.
DISTANCES = (0.0, 0.3, 1.0, 1.5, 2.0)
IMAGES = 40_000  # for each distance


@dataclass(frozen=True)
class Execution:
    """What a program may differ by from theory: in a vote's probability, and in pixel units."""

    slack: float
    taken_off: float

    def probability(self, distance):
        """Of a vote for the class, at most."""
        return min(1.0, special.ndtr(distance) + self.slack)

    def exact(self, distance):
        """The radius in which the class holds, at least; pixel units."""
        return max(0.0, distance * SIGMA - self.taken_off)


IN_THEORY = Execution(slack=0.0, taken_off=0.0)
EXECUTIONS = {"in theory": IN_THEORY, "far from it": Execution(slack=0.01, taken_off=0.05 * SIGMA)}


def stored_radius(n_a, n, *, alpha, execution, **more):
    """The radius that is certified for a program of this execution."""
    off = {"slack": execution.slack, "taken_off": execution.taken_off}
    return executed_certificate(n_a, n, sigma=SIGMA, alpha=alpha, **off, **more).radius


def looks_of(execution, **plan):
    """When an image of this execution stops."""
    return SequentialLooks(slack=execution.slack, taken_off=execution.taken_off, **plan)


every_execution = pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)


def too_many(over, trials, alpha):
    """Whether a rate of at most alpha is refuted at the false-alarm rate."""
    return stats.binom.sf(over - 1, trials, alpha) < FALSE_ALARM


@cache
def fixed_n_radii(n, alpha, execution=IN_THEORY):
    return np.array([stored_radius(k, n, alpha=alpha, execution=execution) for k in range(n + 1)])


@every_execution
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [100, 1000])
def test_clopper_pearson_over_certifies_at_most_alpha(n, alpha, execution):
    rng = np.random.default_rng([1, n])
    total = 0
    for distance in DISTANCES:
        n_a = rng.binomial(n, execution.probability(distance), size=IMAGES)
        radii = fixed_n_radii(n, alpha, execution)[n_a]
        over = int(np.sum(radii > execution.exact(distance)))
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


@pytest.mark.parametrize(
    "ignored", [Execution(slack=0.02, taken_off=0.0), Execution(slack=0.0, taken_off=0.1 * SIGMA)]
)
def test_the_referee_convicts_certificates_that_ignore_their_execution(ignored):
    rng = np.random.default_rng(5)
    n_a = rng.binomial(1000, ignored.probability(1.0), size=IMAGES)
    over = int(np.sum(fixed_n_radii(1000, 0.05)[n_a] > ignored.exact(1.0)))
    assert too_many(over, IMAGES, 0.05)
    assert not too_many(int(np.sum(fixed_n_radii(1000, 0.05)[n_a] > 2 * SIGMA)), IMAGES, 0.05)


LOOKED_AT = np.arange(1, 257)


@cache
def sequential_q_table(alpha):
    """1 - p_low after each number of votes [.., n] for each count [k, ..], k <= n."""
    return sequential_q_bound(
        np.minimum(np.arange(LOOKED_AT[-1] + 1)[:, None], LOOKED_AT), LOOKED_AT, alpha
    )


def fewest_wrong(distance, alpha, execution):
    """Votes for the class from which on the certificate is wrong, for each n; 10,000: never."""
    beyond = (execution.exact(distance) + execution.taken_off) / SIGMA
    right = sequential_q_table(alpha) + execution.slack >= special.ndtr(-beyond)
    fewest = np.sum(right, axis=0)
    fewest[fewest > LOOKED_AT] = 10_000
    return fewest


@every_execution
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_table_of_wrong_certificates_tells_what_the_certificates_tell(distance, execution):
    for n, fewest in list(zip(LOOKED_AT, fewest_wrong(distance, 0.05, execution), strict=True))[
        ::17
    ]:
        for k in {n, min(fewest, n), min(fewest, n + 1) - 1}:
            radius = stored_radius(
                int(k), int(n), alpha=0.05, execution=execution, bound="sequential"
            )
            assert (radius > execution.exact(distance)) == (k >= fewest)


@every_execution
@pytest.mark.parametrize("alpha", ALPHAS)
def test_sequential_over_certifies_at_most_alpha_at_the_worst_time_to_stop(alpha, execution):
    # A look after every vote, and the image stops as soon as its certificate is wrong.
    rng = np.random.default_rng(3)
    total = 0
    for distance in DISTANCES:
        p = np.float32(execution.probability(distance))
        n_a, over = np.zeros(IMAGES, np.int16), np.zeros(IMAGES, bool)
        for fewest in fewest_wrong(distance, alpha, execution):
            n_a += rng.random(IMAGES, dtype=np.float32) < p
            over |= n_a >= fewest
        assert not too_many(int(over.sum()), IMAGES, alpha)
        total += int(over.sum())
    assert total > 0.1 * alpha * IMAGES * len(DISTANCES)  # the world is hard enough to tell
    assert not too_many(total, IMAGES * len(DISTANCES), alpha)


class StoppingImage:
    """Runs many images of one sequential plan to their own stop, from tables over the counts."""

    def __init__(self, alpha, execution):
        self.execution, self.alpha = execution, alpha
        self.plan = {"cap": 200, "sigma": SIGMA, "alpha": alpha, "futility_level": 1e-4}
        self.radii = (SIGMA, 1.5 * SIGMA)
        self.looks = np.arange(20, 201, 20)
        self.radius = [self._radii(int(n)) for n in self.looks]
        self.decide = cache(self._decide)

    def _radii(self, n):
        """The radius of each count at one look; some are compared with the function's below."""
        q = np.minimum(
            sequential_q_bound(np.arange(n + 1), n, self.alpha) + self.execution.slack, 1
        )
        return np.maximum(-SIGMA * special.ndtri(q) - self.execution.taken_off, 0.0)

    def _decide(self, k, n, first_done):
        """The decision given what the earlier looks certified: only what is missing is asked."""
        radii = self.radii[1:] if first_done else self.radii
        return looks_of(self.execution, radii=radii, **self.plan).look(k, n)

    def run(self, n_a):
        """n_a [images, looks]; returns the radius at the stop, and the index of the last look."""
        best = np.zeros(len(n_a))
        stopped = np.full(len(n_a), -1)
        for i, n in enumerate(self.looks):
            open_ones = np.flatnonzero(stopped < 0)
            if open_ones.size == 0:
                break
            k = n_a[open_ones, i]
            first_done = best[open_ones] >= self.radii[0]
            best[open_ones] = np.maximum(best[open_ones], self.radius[i][k])
            keys, where = np.unique(2 * k + first_done, return_inverse=True)
            ends = [self.decide(int(key // 2), int(n), bool(key % 2)) != "continue" for key in keys]
            stopped[open_ones[np.array(ends)[where]]] = i
        return best, stopped


@every_execution
@pytest.mark.parametrize("alpha", ALPHAS)
def test_sequential_over_certifies_at_most_alpha_at_its_own_time_to_stop(alpha, execution):
    rng = np.random.default_rng(4)
    images = StoppingImage(alpha, execution)
    total, stops = 0, set()
    for distance in DISTANCES:
        p = execution.probability(distance)
        steps = rng.binomial(20, p, size=(IMAGES, images.looks.size))
        n_a = np.cumsum(steps, axis=1)
        radius, stopped = images.run(n_a)
        stops.update(stopped.tolist())
        for image in range(10):  # the tables tell what the functions tell of the whole history
            i = stopped[image] + 1
            history = n_a[image, :i], images.looks[:i]
            looks = looks_of(execution, radii=images.radii, **images.plan)
            decisions = [looks.look(int(k), int(n)) for k, n in zip(*history, strict=True)]
            assert decisions[:-1] == ["continue"] * (i - 1)
            assert decisions[-1] != "continue"
            stored = stored_radius(*history, alpha=alpha, execution=execution, bound="sequential")
            assert stored == pytest.approx(radius[image], rel=1e-9, abs=1e-12)
        over = int(np.sum(radius > execution.exact(distance)))
        assert not too_many(over, IMAGES, alpha)
        total += over
    assert len(stops) > 3  # the time to stop depends on the votes
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


def slab_probabilities(a, b, unresolved, shift=0.0, slack=0.0):
    """Probabilities of A, B, the middle classes and unresolved, all in units of sigma."""
    edges = np.concatenate([[-np.inf], np.linspace(a, b, MIDDLE + 1), [np.inf]]) - shift
    slabs = np.diff(special.ndtr(edges)) * (1 - unresolved)
    slabs[[0, -1]] += slack, -slack
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
def two_class_radius(n_a, n_b, n, alpha, execution):
    return stored_radius(n_a, n, n_b=n_b, alpha=alpha, execution=execution, bound="two-class")


def slab_over_certified(rng, world, *, images, n0, n, alpha, execution):
    """Whether each image's certificate claims too much: wrong class at any radius, or too far."""
    a, b, unresolved = SLABS[world]
    p = slab_probabilities(a, b, unresolved, slack=execution.slack)
    selected = np.argmax(rng.multinomial(n0, p, size=images)[:, :-1], axis=1)
    counts = rng.multinomial(n, p, size=images)
    each = np.arange(images)
    n_a = counts[each, selected]
    rivals = counts[:, :-1].copy()
    rivals[each, selected] = -1
    n_b = rivals.max(axis=1) + counts[:, -1]
    pairs, where = np.unique(n_a * (n + 1) + n_b, return_inverse=True)
    counts_of = [divmod(int(pair), n + 1) for pair in pairs]
    radius = np.array([two_class_radius(*counts, n, alpha, execution) for counts in counts_of])
    radius = radius[where]
    exact = np.where(selected == 0, execution.exact((a + b) / 2), 0.0)
    return radius > exact + 1e-12  # a + b is exact to the last digit or so only


@every_execution
@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_class_over_certifies_at_most_alpha(alpha, execution):
    rng = np.random.default_rng(6)
    total = 0
    for world in SLABS:
        over = slab_over_certified(
            rng, world, images=IMAGES, n0=20, n=500, alpha=alpha, execution=execution
        ).sum()
        assert not too_many(over, IMAGES, alpha)
        total += int(over)
    assert total > 0.01 * alpha * IMAGES * len(SLABS)
    assert not too_many(total, IMAGES * len(SLABS), alpha)
