"""One image's votes: looks follow vote order, and what must not be certified is refused."""

import itertools

import numpy as np
import pytest

from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.radius import certificate
from diffcert_ray.conventions import ABSTAIN, ALL_CLASSES, NOT_TARGET
from diffcert_ray.errors import VotesError
from diffcert_ray.votes.image import ImageVotes, Plan, UnitCounts
from diffcert_ray.votes.units import Unit

SIGMA = 0.25


def plan(**changes) -> Plan:
    asked = {
        "image_ids": np.array([7]),
        "sigmas": (SIGMA,),
        "n0": 20,
        "n": 100,
        "unit": 20,
        "alpha": 0.001,
        "bound": "clopper-pearson",
        "dimensions": 1,
        "radii": (0.0, 0.1),
    }
    return Plan(**(asked | changes))


def unit(stream: str, start: int, counts: dict, *, size: int = 20, target: int = ALL_CLASSES):
    return UnitCounts(Unit(SIGMA, 7, stream, start, start + size), target, counts, size * 10, 0.5)


def estimate_units(outcomes: list[int], size: int = 20, **kwargs) -> list[UnitCounts]:
    """Units with the given number of votes for class 3, the others for class 1."""
    return [
        unit(
            "estimate",
            i * size,
            {c: n for c, n in ((3, a), (1, size - a)) if n},
            size=size,
            **kwargs,
        )
        for i, a in enumerate(outcomes)
    ]


def chosen_three(asked: Plan) -> ImageVotes:
    image = ImageVotes(asked, SIGMA, 7)
    image.add(unit("select", 0, {3: 15, 1: 5}))
    return image


def test_the_class_is_chosen_from_the_selection_votes_only():
    image = ImageVotes(plan(), SIGMA, 7)
    for units in estimate_units([0, 0, 0, 0, 0]):
        image.add(units)
    assert image.chosen is None
    assert image.verdict() is None
    image.add(unit("select", 0, {3: 11, 1: 9}))
    assert image.chosen == 3
    verdict = image.verdict()
    assert verdict is not None
    assert (verdict.n_a, verdict.n, verdict.predicted) == (0, 100, ABSTAIN)


def test_unresolved_votes_are_no_class_and_ties_go_to_the_lowest():
    image = ImageVotes(plan(), SIGMA, 7)
    image.add(unit("select", 0, {NOT_TARGET: 10, 4: 5, 2: 5}))
    assert image.chosen == 2


def test_an_image_whose_selection_votes_are_all_unresolved_abstains_without_estimation():
    image = ImageVotes(plan(), SIGMA, 7)
    image.add(unit("select", 0, {NOT_TARGET: 20}))
    verdict = image.verdict()
    assert image.finished
    assert verdict is not None
    assert (verdict.predicted, verdict.radius) == (ABSTAIN, 0.0)


def test_fixed_n_verdict_is_the_certificate_of_all_votes_in_any_order_of_arrival():
    off = {"slack": plan().slack(SIGMA), "taken_off": plan().taken_off(7)}
    expected = executed_certificate(90, 100, sigma=SIGMA, alpha=0.001, **off)
    ideal = certificate(90, 100, sigma=SIGMA, alpha=0.001)
    assert 0 < ideal.radius - expected.radius < 1e-5
    for order in itertools.permutations(estimate_units([20, 20, 10, 20, 20])):
        image = chosen_three(plan())
        for units in order:
            image.add(units)
        verdict = image.verdict()
        assert verdict is not None
        assert (verdict.radius, verdict.n_a, verdict.n) == (expected.radius, 90, 100)


def test_an_image_with_a_missing_unit_gets_no_fixed_n_certificate():
    image = chosen_three(plan())
    for units in estimate_units([20, 20, 20, 20, 20])[1:]:
        image.add(units)
    assert image.verdict() is None
    assert image.missing("estimate") == [(0, 20)]


def sequential_plan(n: int = 400) -> Plan:
    return plan(bound="sequential", n=n, radii=(0.25,))


def test_sequential_gives_the_same_certificate_when_the_most_favourable_units_arrive_first():
    outcomes = [12, 20, 20, 14, 20, 20, 13, 20, 20, 20, 20, 11, 20, 20, 20, 20, 20, 20, 20, 20]
    units = estimate_units(outcomes)
    verdicts = []
    for order in (units, sorted(units, key=lambda u: -u.counts[3]), units[::-1]):
        image = chosen_three(sequential_plan())
        for unit_counts in order:
            image.add(unit_counts)
        verdicts.append(image.verdict())
    used = [(v.predicted, v.radius, v.p_low, v.n_a, v.n) for v in verdicts]
    assert used[0] == used[1] == used[2]


def test_sequential_looks_only_at_gap_free_prefixes():
    image = chosen_three(sequential_plan())
    for units in estimate_units([20] * 20)[1:]:
        image.add(units)
    assert image.prefix == 0
    assert not image.finished


def test_sequential_stops_at_the_first_look_that_stops_and_counts_later_votes_as_unused():
    image = chosen_three(sequential_plan())
    for units in reversed(estimate_units([20] * 20)):  # the first unit comes last
        image.add(units)
    verdict = image.verdict()
    assert image.stopped == "certified"
    assert verdict is not None
    assert verdict.n == 60  # 47 unanimous votes certify one sigma; looks are every 20
    assert image.votes_beyond == 400 - 60
    assert verdict.radius >= 0.25


def test_sequential_may_use_its_longest_prefix_when_it_has_not_stopped():
    image = chosen_three(sequential_plan(n=10_000))
    for units in estimate_units([15, 16]):
        image.add(units)
    verdict = image.verdict()
    assert not image.finished
    assert verdict is not None
    assert verdict.n == 40


@pytest.mark.parametrize("selection_first", [True, False])
def test_votes_about_another_class_than_the_chosen_one_are_ignored_and_cast_anew(selection_first):
    selection = unit("select", 0, {3: 15, 1: 5})
    other, own = ({"target": c, "counts": {c: 20}} for c in (1, 3))
    image = ImageVotes(plan(estimate="target"), SIGMA, 7)
    units = [unit("estimate", start, **other) for start in range(0, 100, 20)]
    units.insert(0 if selection_first else 5, selection)
    for counted in units:
        image.add(counted)
    assert (image.chosen, image.prefix, image.votes_beyond) == (3, 0, 0)
    assert image.verdict() is None
    assert image.missing("estimate") == [(start, start + 20) for start in range(0, 100, 20)]
    for start in range(0, 100, 20):
        image.add(unit("estimate", start, **own))
    verdict = image.verdict()
    assert verdict is not None
    assert (verdict.predicted, verdict.n_a, verdict.n, verdict.n0_used) == (3, 100, 100, 20)
    assert verdict.nfe == 200 + 5 * 200 + 5 * 200  # those that are ignored were evaluated too


def test_votes_about_two_classes_are_told_apart_whichever_came_first():
    for targets in ((1, 3), (3, 1)):
        image = ImageVotes(plan(estimate="target", n=20), SIGMA, 7)
        for target in targets:
            image.add(unit("estimate", 0, {target: 12, NOT_TARGET: 8}, target=target))
        image.add(unit("select", 0, {3: 20}))
        verdict = image.verdict()
        assert verdict is not None
        assert verdict.n_a == 12


def test_two_class_refuses_votes_that_stopped_at_their_target():
    image = chosen_three(plan(bound="two-class"))
    with pytest.raises(VotesError, match='"two-class" needs complete votes'):
        image.add(unit("estimate", 0, {3: 15, NOT_TARGET: 5}, target=3))


def test_selection_votes_must_be_complete():
    image = ImageVotes(plan(), SIGMA, 7)
    with pytest.raises(VotesError, match="selection needs complete votes"):
        image.add(unit("select", 0, {3: 20}, target=3))


def test_two_class_adds_unresolved_votes_to_the_strongest_rival():
    def radius(counts: dict) -> float:
        image = chosen_three(plan(bound="two-class", n=20))
        image.add(unit("estimate", 0, counts))
        verdict = image.verdict()
        assert verdict is not None
        return verdict.radius

    assert radius({3: 18, 1: 1, 2: 1}) > radius({3: 18, 1: 1, NOT_TARGET: 1}) > 0
    assert radius({3: 18, 1: 1, NOT_TARGET: 1}) == radius({3: 18, 1: 2})
