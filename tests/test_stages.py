"""What comes next: every vote once, selection before estimation, in any order of results."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from diffcert_ray.conventions import NOT_TARGET
from diffcert_ray.votes.image import Plan
from diffcert_ray.votes.stages import Stages
from diffcert_ray.votes.units import Item, OpenVotes, Result, Tally

NOTHING_STORED = lambda sigma, image_id: []  # noqa: E731


def plan(**changes) -> Plan:
    asked = {
        "image_ids": np.arange(5),
        "sigmas": (0.25, 0.5),
        "n0": 30,
        "n": 100,
        "unit": 20,
        "alpha": 0.001,
        "bound": "clopper-pearson",
        "dimensions": 1,
        "radii": (0.0,),
    }
    return Plan(**(asked | changes))


def vote(image_id: int, stream: str, index: int, target: int) -> int:
    """A made-up vote: image i is of class i, and every seventh vote errs."""
    winner = image_id if index % 7 else (image_id + 1) % 5
    return winner if target in (-1, winner) else NOT_TARGET


def evaluate(item: Item, hand_back: bool = False) -> Result:
    """A worker without a network; with ``hand_back`` every third fresh vote is left open."""
    counts: dict = {}
    targets: dict = {}
    left: list[tuple] = []
    votes = [(p.unit, v, p.target) for p in item.parts for v in range(p.start, p.stop)]
    if item.open_votes is not None:
        held = item.open_votes
        votes += [
            (held.units[u], int(v), int(t))
            for u, v, t in zip(held.unit_index, held.vote, held.target, strict=True)
        ]
    for unit, index, target in votes:
        counts.setdefault(unit, Counter())
        targets[unit] = target
        if hand_back and item.parts and index % 3 == 0:
            left.append((unit, index, target))
        else:
            counts[unit][vote(unit.image_id, unit.stream, index, target)] += 1
    tallies = tuple(Tally(u, targets[u], dict(c), 10 * c.total()) for u, c in counts.items())
    nfe = sum(t.nfe for t in tallies)
    return Result(item.item_id, tallies, _packed(left), nfe, 0, 0.1, "w", "cpu", "k")


def _packed(left: list[tuple]) -> OpenVotes | None:
    if not left:
        return None
    units = tuple(dict.fromkeys(u for u, _, _ in left))
    ones = np.ones(len(left), np.int64)
    return OpenVotes(
        units=units,
        unit_index=np.array([units.index(u) for u, _, _ in left]),
        vote=np.array([v for _, v, _ in left]),
        target=np.array([t for _, _, t in left]),
        round=ones,
        entries=ones,
        survivor_counts=ones,
        survivors=np.zeros(len(left), np.int32),
        losses=np.zeros(len(left)),
    )


def run_all(stages: Stages, *, nfe: float = 300.0, workers: int = 3, seed: int = 0, **kwargs):
    """Drive stages to the end with several items in flight, finishing in random order."""
    shuffle = random.Random(seed)
    settled, flight, items = [], [], []
    while not stages.finished:
        while len(flight) < workers and (item := stages.take(nfe, workers)) is not None:
            flight.append(item)
            items.append(item)
        assert flight, "nothing in flight and nothing to hand out: the run would hang"
        result = evaluate(flight.pop(shuffle.randrange(len(flight))), **kwargs)
        settled += stages.deliver(result)
    return settled, items


def summary(settled) -> dict:
    return {s.counted.unit: (s.counted.target, dict(s.counted.counts)) for s in settled}


@pytest.mark.parametrize("nfe", [10.0, 300.0, 1e6])
@pytest.mark.parametrize("hand_back", [False, True])
def test_every_unit_is_settled_exactly_once_whatever_the_items_are(nfe, hand_back):
    stages = Stages(plan(), NOTHING_STORED, hand_back_levels=1 if hand_back else None)
    settled, _ = run_all(stages, nfe=nfe, hand_back=hand_back)
    units = [s.counted.unit for s in settled]
    assert len(units) == len(set(units)) == 5 * 2 * (2 + 5)
    assert all(sum(s.counted.counts.values()) == s.counted.unit.votes for s in settled)
    assert stages.images_done == stages.images_total == 10
    assert stages.votes_done == 5 * 2 * 130


def test_settled_counts_do_not_depend_on_item_size_order_or_hand_over():
    runs = [
        summary(run_all(Stages(plan(), NOTHING_STORED), nfe=nfe, seed=seed, hand_back=back)[0])
        for nfe, seed, back in [(10.0, 1, False), (500.0, 2, False), (70.0, 3, True)]
    ]
    assert runs[0] == runs[1] == runs[2]


def test_target_votes_are_asked_only_after_the_class_is_chosen():
    settled, _ = run_all(Stages(plan(estimate="target"), NOTHING_STORED))
    for entry in settled:
        expected = -1 if entry.counted.unit.stream == "select" else entry.counted.unit.image_id
        assert entry.counted.target == expected


def test_no_estimation_vote_is_handed_out_before_its_images_selection_is_in():
    stages = Stages(plan(), NOTHING_STORED)
    selected: Counter = Counter()
    while not stages.finished:
        item = stages.take(300.0)
        assert item is not None
        for part in item.parts:
            if part.unit.stream == "estimate":
                assert selected[part.unit.sigma, part.unit.image_id] == 30
        for entry in stages.deliver(evaluate(item)):
            unit = entry.counted.unit
            if unit.stream == "select":
                selected[unit.sigma, unit.image_id] += unit.votes


def test_an_item_is_about_one_sigma():
    _, items = run_all(Stages(plan(), NOTHING_STORED), nfe=1e6)
    assert all({p.unit.sigma for p in i.parts} <= {i.sigma} for i in items)


def test_a_second_delivery_of_a_result_changes_nothing():
    stages = Stages(plan(), NOTHING_STORED)
    item = stages.take(1e6)
    assert item is not None
    result = evaluate(item)
    assert stages.deliver(result)
    done = stages.votes_done
    assert stages.deliver(result) == []
    assert stages.votes_done == done


def test_stored_units_are_not_evaluated_again():
    first, _ = run_all(Stages(plan(), NOTHING_STORED))
    kept = {s.counted.unit: s.counted for s in first if hash(s.counted.unit) % 2}

    def stored(sigma, image_id):
        return [u for k, u in kept.items() if (k.sigma, k.image_id) == (sigma, image_id)]

    stages = Stages(plan(), stored)
    second, items = run_all(stages)
    assert not {p.unit for i in items for p in i.parts} & set(kept)
    assert summary(first) == summary(second) | {
        k: (u.target, dict(u.counts)) for k, u in kept.items()
    }


def test_a_finished_run_hands_out_nothing():
    first, _ = run_all(Stages(plan(), NOTHING_STORED))

    def stored(sigma, image_id):
        return [
            s.counted
            for s in first
            if (s.counted.unit.sigma, s.counted.unit.image_id) == (sigma, image_id)
        ]

    stages = Stages(plan(), stored)
    assert stages.take(1000.0) is None
    assert stages.finished
    assert len(stages.finished_images) == 10


def test_items_hold_about_the_asked_evaluations_once_the_cost_is_known():
    stages = Stages(plan(image_ids=np.arange(500)), NOTHING_STORED)
    _, items = run_all(stages, nfe=1000.0)
    middle = items[len(items) // 8 : len(items) // 3]
    assert all(90 <= i.votes <= 110 for i in middle)  # ten evaluations a vote


def test_images_come_into_memory_only_as_workers_need_them():
    stages = Stages(plan(image_ids=np.arange(100_000)), NOTHING_STORED)
    for _ in range(50):
        item = stages.take(1000.0, 4)
        assert item is not None
        stages.deliver(evaluate(item))
    assert len(stages._active) < 200


def test_sequential_issues_at_most_one_items_worth_beyond_the_last_look():
    asked = plan(bound="sequential", n=100_000, radii=(2.0,), image_ids=np.arange(1), sigmas=(1.0,))
    stages = Stages(asked, NOTHING_STORED)
    prefix = 0
    for _ in range(40):
        item = stages.take(1000.0)
        if item is None:
            break
        beyond = max((p.stop for p in item.parts if p.unit.stream == "estimate"), default=0)
        assert beyond <= prefix + 100 + 20  # an item of a hundred votes, rounded to units
        for entry in stages.deliver(evaluate(item)):
            if entry.counted.unit.stream == "estimate":
                prefix = max(prefix, entry.counted.unit.stop)


def test_a_quarantined_item_costs_its_images_only():
    stages = Stages(plan(), NOTHING_STORED)
    lost = None
    while not stages.finished:
        item = stages.take(300.0)
        assert item is not None
        if lost is None:
            lost = stages.abandon(item)
            continue
        stages.deliver(evaluate(item))
    assert lost
    assert stages.images_done == stages.images_total - len(lost)


def test_certified_images_are_done_without_a_look_at_their_votes():
    def refuse(sigma, image_id):
        raise AssertionError("votes of a certified image were looked up")

    every = {(sigma, int(i)) for sigma in plan().sigmas for i in plan().image_ids}
    stages = Stages(plan(), refuse, certified=every)
    assert stages.finished
    assert stages.all_stored()
    assert stages.finished_images == []
    assert stages.votes_done == stages.votes_total
    left = min(every)
    stages = Stages(plan(), NOTHING_STORED, certified=every - {left})
    _, items = run_all(stages)
    assert {(p.unit.sigma, p.unit.image_id) for i in items for p in i.parts} == {left}
    assert stages.images_done == stages.images_total


def sequential_stages(radius: float = 1.0, unit: int = 10) -> Stages:
    asked = plan(
        bound="sequential", n=100_000, unit=unit, radii=(radius,),
        image_ids=np.arange(1), sigmas=(1.0,),
    )  # fmt: skip
    return Stages(asked, NOTHING_STORED)


def test_sequential_votes_ahead_of_the_looks_grow_with_the_votes_looked_at():
    stages, prefix, ahead = sequential_stages(), 0, []
    for _ in range(60):
        item = stages.take(1000.0)
        if item is None:
            break
        stops = [p.stop for p in item.parts if p.unit.stream == "estimate"]
        if stops:
            ahead.append((prefix, max(stops) - prefix))
        for entry in stages.deliver(evaluate(item)):
            if entry.counted.unit.stream == "estimate":
                prefix = max(prefix, entry.counted.unit.stop)
    assert len(ahead) > 5
    assert [a for a in ahead if not 0 < a[1] <= max(a[0] // 4, 30) + 10] == []


def test_an_idle_worker_gets_votes_that_may_not_be_needed_but_no_more_than_an_item():
    stages, prefix = sequential_stages(), 0
    while prefix < 200:
        for entry in stages.deliver(evaluate(stages.take(1000.0))):
            if entry.counted.unit.stream == "estimate":
                prefix = max(prefix, entry.counted.unit.stop)
    first, second = stages.take(1000.0, 2), stages.take(1000.0, 2)
    assert first is not None
    assert second is not None  # the first was all that the image needs before its next looks
    assert max(p.stop for p in second.parts) <= prefix + 100 + 10


def test_votes_that_come_back_after_the_stop_are_counted():
    stages = sequential_stages(radius=0.5)
    while not stages.finished:
        out = [stages.take(1000.0, 3) for _ in range(3)]
        for item in [i for i in out if i is not None]:
            stages.deliver(evaluate(item))
    cast = stages.votes_done
    needed = sum(30 + image.verdict().n for image in stages.finished_images)
    assert stages.votes_unused == cast - needed
    assert stages.votes_unused > 0


def closely_fought(image_id: int, stream: str, index: int) -> int:
    """A made-up vote: the odd images' first 12 selection votes are for two classes in turn."""
    if stream == "select" and image_id % 2 and index < 12:
        return (image_id + index % 2) % 5
    return image_id % 5


def evaluate_closely(item: Item) -> Result:
    tallies = []
    for part in item.parts:
        counts: Counter = Counter()
        for index in range(part.start, part.stop):
            winner = closely_fought(part.unit.image_id, part.unit.stream, index)
            counts[winner if part.target in (-1, winner) else NOT_TARGET] += 1
        tallies.append(Tally(part.unit, part.target, dict(counts), 10 * counts.total()))
    nfe = sum(t.nfe for t in tallies)
    return Result(item.item_id, tuple(tallies), None, nfe, 0, 0.1, "w", "cpu", "k")


def stops_early(**changes) -> Plan:
    """Selection that stops at a lead of 5: after 5 votes of even images, after 17 of odd ones."""
    return plan(**({"select": 5, "select_unit": 1, "estimate": "target"} | changes))


def drive_closely(stages: Stages, *, nfe: float, workers: int, seed: int = 0, queued: int = 1):
    """As ``run_all``, with ``queued`` items for each worker; only ``workers`` are ever idle."""
    shuffle, flight, cast, settled = random.Random(seed), [], Counter(), []
    while not stages.finished:
        while len(flight) < queued * workers and (item := stages.take(nfe, workers)) is not None:
            flight.append(item)
            for part in item.parts:
                key = part.unit.sigma, part.unit.image_id, part.unit.stream
                cast[key] += part.stop - part.start
        assert flight, "nothing in flight and nothing to hand out: the run would hang"
        settled += stages.deliver(evaluate_closely(flight.pop(shuffle.randrange(len(flight)))))
    return settled, cast


def used_by(stages: Stages) -> dict:
    images = stages.finished_images
    return {(i.sigma, i.image_id): (i.selection.used, i.chosen, i.verdict().n_a) for i in images}


@pytest.mark.parametrize("unit", [1, 3, 5])
def test_selection_stops_at_the_same_vote_whatever_the_items_are(unit):
    found = []
    for nfe, workers, seed in [(10.0, 1, 0), (70.0, 3, 1), (1e6, 8, 2)]:
        stages = Stages(stops_early(select_unit=unit), NOTHING_STORED)
        drive_closely(stages, nfe=nfe, workers=workers, seed=seed)
        found.append(used_by(stages))
        assert stages.images_done == 10
    assert found[0] == found[1] == found[2]
    odd = -(-17 // unit) * unit
    for (_, image_id), used in found[0].items():
        assert used == ((odd if image_id % 2 else -(-5 // unit) * unit), image_id % 5, 100)


def test_while_workers_are_busy_no_selection_vote_is_cast_in_vain():
    stages = Stages(stops_early(image_ids=np.arange(40), n0=100), NOTHING_STORED)
    _, cast = drive_closely(stages, nfe=300.0, workers=2, queued=2)
    selected = {key[:2]: votes for key, votes in cast.items() if key[2] == "select"}
    assert selected == {key: used for key, (used, *_) in used_by(stages).items()}
    assert stages.votes_unused == 0
    assert stages.votes_done == stages.votes_total  # less what selection spared


def test_an_idle_worker_gets_a_few_selection_votes_ahead_whose_surplus_is_withdrawn():
    stages = Stages(stops_early(image_ids=np.array([1]), sigmas=(0.25,), n0=100), NOTHING_STORED)
    first = stages.take(1e6, 2)
    assert [(p.start, p.stop) for p in first.parts] == [(k, k + 1) for k in range(5)]
    ahead = stages.take(20.0, 2)  # two votes: three more are ready
    assert [(p.start, p.stop) for p in ahead.parts] == [(5, 6)]
    assert stages.take(20.0, 1) is not None
    drive = [first, ahead]
    for item in drive:
        stages.deliver(evaluate_closely(item))
    assert stages._active[0.25, 1].image.selection.used == 6
    assert stages.take(20.0, 2).parts[0].unit.start == 7


def test_selection_votes_that_come_after_the_choice_change_nothing_and_are_counted_as_unused():
    asked = stops_early(image_ids=np.array([0]), sigmas=(0.25,), n0=100, select_unit=5)
    stages = Stages(asked, NOTHING_STORED)
    first, ahead = stages.take(1e6, 2), stages.take(1e6, 2)
    assert [(p.start, p.stop) for p in ahead.parts] == [(5, 10)]
    stages.deliver(evaluate_closely(first))
    assert stages._active[0.25, 0].image.chosen == 0
    assert stages.deliver(evaluate_closely(ahead)) != []  # stored all the same
    assert stages.votes_unused == 5
    drive_closely(stages, nfe=1e6, workers=1)
    assert used_by(stages) == {(0.25, 0): (5, 0, 100)}
    (image,) = stages.finished_images
    assert image.nfe == 10 * (10 + 100)
    assert stages.votes_done == stages.votes_total == 110


def test_stored_selection_votes_are_not_cast_again_and_a_gap_in_them_is_filled():
    asked = stops_early(n0=100)
    settled, _ = drive_closely(Stages(asked, NOTHING_STORED), nfe=300.0, workers=3)
    kept = [s.counted for s in settled if hash(s.counted.unit) % 3]

    def stored(sigma, image_id):
        return [u for u in kept if (u.unit.sigma, u.unit.image_id) == (sigma, image_id)]

    stages = Stages(asked, stored)
    again, _ = drive_closely(stages, nfe=300.0, workers=3)
    assert not {s.counted.unit for s in again} & {u.unit for u in kept}
    whole = Stages(asked, NOTHING_STORED)
    drive_closely(whole, nfe=300.0, workers=3)
    assert used_by(stages) == used_by(whole)
    assert stages.votes_done == stages.votes_total


def test_an_image_whose_stored_votes_are_about_another_class_gets_all_of_them_anew():
    asked = stops_early(image_ids=np.array([0]), sigmas=(0.25,))
    settled, _ = drive_closely(Stages(asked, NOTHING_STORED), nfe=300.0, workers=1)
    other = [
        replace(s.counted, target=3, counts={NOT_TARGET: s.counted.unit.votes})
        for s in settled
        if s.counted.unit.stream == "estimate"
    ]
    stages = Stages(asked, lambda sigma, image_id: other)
    again, _ = drive_closely(stages, nfe=300.0, workers=1)
    estimates = [s.counted for s in again if s.counted.unit.stream == "estimate"]
    assert [(u.target, u.unit.start) for u in estimates] == [(0, a) for a in range(0, 100, 20)]
    assert used_by(stages)[0.25, 0] == (5, 0, 100)


def test_a_sequential_image_is_given_no_more_votes_than_can_certify_it_at_first():
    asked = stops_early(bound="sequential", n=1000, unit=10, radii=(0.0, 0.25), n0=100,
                        image_ids=np.arange(40), sigmas=(0.25,), select_unit=5)  # fmt: skip
    stages = Stages(asked, NOTHING_STORED)
    _, cast = drive_closely(stages, nfe=300.0, workers=1, queued=2)
    assert {cast[0.25, i, "estimate"] for i in range(40)} == {50}  # 47 unanimous votes do
    assert stages.votes_unused == 0
