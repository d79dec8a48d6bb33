"""How often a certificate says too much when its class was chosen by votes that stop.

In each world a class's probability is exactly the one that its radius must refute, so that every
certificate of that radius is false. A test fails when there are more of them than a binomial law
with success probability alpha allows with probability 1e-6, its false-alarm rate if the true rate
were alpha.
"""

import numpy as np
import pytest
from scipy import special, stats

from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.votes.image import ImageVotes, UnitCounts
from diffcert_ray.votes.units import Unit
from tests.test_image_votes import plan

ALPHA, SIGMA, FALSE_ALARM = 0.05, 0.25, 1e-6
IMAGES = {"fixed n": 3000, "sequential": 1000}
RADIUS = 0.15
AT_RADIUS = float(special.ndtr(RADIUS / SIGMA))
WORLDS = {
    # Two classes, neither of them in the majority: any certificate is false.
    "no majority": ([0.5, 0.5], 0.0),
    "no majority of ten": ([0.5, *[0.5 / 9] * 9], 0.0),
    # The leading class holds up to the radius and no farther.
    "at the radius": ([AT_RADIUS, 1 - AT_RADIUS], RADIUS),
    "at the radius, of ten": ([AT_RADIUS, *[(1 - AT_RADIUS) / 9] * 9], RADIUS),
}
BOUNDS = {
    "fixed n": {"bound": "clopper-pearson", "n": 100},
    "sequential": {"bound": "sequential", "n": 200, "radii": (0.0, RADIUS), "futility": 1e-9},
}


def units_of(rng, p, stream: str, n: int, unit: int):
    """Units of an image whose votes come from these probabilities, made as they are asked for."""
    for start in range(0, n, unit):
        counts = dict(enumerate(rng.multinomial(unit, p).tolist()))
        counts = {klass: count for klass, count in counts.items() if count}
        where = Unit(SIGMA, 7, stream, start, start + unit)
        yield UnitCounts(where, ALL_CLASSES, counts, unit, 0.0)


def says_too_much(rng, p, radius: float, asked, *, same_votes: bool = False) -> bool:
    """Whether one image's certificate goes beyond the radius up to which its class holds."""
    image = ImageVotes(asked, SIGMA, 7)
    votes = list(units_of(rng, p, "select", asked.n0, asked.select_unit))
    while image.chosen is None:
        image.add(votes.pop(0))
    if same_votes:  # as nobody may do it: the class is the one that its own estimation votes prefer
        fresh = list(units_of(rng, p, "estimate", asked.n, asked.unit))
        total = np.sum([[u.counts.get(c, 0) for c in range(len(p))] for u in fresh], axis=0)
        image.selection.chosen = int(np.argmax(total))
    else:
        fresh = units_of(rng, p, "estimate", asked.n, asked.unit)
    for counted in fresh:
        if image.finished:
            break
        image.add(counted)
    verdict = image.verdict()
    assert verdict is not None
    # Rounding takes a little off every radius: it is what theory certifies that must be right.
    certified = verdict.radius + asked.taken_off(7) if verdict.radius > 0 else 0.0
    holds = radius if image.chosen == 0 else 0.0
    return verdict.predicted >= 0 and certified > holds


def false_certificates(world: str, bound: str, **how) -> int:
    p, radius = WORLDS[world]
    asked = plan(n0=100, select=5, select_unit=5, unit=10, alpha=ALPHA, **BOUNDS[bound])
    rng = np.random.default_rng(3)
    return sum(says_too_much(rng, p, radius, asked, **how) for _ in range(IMAGES[bound]))


def too_many(count: int, images: int) -> bool:
    return bool(stats.binom.sf(count - 1, images, ALPHA) < FALSE_ALARM)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_class_chosen_by_votes_that_stop_is_over_certified_at_most_alpha(world, bound):
    count = false_certificates(world, bound)
    assert not too_many(count, IMAGES[bound])
    assert count > 0.05 * ALPHA * IMAGES[bound]  # the world is at the boundary: the test can fail


def test_a_class_chosen_by_its_own_estimation_votes_is_over_certified_and_that_is_seen():
    count = false_certificates("no majority", "fixed n", same_votes=True)
    assert too_many(count, IMAGES["fixed n"])
