"""Which class selection votes choose, and after how many: for one image, and for many at once."""

import random
from collections import Counter

import numpy as np
import pytest

from diffcert_ray.conventions import ABSTAIN, ALL_CLASSES, NOT_TARGET
from diffcert_ray.run.counted_selection import counted_selection
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.schemas import UnitRow, unit_table
from diffcert_ray.votes.image import ImageVotes, UnitCounts
from diffcert_ray.votes.selection import Selection
from diffcert_ray.votes.units import Unit
from tests.test_image_votes import SIGMA, plan


def sequence(draw: random.Random, classes: int, n0: int) -> list[int]:
    """Votes of an image: some are unresolved, and one class may be more probable."""
    weights = [draw.random() ** 3 for _ in range(classes)]
    return draw.choices([*range(classes), NOT_TARGET], [*weights, draw.random() ** 4 + 1e-9], k=n0)


def by_hand(votes: list[int], lead: int | None, unit: int) -> tuple[int, int]:
    """(votes used, class): each prefix that ends at a unit's end is looked at from scratch."""
    for stop in [*range(unit, len(votes), unit), len(votes)]:
        ranking = Counter(v for v in votes[:stop] if v != NOT_TARGET).most_common()
        first, second = [*ranking, (0, 0), (0, 0)][:2]
        if stop == len(votes) or (lead is not None and first[1] - second[1] >= lead):
            most = [c for c, n in ranking if n == first[1]]
            return stop, min(most, default=ABSTAIN)
    raise AssertionError


def units_of(votes: list[int], unit: int, image_id: int = 7) -> list[UnitCounts]:
    """The selection units of an image whose votes are these."""
    starts = range(0, len(votes), unit)
    pieces = [(a, votes[a : a + unit]) for a in starts]
    return [
        UnitCounts(
            Unit(SIGMA, image_id, "select", a, a + len(p)), ALL_CLASSES, Counter(p), len(p), 1.0
        )
        for a, p in pieces
    ]


def asked(n0: int, lead: int | None, unit: int):
    if lead is None:
        return plan(n0=n0, unit=unit, n=unit)
    return plan(n0=n0, select=lead, select_unit=unit)


@pytest.mark.parametrize("lead", [None, 1, 2, 5])
def test_the_class_and_the_votes_used_are_those_of_every_prefix_looked_at(lead):
    draw = random.Random(0)
    for _ in range(300):
        n0, unit = draw.choice([1, 5, 12, 40]), draw.randint(1, 5)
        lead_here = lead if lead is None else min(lead, n0)
        votes = sequence(draw, draw.randint(1, 6), n0)
        image = ImageVotes(asked(n0, lead_here, unit), SIGMA, 7)
        units = units_of(votes, unit)
        draw.shuffle(units)  # in any order of arrival, and later units change nothing
        for counted in units:
            image.add(counted)
        assert (image.selection.used, image.chosen) == by_hand(votes, lead_here, unit)
        assert image.nfe == n0  # all of them cost


def test_selection_waits_for_a_gap_and_for_nothing_behind_the_decision():
    first, *rest = units_of([3] * 20, 2)
    image = ImageVotes(asked(20, 5, 2), SIGMA, 7)
    for counted in reversed(rest):
        image.add(counted)
    assert image.chosen is None
    assert image.missing("select") == [(0, 2)]
    image.add(first)
    assert (image.chosen, image.selection.used) == (3, 6)
    assert image.missing("select") == []
    for counted in units_of([1] * 20, 2):  # as if later votes were for another class
        image.add(counted)
    assert (image.chosen, image.selection.used) == (3, 6)


def test_no_class_can_be_chosen_before_the_votes_that_are_said_to_be_needed():
    draw = random.Random(1)
    for _ in range(200):
        n0, lead = draw.randint(5, 30), draw.randint(1, 5)
        selection = Selection(n0, lead)
        for vote in sequence(draw, 3, n0):
            needed = selection.needed
            if selection.chosen is not None:
                assert needed == 0
                break
            for follows in {*range(3), NOT_TARGET}:  # the same for ever, the best that can come
                fastest = Selection(n0, lead)
                fastest._total, fastest.used = selection._total.copy(), selection.used
                count = 0
                while fastest.chosen is None:
                    fastest.add(1, {follows: 1})
                    count += 1
                assert count >= needed
            selection.add(1, {vote: 1})


@pytest.mark.parametrize("lead", [None, 1, 4])
@pytest.mark.parametrize("unit", [1, 3, 5])
def test_classes_of_many_images_at_once_are_those_of_one_after_another(lead, unit, monkeypatch):
    monkeypatch.setattr("diffcert_ray.run.counted_selection.AT_ONCE", 17)
    draw = random.Random(unit)
    rows, expected, n0 = [], {}, 23
    for image_id in range(80):
        votes = sequence(draw, draw.choice([1, 2, 7]), n0)
        image = ImageVotes(asked(n0, lead, unit), SIGMA, image_id)
        for counted in units_of(votes, unit, image_id):
            if draw.random() < 0.04:
                continue  # a unit is missing
            image.add(counted)
            classes = tuple(sorted(counted.counts))
            counts = tuple(counted.counts[c] for c in classes)
            where = (counted.unit.start, counted.unit.stop, ALL_CLASSES)
            rows.append(
                UnitRow(SIGMA, image_id, "s", "select", *where, classes, counts, 1, 0.0,
                        "cpu", "kind", "w", 0)
            )  # fmt: skip
        expected[image_id] = image
    table = unit_table(rows)
    encoded = table.set_column(3, "stream", table["stream"].dictionary_encode())
    group = DoneUnits.from_table(encoded).groups[SIGMA, "select"]
    ids = np.array([*expected, 5, 999])  # one of them twice, and one without a unit
    found = counted_selection(group, ids, n0=n0, unit=unit, select=lead, select_unit=unit)
    undecided = 0
    for row, image_id in enumerate(ids.tolist()):
        image = expected.get(image_id)
        if image is None or image.chosen is None:
            assert not found.decided[row]
            undecided += 1
        else:
            assert found.decided[row]
            assert (found.used[row], found.chosen[row]) == (image.selection.used, image.chosen)
    assert 1 < undecided < 60
