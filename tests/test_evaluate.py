"""The engine against votes cast one by one, and everything that must not change a vote."""

from collections import Counter
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcert_ray.config.loading import load_config
from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET, STREAM_NAMES
from diffcert_ray.engine.votes import evaluate_item, evaluate_votes
from diffcert_ray.method.diffusion_base import DiffusionBase, base_classifier
from diffcert_ray.method.diffusion_classifier import (
    METHODS,
    class_logits,
    denoised_image,
    network_input,
    row_losses,
    target,
)
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.method.sift import Sift
from diffcert_ray.tools.exact_worlds import gaussian_world, labelled_images
from diffcert_ray.votes.units import (
    Item,
    OpenVotes,
    Part,
    Result,
    Unit,
    join_open_votes,
    split_open_votes,
)
from tests.worlds import settings

SIGMA, LEVELS = 0.25, 16
# Means so close that many votes are decided late.
WORLD = gaussian_world(5, 16, 0.3, 0.1, seed=1, image_shape=(1, 4, 4))
PIXELS = ((labelled_images(WORLD, 3, seed=1)[0] + 1) / 2).float()


def image(image_id: int) -> np.ndarray:
    """Images are numbered from 100."""
    return PIXELS[image_id - 100].numpy()


RULES = {
    "full": {},
    "exact": {},
    "paired-z": {"z": 1.5},
    "threshold": {"threshold": 1.0, "keep": 2, "threshold_levels": 7},
}
every_rule = pytest.mark.parametrize("rule", RULES)
every_method = pytest.mark.parametrize("method", METHODS)


def base_of(
    rule: str = "paired-z",
    *,
    method: str = "apndc",
    batch: int = 32,
    denoiser=WORLD,
    noise_levels: dict | None = None,
    **sift,
) -> DiffusionBase:
    tables = settings(
        sift={"rule": rule} | RULES[rule] | sift,
        method={"name": method},
        numerics={"batch": batch},
        noise_levels=noise_levels or {"levels": LEVELS},
        votes={"sigmas": [SIGMA], "seed": 5},
    )
    return base_classifier(load_config(tables), denoiser, SIGMA)


def part(position: int, start: int, stop: int, *, stream: str = "estimate", about=ALL_CLASSES):
    unit = Unit(SIGMA, 100 + position, stream, 0, 20)
    return Part(unit, start, stop, about)


def item_of(*parts: Part, open_votes: OpenVotes | None = None, hand_back: int | None = None):
    return Item(0, SIGMA, parts, open_votes, hand_back)


THREE_IMAGES = (part(0, 0, 20), part(1, 0, 12), part(2, 0, 15, stream="select"))


def votes_of(base: DiffusionBase, *parts: Part) -> np.ndarray:
    return evaluate_votes(base, item_of(*parts), image)[0]


def counts_of(*results: Result) -> dict:
    """Counts of all units together."""
    counts: dict = {}
    for result in results:
        for tally in result.tallies:
            counts.setdefault(tally.unit, Counter()).update(tally.counts)
    return counts


def one_by_one(base: DiffusionBase, cast: Part) -> tuple[np.ndarray, int]:
    """Votes of a part and their evaluations, one at a time, one row at a time where it matters."""
    found = [one_vote(base, cast.unit, vote) for vote in range(cast.start, cast.stop)]
    return np.array([v for v, _ in found]), sum(n for _, n in found)


def one_vote(base: DiffusionBase, unit: Unit, vote: int) -> tuple[int, int]:
    plan, sift, shape = base.plan, base.sift, WORLD.image_shape
    source = NoiseSource(base.seed, SIGMA, int(np.prod(shape)))

    address = [np.array([a]) for a in (unit.image_id, STREAM_NAMES.index(unit.stream), vote)]

    def noise(level: int) -> Tensor:
        return source.normal(*address, level).reshape(1, *shape)

    points = np.rint(image(unit.image_id)[None].astype(np.float64) * 65280)  # pixels, 255 * 256
    steps = source.steps(*address).numpy().reshape(1, *shape)
    u = torch.from_numpy(((points + steps - 32640) / 32640).astype(np.float32))
    u_hat = denoised_image(plan, WORLD, u) if plan.needs_denoised else None
    evaluations = int(plan.needs_denoised)

    def losses_at(level: int) -> np.ndarray:
        eps, index = noise(level), torch.tensor([level])
        z, wanted = (f(plan, index, u, u_hat, eps) for f in (network_input, target))
        s = torch.tensor([plan.s[level]], dtype=torch.float32)
        outputs = [WORLD(z, s, torch.tensor([k])) for k in range(WORLD.num_classes)]
        return np.array([row_losses(out, wanted)[0].item() for out in outputs])

    every_loss = np.stack([losses_at(level) for level in sift.order])[:, None]
    if sift.leader_round is not None:
        return int(np.argmin(sums(every_loss[:, 0], base))), evaluations
    alive, winner, round_index = np.ones((1, WORLD.num_classes), bool), [-1], 0
    while winner[0] == -1:
        start, stop = sift.rounds[round_index]
        evaluations += int(alive.sum()) * (stop - start)
        alive, following, winner = sift.step(round_index, every_loss[:stop], alive)
        round_index = int(following[0])
    return int(winner[0]), evaluations


def sums(losses: np.ndarray, base: DiffusionBase) -> np.ndarray:
    """Sums over the levels in their order, for the rules that weight every level once."""
    total = np.zeros(losses.shape[1])
    for entry in np.argsort(base.sift.order):
        total = total + losses[entry] * base.sift.coefficient[entry]
    return total


class Counting:
    """A denoiser that counts the rows it is given, and what shapes they come in."""

    def __init__(self, inner=WORLD, events: list | None = None) -> None:
        self._inner, self.rows, self.shapes = inner, 0, set()
        self.events = [] if events is None else events
        for name in ("image_shape", "num_classes", "has_unconditional", "s_range"):
            setattr(self, name, getattr(inner, name))

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows += len(u)
        self.shapes.add(len(u))
        self.events.append("batch")
        return self._inner(u, s, y)


# ---- votes are the method's ----------------------------------------------------------------------


@every_method
@every_rule
def test_votes_and_evaluations_are_those_of_votes_cast_one_by_one(method: str, rule: str) -> None:
    base = base_of(rule, method=method)
    parts = (part(0, 3, 6), part(1, 0, 2, stream="select"))
    found, evaluations = evaluate_votes(base, item_of(*parts), image)
    expected = [one_by_one(base, p) for p in parts]
    assert list(found) == list(np.concatenate([votes for votes, _ in expected]))
    if rule != "exact":
        assert evaluations == sum(n for _, n in expected)


@every_method
@pytest.mark.parametrize("rule", ["full", "threshold"])
def test_votes_with_the_released_weights_are_those_of_votes_cast_one_by_one(
    method: str, rule: str
) -> None:
    """Sift-and-refine of apndc has levels at s_tau itself."""
    base = base_of(
        rule, method=method, noise_levels={"grid": "linear", "weights": "reference", "levels": 20}
    )
    parts = (part(0, 3, 6), part(1, 0, 2, stream="select"))
    found, evaluations = evaluate_votes(base, item_of(*parts), image)
    expected = [one_by_one(base, p) for p in parts]
    assert list(found) == list(np.concatenate([votes for votes, _ in expected]))
    assert evaluations == sum(n for _, n in expected)


def test_streams_have_noise_of_their_own() -> None:
    base = base_of("full")
    selected = votes_of(base, part(0, 0, 20, stream="select"))
    estimated = votes_of(base, part(0, 0, 20, stream="estimate"))
    assert len(set(selected)) > 1
    assert list(selected) != list(estimated)


def test_exact_rule_casts_the_votes_of_the_full_rule_for_less() -> None:
    full, everything = evaluate_votes(base_of("full"), item_of(*THREE_IMAGES), image)
    exact, evaluations = evaluate_votes(base_of("exact"), item_of(*THREE_IMAGES), image)
    assert list(exact) == list(full)
    assert evaluations < everything


# ---- what must not change a vote -----------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("batch", [1, 7, 100, 512])
def test_batch_size_changes_no_vote_and_no_cost(rule: str, batch: int) -> None:
    item = item_of(*(THREE_IMAGES if batch > 1 else (part(0, 3, 5),)))
    expected, evaluations = evaluate_votes(base_of(rule), item, image)
    found, same_evaluations = evaluate_votes(base_of(rule, batch=batch), item, image)
    assert list(found) == list(expected)
    assert same_evaluations == evaluations


@every_rule
def test_other_votes_of_an_image_change_nothing(rule: str) -> None:
    """Permuted, removed, or of other images: no vote learns anything from another one."""
    base = base_of(rule)
    expected = votes_of(base, part(0, 0, 20))
    alone = [votes_of(base, part(0, vote, vote + 1))[0] for vote in range(4)]
    assert alone == list(expected[:4])
    order = np.random.default_rng(0).permutation(20)[:12]
    shuffled = [part(0, vote, vote + 1) for vote in order]
    neighbours = [part(1, vote, vote + 1) for vote in range(12)]
    mixed = [p for pair in zip(shuffled, neighbours, strict=True) for p in pair]
    assert list(votes_of(base, *mixed)[::2]) == list(expected[order])


@every_rule
def test_cutting_units_into_items_and_parts_changes_no_count(rule: str) -> None:
    base = base_of(rule)
    whole = evaluate_item(base, item_of(*THREE_IMAGES), image)
    pieces = [
        replace(p, start=a, stop=min(a + 7, p.stop))
        for p in THREE_IMAGES
        for a in range(0, p.stop, 7)
    ]
    order = np.random.default_rng(1).permutation(len(pieces))
    items = [item_of(*(pieces[i] for i in group)) for group in np.array_split(order, 4)]
    results = [evaluate_item(base, item, image) for item in items]
    assert counts_of(*results) == counts_of(whole)
    assert sum(r.nfe for r in results) == whole.nfe


LIMITS = [
    {"item_run.LANE_BYTES": 1},
    {"item_run.LANE_BYTES": 4000},
    {"lanes.DECIDE_BYTES": 1},
    {"item_run.CHUNK_BATCHES": 1},
    {"item_run.AHEAD": {"cpu": 1}},
]


@every_rule
@pytest.mark.parametrize("limits", LIMITS)
def test_memory_limits_change_no_vote_and_no_cost(rule: str, limits: dict, monkeypatch) -> None:
    base, parts = base_of(rule, batch=8), (part(0, 0, 5), part(1, 0, 5))
    expected = evaluate_votes(base, item_of(*parts), image)
    for name, value in limits.items():
        monkeypatch.setattr(f"diffcert_ray.engine.{name}", value)
    found = evaluate_votes(base, item_of(*parts), image)
    assert list(found[0]) == list(expected[0])
    assert found[1] == expected[1]


@every_rule
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_split_and_fused_stages_have_equal_counts(rule: str, levels: int) -> None:
    base = base_of(rule)
    fused = evaluate_item(base, item_of(*THREE_IMAGES), image)
    sifted = [evaluate_item(base, item_of(p, hand_back=levels), image) for p in THREE_IMAGES]
    held = join_open_votes([r.open_votes for r in sifted if r.open_votes is not None])
    assert len(held) > 5
    few, rest = split_open_votes(held, 3)
    again, many = split_open_votes(rest, len(rest) // 2)
    items = [item_of(open_votes=few), item_of(part(1, 12, 20), open_votes=again)]
    items.append(item_of(open_votes=many))
    refined = [evaluate_item(base, item, image) for item in items]
    fresh = evaluate_item(base, item_of(part(1, 12, 20)), image)
    assert counts_of(*sifted, *refined) == counts_of(fused, fresh)
    assert all(r.open_votes is None for r in refined)
    again_denoised = len(held)  # the denoised input of an open vote is not sent but made again
    spent = sum(r.nfe for r in (*sifted, *refined))
    assert spent == fused.nfe + fresh.nfe + again_denoised


@every_rule
def test_votes_handed_back_twice_end_the_same(rule: str) -> None:
    base = base_of(rule)
    fused = evaluate_item(base, item_of(*THREE_IMAGES), image)
    results = [evaluate_item(base, item_of(*THREE_IMAGES, hand_back=1), image)]
    while results[-1].open_votes is not None:
        item = item_of(open_votes=results[-1].open_votes, hand_back=1)
        results.append(evaluate_item(base, item, image))
    assert len(results) >= 2 + (rule != "full")
    assert counts_of(*results) == counts_of(fused)


def test_item_whose_votes_all_stay_open_has_empty_counts() -> None:
    result = evaluate_item(base_of("full"), item_of(*THREE_IMAGES, hand_back=1), image)
    assert [t.counts for t in result.tallies] == [{}, {}, {}]
    assert len(result.open_votes) == 47
    assert sum(t.nfe for t in result.tallies) == result.nfe == 47 * (1 + 8 * WORLD.num_classes)


def test_votes_in_different_rounds_that_finish_in_one_chunk_keep_their_rounds(monkeypatch) -> None:
    events: list = []
    step = Sift.step

    def recorded(self: Sift, round_index: int, *rest: np.ndarray) -> tuple:
        events.append(round_index)
        return step(self, round_index, *rest)

    monkeypatch.setattr(Sift, "step", recorded)
    base = base_of("paired-z", denoiser=Counting(events=events))
    found = votes_of(base, part(0, 0, 20))
    chunks = [
        set(group) for is_batch, group in groupby(events, lambda e: e == "batch") if not is_batch
    ]
    assert any(len(rounds) > 1 for rounds in chunks)
    monkeypatch.undo()
    alone = [votes_of(base_of("paired-z"), part(0, v, v + 1))[0] for v in range(20)]
    assert list(found) == alone


# ---- evaluations are counted ---------------------------------------------------------------------


@every_method
@every_rule
def test_evaluations_are_the_rows_that_the_network_saw(method: str, rule: str) -> None:
    network = Counting()
    base = base_of(rule, method=method, denoiser=network)
    result = evaluate_item(base, item_of(*THREE_IMAGES), image)
    assert network.rows == result.nfe + result.padded
    assert network.shapes == {32}
    assert result.nfe == sum(t.nfe for t in result.tallies)
    if rule == "full":
        each = base.plan.needs_denoised + LEVELS * WORLD.num_classes
        assert [t.nfe for t in result.tallies] == [20 * each, 12 * each, 15 * each]


@every_rule
def test_rows_left_at_the_end_are_evaluated_in_the_smallest_batch_that_holds_them(
    rule: str,
) -> None:
    items = [item_of(part(0, 0, votes)) for votes in (1, 2, 3, 5, 8, 13)]
    found, padded = {}, {}
    for short in ((), (16, 8)):
        network = Counting()
        base = replace(base_of(rule, denoiser=network), short_batches=short)
        found[short] = [evaluate_item(base, item, image) for item in items]
        padded[short] = sum(r.padded for r in found[short])
        assert network.rows == sum(r.nfe for r in found[short]) + padded[short]
        assert network.shapes == {32, *short}
    whole, shorter = ([r.tallies for r in results] for results in found.values())
    assert whole == shorter
    assert padded[16, 8] < padded[()] / 2


@every_rule
def test_each_unit_pays_for_its_own_votes(rule: str) -> None:
    base = base_of(rule)
    together = evaluate_item(base, item_of(*THREE_IMAGES), image)
    alone = [evaluate_item(base, item_of(p), image).nfe for p in THREE_IMAGES]
    assert [t.nfe for t in together.tallies] == alone


@every_rule
def test_unconditional_network_of_its_own_serves_the_denoising_step(rule: str) -> None:
    expected = evaluate_item(base_of(rule), item_of(*THREE_IMAGES), image)
    conditional, unconditional = Counting(), Counting()
    base = replace(base_of(rule, denoiser=conditional), unconditional=unconditional)
    found = evaluate_item(base, item_of(*THREE_IMAGES), image)
    assert counts_of(found) == counts_of(expected)
    assert [t.nfe for t in found.tallies] == [t.nfe for t in expected.tallies]
    assert unconditional.rows + conditional.rows == found.nfe + found.padded
    assert unconditional.shapes == {32}
    assert unconditional.rows >= 47
    other_world = gaussian_world(2, 16, 0.3, 1.0, seed=8, image_shape=(1, 4, 4))
    other = replace(base, unconditional=other_world)
    assert counts_of(evaluate_item(other, item_of(*THREE_IMAGES), image)) != counts_of(found)


# ---- votes about one class -----------------------------------------------------------------------


@every_method
@every_rule
def test_vote_about_a_class_says_so_only_if_the_complete_vote_does(method: str, rule: str) -> None:
    base = base_of(rule, method=method)
    complete, everything = evaluate_votes(base, item_of(*THREE_IMAGES), image)
    for about in (0, 2, 4):
        parts = [replace(p, target=about) for p in THREE_IMAGES]
        found, evaluations = evaluate_votes(base, item_of(*parts), image)
        assert list(found) == [v if v == about else NOT_TARGET for v in complete]
        assert evaluations <= everything


def test_votes_about_a_class_cost_less() -> None:
    complete = evaluate_item(base_of("paired-z"), item_of(part(0, 0, 20)), image)
    rarest = min(range(WORLD.num_classes), key=lambda k: complete.tallies[0].counts.get(k, 0))
    about = evaluate_item(base_of("paired-z"), item_of(part(0, 0, 20, about=rarest)), image)
    assert about.nfe < complete.nfe
    assert about.tallies[0].target == rarest


@every_rule
def test_votes_about_a_class_end_the_same_in_two_stages(rule: str) -> None:
    base, asked = base_of(rule), [replace(p, target=2) for p in THREE_IMAGES]
    fused = evaluate_item(base, item_of(*asked), image)
    sifted = evaluate_item(base, item_of(*asked, hand_back=3), image)
    refined = evaluate_item(base, item_of(open_votes=sifted.open_votes), image)
    assert counts_of(sifted, refined) == counts_of(fused)
    assert {t.target for r in (sifted, refined) for t in r.tallies} == {2}


# ---- losses that are not finite ------------------------------------------------------------------


class Broken(Counting):
    """A denoiser that returns NaN for some classes at some levels."""

    def __init__(self, classes: list[int], above: float = 0.0) -> None:
        super().__init__()
        self._classes, self._above = torch.tensor(classes), above

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        out = super().__call__(u, s, y)
        out[torch.isin(y, self._classes) & (s > self._above)] = torch.nan
        return out


@every_rule
@pytest.mark.parametrize("above", [0.0, 1.5])
def test_class_whose_losses_are_not_finite_gets_no_vote(rule: str, above: float) -> None:
    favourite = Counter(votes_of(base_of("full"), part(0, 0, 20))).most_common(1)[0][0]
    base = base_of(rule, denoiser=Broken([favourite], above), z=1e9, first_ratio=1e9)
    counts = Counter(votes_of(base, part(0, 0, 20)).tolist())
    assert counts[favourite] == 0
    assert counts[-2] == 0


@every_rule
def test_vote_is_unresolved_when_no_class_has_finite_losses(rule: str) -> None:
    base = base_of(rule, denoiser=Broken(list(range(WORLD.num_classes)), above=1.5))
    sift = replace(base.sift, z=1e9, first_ratio=1e9)
    result = evaluate_item(replace(base, sift=sift), item_of(part(0, 0, 20)), image)
    assert result.tallies[0].counts == {-2: 20}
    about = item_of(part(0, 0, 20, about=1))
    result = evaluate_item(replace(base, sift=sift), about, image)
    assert result.tallies[0].counts == {NOT_TARGET: 20}


# ---- the rest ------------------------------------------------------------------------------------


def test_item_at_another_sigma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"item 3 is at sigma 0\.5, the worker at 0\.25"):
        evaluate_item(base_of(), Item(3, 0.5), image)


def test_item_without_votes_returns_nothing() -> None:
    result = evaluate_item(base_of(), item_of(), image)
    assert (result.tallies, result.open_votes, result.nfe, result.padded) == ((), None, 0, 0)


def test_result_tells_where_it_was_made_and_how_long_it_took() -> None:
    ticks = iter([10.0, 12.5])
    result = evaluate_item(
        base_of(),
        Item(17, SIGMA, (part(0, 0, 2),)),
        image,
        clock=lambda: next(ticks),
    )
    assert (result.item_id, result.seconds, result.device) == (17, 2.5, "cpu")


def test_logits_of_clean_images_share_their_noise() -> None:
    base = base_of("full")
    u = PIXELS * 2 - 1
    found = base.clean_scores(u, draws=2, seed=9)
    assert found.shape == (3, WORLD.num_classes)
    torch.testing.assert_close(base.clean_scores(u[1:], draws=2, seed=9), found[1:])
    assert not torch.equal(base.clean_scores(u, draws=2, seed=10), found)
    zero = np.zeros(LEVELS, np.int64)
    source = NoiseSource(9, SIGMA, 16)
    draws = [source.normal(zero, zero, zero + d, np.arange(LEVELS)) for d in (0, 1)]
    eps = torch.stack(draws).reshape(2, LEVELS, *WORLD.image_shape)
    torch.testing.assert_close(found, class_logits(WORLD, u, base.plan, eps))
