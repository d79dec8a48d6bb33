"""Sifting rules: against each rule written out for one vote, and what no rule may do."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcert_ray.config.loading import load_config
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.from_config import levels_and_sift
from diffcert_ray.method.rounds import even_rounds, growing_rounds, visiting_order
from diffcert_ray.method.sift import (
    Sift,
    exact_sift,
    full_sift,
    paired_z_sift,
    sum_over_entries,
    threshold_sift,
)
from tests.worlds import small_world

LEVELS, SIFTING = 24, 9
WEIGHTS = np.linspace(0.5, 2.0, LEVELS) ** 2
DENSITIES = np.linspace(3.0, 1.0, SIFTING)

SIFTS = {
    "full": full_sift(WEIGHTS),
    "exact": exact_sift(WEIGHTS),
    "paired-z": paired_z_sift(WEIGHTS, z=1.5),
    "threshold": threshold_sift(WEIGHTS, DENSITIES, threshold=2.0, keep=2, levels=6),
}
every_rule = pytest.mark.parametrize("rule", SIFTS)
EVERYTHING = {"z": 1e300, "first_ratio": math.inf}


def draw(seed: int, votes: int = 1, classes: int = 5, levels: int = LEVELS + SIFTING) -> np.ndarray:
    """Losses [levels, votes, classes] with one better class, by level rather than by entry."""
    rng = np.random.default_rng(seed)
    losses = rng.gamma(4.0, 0.25, (levels, votes, classes)) + rng.gamma(
        4.0, 0.1, (levels, votes, 1)
    )
    return losses * rng.uniform(0.7, 1.3, (votes, classes))


def play(sift: Sift, losses: np.ndarray) -> tuple[int, int, list[np.ndarray]]:
    """One vote from its first round to its class: (winner, evaluations, alive after each round).

    The rule is shown NaN for everything that it has not asked for.
    """
    by_entry = losses[sift.order][:, None, :]
    seen = np.full_like(by_entry, np.nan)
    alive = np.ones(by_entry.shape[1:], bool)
    round_index, evaluations, history = 0, 0, []
    while True:
        start, stop = sift.rounds[round_index]
        asked = sift.asked(round_index, seen[: sift.entries_before(round_index)], alive)
        assert asked.any()
        assert not (asked & ~alive).any()
        seen[start:stop][:, asked] = by_entry[start:stop][:, asked]
        evaluations += int(asked.sum()) * (stop - start)
        shown = seen[: sift.entries_before(round_index + 1)]
        alive, following, winner = sift.step(round_index, shown, alive)
        history.append(alive[0])
        if winner[0] != -1:
            return int(winner[0]), evaluations, history
        assert following[0] > round_index
        round_index = int(following[0])


def weighted_sums(losses: np.ndarray, weights: np.ndarray = WEIGHTS) -> list[float]:
    """Sums of one vote's classes, level by level, as a person would add them."""
    sums = [0.0] * losses.shape[-1]
    for level, weight in enumerate(weights):
        for k in range(len(sums)):
            sums[k] = sums[k] + float(losses[level, k]) * float(weight)
    return sums


# ---- the rules written out ---------------------------------------------------------------------


def standard_error(lag: np.ndarray) -> float:
    """Of a mean over LEVELS, from some of them; the variance is that of neighbours in level."""
    variance = 0.5 * np.mean(np.diff(lag) ** 2)
    return math.sqrt(variance * (1 / len(lag) - 1 / LEVELS))


def written_paired_z(losses: np.ndarray, *, z: float, first_ratio: float) -> tuple[int, int]:
    """(winner, evaluations) of one vote [LEVELS, K], with numpy's own statistics."""
    order = visiting_order(LEVELS)
    alive, evaluations, ends = list(range(losses.shape[1])), 0, (1, 3, 7, 15, LEVELS)
    for start, stop in zip((0, *ends), ends, strict=False):
        evaluations += (stop - start) * len(alive)
        if stop == LEVELS:
            break
        levels = np.sort(order[:stop])
        terms = {k: losses[levels, k] * WEIGHTS[levels] for k in alive}
        leader = min(alive, key=lambda k: terms[k].sum())

        lags = {k: terms[k] - terms[leader] for k in alive if k != leader}
        if stop == 1:
            late = {k for k in lags if terms[k][0] > first_ratio * terms[leader][0]}
        else:
            late = {k for k, lag in lags.items() if lag.mean() > z * standard_error(lag)}
        alive = [k for k in alive if k not in late]
        if len(alive) == 1:
            return alive[0], evaluations
    sums = weighted_sums(losses)
    return min(alive, key=lambda k: sums[k]), evaluations


def written_threshold(
    losses: np.ndarray, *, threshold: float, keep: int, levels: int
) -> tuple[int, int]:
    """The paper's sift-and-refine for one vote: losses [LEVELS + SIFTING, K]."""
    classes = list(range(losses.shape[1]))
    sums, evaluations = dict.fromkeys(classes, 0.0), 0
    for level in visiting_order(SIFTING)[:levels]:
        for k in classes:
            sums[k] += losses[LEVELS + level, k] * DENSITIES[level]
        evaluations += len(classes)
        best = min(sums[k] for k in classes)
        classes = [k for k in classes if sums[k] - best <= threshold]
        if len(classes) <= keep:
            break
    classes = sorted(classes, key=lambda k: sums[k])[:keep]
    refined = weighted_sums(losses)
    winner = min(sorted(classes), key=lambda k: refined[k])
    return winner, evaluations + LEVELS * len(classes)


@pytest.mark.parametrize(("z", "ratio"), [(1.0, 1.5), (2.0, 2.0), (3.0, 4.0)])
def test_paired_z_is_the_rule_written_out(z: float, ratio: float) -> None:
    for seed in range(60):
        losses = draw(seed, levels=LEVELS)[:, 0]
        winner, evaluations, _ = play(paired_z_sift(WEIGHTS, z=z, first_ratio=ratio), losses)
        assert (winner, evaluations) == written_paired_z(losses, z=z, first_ratio=ratio)


@pytest.mark.parametrize(("threshold", "keep", "levels"), [(0.5, 1, 9), (2.0, 2, 6), (4.0, 3, 3)])
def test_threshold_is_the_papers_algorithm_written_out(
    threshold: float, keep: int, levels: int
) -> None:
    for seed in range(60):
        losses = draw(seed)[:, 0]
        rule = {"threshold": threshold, "keep": keep, "levels": levels}
        winner, evaluations, _ = play(threshold_sift(WEIGHTS, DENSITIES, **rule), losses)
        assert (winner, evaluations) == written_threshold(losses, **rule)


def test_full_vote_is_the_smallest_weighted_sum() -> None:
    for seed in range(20):
        losses = draw(seed, levels=LEVELS)[:, 0]
        winner, evaluations, _ = play(SIFTS["full"], losses)
        assert winner == int(np.argmin(weighted_sums(losses)))
        assert evaluations == losses.size


# ---- the exact bound ---------------------------------------------------------------------------


def hard_losses(seed: int, classes: int) -> np.ndarray:
    """Ties, sums that differ in their last bit only, zeros, and losses that are not finite."""
    rng = np.random.default_rng(seed)
    pool = [0.0, 0.1, 0.2, 0.3, 1.0, 1.0 + 2**-52, 1e-300, 1e12]
    losses = rng.choice(pool[: rng.integers(1, len(pool) + 1)], (LEVELS, classes))
    losses = np.where(
        rng.random(losses.shape) < rng.choice([0.0, 0.5]), rng.random(losses.shape), losses
    )
    broken = rng.random(losses.shape) < rng.choice([0.0, 0.01, 0.1])
    return np.where(broken, rng.choice([math.inf, math.nan], losses.shape), losses)


def one_bag_of_losses(seed: int, classes: int, lowest: int = 0) -> np.ndarray:
    """Classes with the same losses at other levels, from a lowest one: sums differ by rounding."""
    rng = np.random.default_rng(seed)
    losses = np.zeros((LEVELS, classes))
    losses[lowest:] = rng.uniform(0.1, 1.0, (LEVELS - lowest, 1))
    losses[lowest:] = rng.permuted(losses[lowest:], axis=0)
    return losses


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), classes=st.integers(1, 6))
def test_exact_rule_returns_the_full_vote(seed: int, classes: int) -> None:
    losses = hard_losses(seed, classes)
    full = play(SIFTS["full"], losses)[0]
    exact, evaluations, _ = play(SIFTS["exact"], losses)
    assert exact == full
    assert evaluations <= losses.size


@pytest.mark.parametrize("lowest", [0, 8])
def test_exact_rule_returns_the_full_vote_when_sums_differ_by_rounding_only(lowest: int) -> None:
    """With zeros below a level, partial sums of the levels from the top are full sums already."""
    weights = np.ones(LEVELS)
    for seed in range(100):
        losses = one_bag_of_losses(seed, 6, lowest)
        assert play(exact_sift(weights), losses)[0] == play(full_sift(weights), losses)[0]


def test_exact_rule_returns_the_full_vote_of_ordinary_losses_for_less() -> None:
    spent, everything = 0, 0
    for seed in range(50):
        losses = draw(seed, levels=LEVELS, classes=10)[:, 0]
        losses[:, 1:] += 0.5
        full, all_of_them, _ = play(SIFTS["full"], losses)
        exact, evaluations, _ = play(SIFTS["exact"], losses)
        assert exact == full
        spent, everything = spent + evaluations, everything + all_of_them
    assert spent < 0.85 * everything


def test_exact_rule_recovers_when_the_leader_breaks_on_its_way() -> None:
    losses = draw(0, levels=LEVELS)[:, 0]
    losses[:, 2] = 1e-3
    losses[SIFTS["exact"].order[10], 2] = math.nan
    assert play(SIFTS["exact"], losses)[0] == play(SIFTS["full"], losses)[0] != 2


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_exact_rule_on_tiny_grids(levels: int) -> None:
    weights = np.ones(levels)
    for seed in range(20):
        losses = draw(seed, levels=levels)[:, 0]
        assert play(exact_sift(weights), losses)[0] == play(full_sift(weights), losses)[0]


# ---- what holds for every rule -----------------------------------------------------------------


def middle_of_a_race(sift: Sift, votes: int, classes: int, seed: int) -> tuple:
    """A round, and losses and survivors that votes may have when they finish it.

    Half of the votes have classes that differ by rounding only: any change in the order of
    summation changes who leads.
    """
    rng = np.random.default_rng(seed)
    round_index = int(rng.integers(len(sift.rounds)))
    seen = sift.entries_before(round_index + 1)
    losses = rng.uniform(0.1, 1.0, (seen, votes, classes))
    bags = rng.permuted(np.broadcast_to(losses[:, :, :1], losses.shape), axis=0)
    losses = np.where(
        rng.random((1, votes, 1)) < 0.5, bags / sift.coefficient[:seen, None, None], losses
    )
    losses[rng.random(losses.shape) < 0.01] = np.nan
    if sift.leader_round is not None and round_index + 1 < len(sift.rounds):
        reached = np.arange(classes) == rng.integers(classes, size=(votes, 1))
        losses[-1, ~reached] = np.nan
    alive = rng.random((votes, classes)) < 0.8
    alive[np.arange(votes), rng.integers(classes, size=votes)] = True
    return round_index, losses, alive


def same(found: tuple, expected: tuple, rows: np.ndarray) -> bool:
    return all(np.array_equal(f, e[rows]) for f, e in zip(found, expected, strict=True))


@every_rule
@settings(max_examples=80, deadline=None)
@given(votes=st.integers(1, 9), classes=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_what_a_vote_does_next_depends_on_its_own_losses_only(
    rule: str, votes: int, classes: int, seed: int
) -> None:
    sift = SIFTS[rule]
    round_index, losses, alive = middle_of_a_race(sift, votes, classes, seed)
    together = sift.step(round_index, losses, alive)
    asked = sift.asked(round_index, losses[: sift.entries_before(round_index)], alive)
    order = np.random.default_rng(seed).permutation(votes)
    for rows in (order, order[: votes // 2 + 1], *np.split(order, votes)):
        picked = losses[:, rows], alive[rows]
        assert same(sift.step(round_index, *picked), together, rows)
        before = picked[0][: sift.entries_before(round_index)]
        assert np.array_equal(sift.asked(round_index, before, picked[1]), asked[rows])
    for others in (np.nan, 0.0, 1e200):
        changed = np.full_like(losses, others)
        changed[:, order[0]] = losses[:, order[0]]
        rows = order[:1]
        found = sift.step(round_index, changed, alive)
        assert same(tuple(f[rows] for f in found), together, rows)


@pytest.mark.parametrize("votes", [1, 2, 7])
@pytest.mark.parametrize("classes", [1, 2, 3, 8])
def test_sums_have_the_same_bits_for_any_shape_and_memory_layout(votes: int, classes: int) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 1.0, (100, votes, classes))
    expected = np.zeros((votes, classes))
    for vote in range(votes):
        expected[vote] = weighted_sums(losses[:, vote], np.full(100, 1.0))
    for axes in permutations(range(3)):
        stored = np.ascontiguousarray(losses.transpose(axes)).transpose(np.argsort(axes))
        np.testing.assert_array_equal(sum_over_entries(stored), expected)


@every_rule
def test_memory_layout_and_dropped_columns_change_nothing(rule: str) -> None:
    for seed in range(40):
        sift = SIFTS[rule]
        round_index, losses, alive = middle_of_a_race(sift, 5, 6, seed)
        together = sift.step(round_index, losses, alive)
        for axes in permutations(range(3)):
            stored = np.ascontiguousarray(losses.transpose(axes)).transpose(np.argsort(axes))
            assert same(sift.step(round_index, stored, alive), together, np.arange(5))
        wide = np.full((*losses.shape[:2], 13), 0.01)
        wide[:, :, 1::2] = losses
        wide_alive = np.zeros((5, 13), bool)
        wide_alive[:, 1::2] = alive
        still, following, winner = sift.step(round_index, wide, wide_alive)
        assert not still[:, ::2].any()
        narrow = still[:, 1::2], following, np.where(winner > 0, winner // 2, winner)
        assert same(narrow, together, np.arange(5))


@every_rule
def test_leader_always_survives(rule: str) -> None:
    """The class with the smallest sum of what the rule compares; for ``exact`` the winner."""
    for seed in range(40):
        sift, losses = SIFTS[rule], draw(seed)[:, 0]
        winner, _, history = play(sift, losses)
        assert all(alive[winner] for alive in history)
        terms = losses[sift.order] * sift.coefficient[:, None]
        for round_index, alive in enumerate(history):
            assert alive.any()
            if rule == "paired-z" and round_index + 1 < len(sift.rounds):
                before = history[round_index - 1] if round_index else np.ones_like(alive)
                sums = terms[: sift.rounds[round_index][1]].sum(axis=0)
                assert alive[np.where(before, sums, np.inf).argmin()]


def test_rules_that_never_drop_return_the_full_vote() -> None:
    for seed in range(30):
        losses = draw(seed)[:, 0]
        full = play(SIFTS["full"], losses)[:2]
        assert play(paired_z_sift(WEIGHTS, **EVERYTHING), losses)[:2] == full
        rule = {"threshold": math.inf, "keep": losses.shape[1], "levels": 1}
        winner, evaluations, _ = play(threshold_sift(WEIGHTS, DENSITIES, **rule), losses)
        assert (winner, evaluations - losses.shape[1]) == full


def test_rules_that_never_drop_break_ties_as_the_full_vote_does() -> None:
    for seed in range(30):
        losses = one_bag_of_losses(seed, 5)
        full = play(full_sift(np.ones(LEVELS)), losses)[0]
        assert play(paired_z_sift(np.ones(LEVELS), **EVERYTHING), losses)[0] == full


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("level", [0, 8, LEVELS - 1])
def test_class_with_a_loss_that_is_not_finite_never_wins(rule: str, bad: float, level: int) -> None:
    losses = draw(3)[:, 0] + 0.2
    losses[:, 1] *= 0.8
    every_class = play(SIFTS[rule], np.where(np.arange(5) == 1, 0.1, losses))
    assert every_class[0] == 1
    losses[level, 1] = bad
    losses[LEVELS:, 1] = bad
    if rule == "paired-z":  # nothing is asked any more once the others are out
        losses[:, 1] = bad
    winner, _, history = play(SIFTS[rule], losses)
    assert winner not in (1, -2)
    assert not history[-1][1]


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [0, 5])
def test_vote_without_a_finite_class_is_unresolved(rule: str, bad: float, first: int) -> None:
    sift = paired_z_sift(WEIGHTS, **EVERYTHING) if rule == "paired-z" else SIFTS[rule]
    losses = draw(4)[:, 0]
    losses[sift.order[first:]] = bad
    winner, _, history = play(sift, losses)
    assert winner == -2
    assert not history[-1].any()


@every_rule
def test_single_class_wins(rule: str) -> None:
    assert play(SIFTS[rule], draw(0, classes=1)[:, 0])[0] == 0


# ---- the paper's two steps ---------------------------------------------------------------------


def test_losses_of_sifting_do_not_count_in_the_final_sum() -> None:
    sift = threshold_sift(WEIGHTS, DENSITIES, threshold=1e6, keep=5, levels=6)
    losses = draw(0)[:, 0]
    expected = play(sift, losses)[0]
    losses[LEVELS:, expected] += 1e4  # far behind in sifting, but still in
    assert play(sift, losses)[0] == expected


def test_best_classes_of_sifting_are_kept() -> None:
    sift = threshold_sift(WEIGHTS, DENSITIES, threshold=1e6, keep=2, levels=6)
    losses = np.ones((LEVELS + SIFTING, 4))
    losses[LEVELS:] = [3.0, 1.0, 4.0, 2.0]
    winner, evaluations, history = play(sift, losses)
    assert [list(np.flatnonzero(alive)) for alive in history[:6]] == 5 * [[0, 1, 2, 3]] + [[1, 3]]
    assert evaluations == 6 * 4 + LEVELS * 2
    assert winner == 1


def test_sifting_uses_its_levels_once_and_no_more() -> None:
    config = load_config({"sift": {"rule": "threshold", "keep": 1}})
    _, sift = levels_and_sift(config, 0.25)
    sifting = sift.order[: sift.rounds[sift.refine_round][0]]
    assert len(sifting) == 50 == len(set(sifting))
    assert sifting.min() >= 126
    assert sorted(sift.order[50:]) == list(range(126))


@pytest.mark.parametrize("weights", ["edm", "uniform", "reference"])
def test_sifting_does_not_depend_on_the_length_of_the_grid(weights: str) -> None:
    """Neither levels nor densities nor threshold: a vote drops the same classes on any grid."""

    def sifting(levels: int) -> tuple:
        grid = {"grid": "linear", "weights": weights, "levels": levels}
        config = load_config({"sift": {"rule": "threshold"}, "noise_levels": grid})
        noise_levels, sift = levels_and_sift(config, 0.25)
        first = sift.rounds[sift.refine_round][0]
        return noise_levels.s[sift.order[:first]], sift.coefficient[:first], sift.threshold

    few, many = sifting(126), sifting(1001)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threshold_is_the_papers_in_its_own_units() -> None:
    """5e-5 on density times spacing times loss, with 1001 points from 0.5 to 3."""
    assert load_config({}).sift.threshold * (3.0 - 0.5) / 1000 == pytest.approx(5e-5)


# ---- the order of visits -----------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.0, 1 / 3, 0.66, 0.999])
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 64, 126, 999, 1000])
def test_every_level_is_visited_once(levels: int, first: float) -> None:
    order = visiting_order(levels, first)
    assert sorted(order) == list(range(levels))
    assert order[0] == math.floor(first * levels)


@pytest.mark.parametrize("levels", [64, 126, 999])
@pytest.mark.parametrize("visits", [2, 4, 8, 16, 32])
def test_few_visits_cover_the_grid_evenly(levels: int, visits: int) -> None:
    seen = np.sort(visiting_order(levels)[:visits])
    gaps = np.diff([*seen, seen[0] + levels])
    assert gaps.max() <= levels / visits + 1


@given(st.integers(1, 300), st.integers(1, 20))
def test_rounds_follow_each_other_to_the_end(entries: int, length: int) -> None:
    for rounds in (growing_rounds(entries), even_rounds(0, entries, length)):
        assert rounds[0][0] == 0
        assert rounds[-1][1] == entries
        assert all(start < stop for start, stop in rounds)
        assert all(a[1] == b[0] for a, b in pairwise(rounds))


@every_rule
def test_rounds_of_every_rule_end_at_its_last_entry(rule: str) -> None:
    sift = SIFTS[rule]
    assert sift.entries_before(0) == 0
    assert sift.entries_before(len(sift.rounds)) == sift.rounds[-1][1] == len(sift.order)


@pytest.mark.parametrize("rule", ["full", "exact", "paired-z", "threshold"])
@pytest.mark.parametrize("method", ["apndc", "epndc"])
def test_the_most_evaluations_of_a_vote_are_every_class_at_every_visited_level(rule, method):
    table = {"rule": rule, "threshold_levels": 7}
    config = load_config({"method": {"name": method}, "sift": table})
    visited = 126 + (7 if rule == "threshold" else 0)
    world, _ = small_world()
    most = base_classifier(config, world, 0.25).most_nfe
    assert most == (method == "apndc") + world.num_classes * visited
