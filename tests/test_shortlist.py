"""The rule `shortlist`: which classes enter, what must not change a vote, and which heads fit."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffcert_ray import certify
from diffcert_ray.checkpoints.files import checkpoint_sha256
from diffcert_ray.checkpoints.head_file import (
    load_heads,
    raced_with,
    read_head_facts,
    save_heads,
)
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET, OPEN
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.lag_prior import LagPrior
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.engine.votes import evaluate_item, evaluate_votes
from diffcert_ray.errors import CheckpointError, ConfigError
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.rounds import fine_rounds
from diffcert_ray.method.shortlist import Shortlist
from diffcert_ray.method.sift import Sift, shortlist_sift
from diffcert_ray.tools.lag_measurement import measured_lag_prior
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import counts_of

SIGMA = 0.25
DIGITS = load_dataset({"name": "digits", "split": "test", "first": 4})
NETWORK = load_denoiser("digits")
HEAD = load_heads("digits")[SIGMA]
NOTHING_DROPPED = 1e-300


def base_of(batch: int = 32, **sift):
    tables = {"rule": "shortlist", "head": "digits", "least_p": 0.03} | sift
    config = load_config(
        {"sift": tables, "votes": {"sigmas": [SIGMA]}, "numerics": {"batch": batch}}
    )
    return base_classifier(config, NETWORK, SIGMA, head=HEAD)


def item_of(votes: int = 12, *, target: int = ALL_CLASSES, hand_back: int | None = None) -> Item:
    units = [Unit(SIGMA, int(i), "estimate", 0, votes) for i in DIGITS.ids]
    parts = tuple(Part(unit, 0, votes, target) for unit in units)
    return Item(0, SIGMA, parts, None, hand_back)


def test_likely_classes_and_the_likeliest_enter():
    log_p = np.log([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]])
    enters = Shortlist(0.25).proposed(log_p)
    assert enters.tolist() == [[True, True, False], [True, False, False]]
    assert Shortlist(0.99).proposed(log_p).sum(axis=1).tolist() == [1, 1]


def test_a_vote_whose_head_says_no_number_is_given_no_shortlist():
    assert Shortlist(0.5).proposed(np.array([[np.nan, 0.0, -1.0]])).all()


def test_lags_by_losses_and_by_log_odds_count_by_their_precision():
    log_p = np.log([[0.8, 0.1, 0.1]])
    mean, variance = np.array([[0.0, 0.3, -0.3]]), np.array([[1.0, 0.04, 0.01]])
    prior = LagPrior(per_nat=0.05, spread=0.1)
    lag, deviation = Shortlist(0.03, prior).lag(log_p, np.array([0]), mean, variance)
    foretold = 0.05 * np.log(8)
    assert lag[0, 1] == pytest.approx((0.3 / 0.04 + foretold / 0.01) / (1 / 0.04 + 1 / 0.01))
    assert deviation[0, 1] == pytest.approx((1 / 0.04 + 1 / 0.01) ** -0.5)
    assert lag[0, 2] == pytest.approx((-0.3 + foretold) / 2)


def test_a_prior_that_says_nothing_and_log_odds_that_are_no_numbers_leave_the_losses_alone():
    mean, variance = np.array([[0.0, 0.3]]), np.array([[1.0, 0.04]])
    nothing, odd = Shortlist(0.03), Shortlist(0.03, LagPrior(0.05, 0.1))
    for shortlist, log_p in ((nothing, [[-0.1, -2.0]]), (odd, [[0.0, -np.inf]])):
        lag, deviation = shortlist.lag(np.array(log_p), np.array([0]), mean, variance)
        assert (lag[0, 1], deviation[0, 1]) == pytest.approx((0.3, 0.2))


@pytest.mark.parametrize("wrong", [(-1.0, 1.0, 0.0), (0.1, 0.0, 0.0), (0.1, 1.0, float("nan"))])
def test_impossible_priors_are_refused(wrong):
    with pytest.raises(ValueError, match="a prior of lags"):
        LagPrior(*wrong)


def written_race(losses, log_p, prior: LagPrior, z: float, sift: Sift) -> tuple[int, int]:
    """The race of one vote, one class and one number at a time: (class, evaluations)."""
    entries, order = len(sift.order), sift.order.tolist()
    alive, nfe = set(range(losses.shape[1])), 0

    def behind(k: int, leader: int, seen: int) -> tuple[float, float]:
        lags = {
            order[e]: (losses[e, k] - losses[e, leader]) * sift.coefficient[e] * entries
            for e in range(seen)
        }
        told = [lags[level] for level in sorted(lags)]
        steps = sum((b - a) ** 2 for a, b in pairwise(told)) / 2
        square = (2 * prior.noise**2 + steps) / (2 + seen - 1)
        variance = square / seen * (1 - seen / entries)
        weight, before = 1 / variance, prior.spread**-2
        nats = log_p[leader] - log_p[k]
        lag = (sum(told) / seen * weight + prior.per_nat * nats * before) / (weight + before)
        return lag, (weight + before) ** -0.5

    for start, stop in sift.rounds:
        nfe += len(alive) * (stop - start)
        total = {k: float((losses[:stop, k] * sift.coefficient[:stop]).sum()) for k in alive}
        leader = min(total, key=total.__getitem__)
        if stop == entries:
            return leader, nfe
        lag = {k: behind(k, leader, stop)[0] for k in alive}
        leader = min(lag, key=lag.__getitem__)
        late = {k: behind(k, leader, stop) for k in alive - {leader}}
        alive -= {k for k, (lag_of, deviation) in late.items() if lag_of > z * deviation}
        if len(alive) == 1:
            return leader, nfe
    raise AssertionError


def test_a_race_is_the_one_written_out_in_numbers():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.5, 40) / 40
    prior = LagPrior(0.05, 0.1, 0.3)
    sift = shortlist_sift(weights, Shortlist(0.5, prior), z=1.6, first=0.4)
    seen = set()
    for _ in range(300):
        losses = rng.uniform(0.6, 1.0, (40, 4)) + rng.normal(0, 0.05, 4)
        log_p = np.log(rng.dirichlet(np.ones(4)))
        wanted = written_race(losses, log_p, prior, 1.6, sift)
        alive, nfe, winner, position = np.ones((1, 4), bool), 0, OPEN, 0
        while winner == OPEN:
            start, stop = sift.rounds[position]
            nfe += int(alive.sum()) * (stop - start)
            alive, after, won = sift.step(position, losses[:stop, None], alive, log_p[None])
            winner, position = int(won[0]), int(after[0])
        assert (winner, nfe) == wanted
        seen.add(nfe)
    assert len(seen) > 20  # races of many lengths


def test_measured_priors_are_those_of_the_losses_in_full():
    base = base_of(least_p=1e-9)
    prior, pairs = measured_lag_prior(base, DIGITS.image, DIGITS.ids.tolist(), 2)
    assert pairs > 20
    with pytest.MonkeyPatch.context() as patch:  # the same races, one vote at a time
        lags, nats, noise = [], [], []
        seen = Sift.step

        def step(self, position, losses, alive, log_p=None):
            if position + 1 < len(self.rounds):
                return alive, np.full(len(alive), position + 1), np.full(len(alive), OPEN)
            for vote in range(len(alive)):
                leader = max(np.flatnonzero(alive[vote]), key=lambda k: log_p[vote, k])
                for k in np.flatnonzero(alive[vote]):
                    if k != leader:
                        told = (losses[:, vote, k] - losses[:, vote, leader]) * self.coefficient
                        lags.append(told.sum())
                        nats.append(log_p[vote, leader] - log_p[vote, k])
                        by_level = told[np.argsort(self.order)] * len(told)
                        noise.append((np.diff(by_level) ** 2).mean() / 2)
            return seen(self, position, losses, alive, log_p)

        patch.setattr(Sift, "step", step)
        units = [Unit(SIGMA, int(i), "estimate", 0, 2) for i in DIGITS.ids]
        evaluate_votes(base, Item(0, SIGMA, tuple(Part(u, 0, 2) for u in units)), DIGITS.image)
    slope = np.dot(nats, lags) / np.dot(nats, nats)
    spread = np.sqrt(np.mean((np.array(lags) - slope * np.array(nats)) ** 2))
    assert len(lags) == pairs
    assert (prior.per_nat, prior.spread) == pytest.approx((slope, spread))
    assert prior.noise == pytest.approx(np.sqrt(np.mean(noise)))


def test_rounds_cover_every_entry_once():
    for entries in (1, 2, 5, 126, 1000):
        rounds = fine_rounds(entries)
        assert [e for a, b in rounds for e in range(a, b)] == list(range(entries))


def test_activations_come_with_the_very_same_estimate():
    u, s = torch.randn(8, 1, 8, 8), torch.full((8,), 0.5)
    y = torch.arange(8) - 1
    estimate, bottom = with_bottom(NETWORK)(u, s, y)
    assert torch.equal(estimate, NETWORK(u, s, y))
    assert bottom.shape == (8, 32, 4, 4)


def test_votes_do_not_depend_on_batches_and_neighbours():
    base, item = base_of(), item_of()
    together, nfe = evaluate_votes(base, item, DIGITS.image)
    alone = []
    for part in item.parts:
        for vote in range(part.start, part.stop):
            one = Item(0, SIGMA, (replace(part, start=vote, stop=vote + 1),))
            alone.append(evaluate_votes(base, one, DIGITS.image)[0][0])
    assert together.tolist() == alone
    assert nfe < len(together) * 20


def test_a_vote_about_one_class_is_the_complete_vote():
    complete, dear = evaluate_votes(base_of(), item_of(), DIGITS.image)
    about, cheap = evaluate_votes(base_of(), item_of(target=3), DIGITS.image)
    assert about.tolist() == np.where(complete == 3, 3, NOT_TARGET).tolist()
    assert cheap <= dear


def test_votes_handed_back_end_as_others():
    whole = evaluate_item(base_of(), item_of(30), DIGITS.image)
    first = evaluate_item(base_of(), item_of(30, hand_back=3), DIGITS.image)
    assert first.open_votes is not None
    rest = Item(1, SIGMA, (), first.open_votes)
    second = evaluate_item(base_of(), rest, DIGITS.image)
    counts: dict = {}
    for tally in (*first.tallies, *second.tallies):
        mine = counts.setdefault(tally.unit, {})
        for k, n in tally.counts.items():
            mine[k] = mine.get(k, 0) + n
    assert counts == {t.unit: t.counts for t in whole.tallies}


def test_a_head_that_proposes_all_gives_the_race_of_all_classes():
    base = base_of(least_p=NOTHING_DROPPED)
    sift = replace(base.sift, shortlist=Shortlist(NOTHING_DROPPED))  # nothing foretold
    everything = replace(base, sift=sift)
    plain = replace(sift, rule="paired-z", shortlist=None, first_ratio=1e300)
    race = replace(everything, sift=plain)
    plain = evaluate_votes(replace(race, head=None), item_of(), DIGITS.image)
    assert plain[0].tolist() == evaluate_votes(everything, item_of(), DIGITS.image)[0].tolist()


def test_methods_without_a_denoising_step_pay_one_evaluation_for_the_head():
    config = load_config(
        {
            "method": {"name": "epndc"},
            "sift": {"rule": "shortlist", "head": "digits", "least_p": 0.999999},
            "votes": {"sigmas": [SIGMA]},
        }
    )
    base = base_classifier(config, NETWORK, SIGMA, head=HEAD)
    _, nfe = evaluate_votes(base, item_of(), DIGITS.image)
    assert nfe == 4 * 12  # one class enters: the head decides


def tables(**sift) -> dict:
    return {
        "dataset": {"name": "digits", "split": "test", "first": 2},
        "sift": {"rule": "shortlist", "head": "digits"} | sift,
        "votes": {"sigmas": [SIGMA], "n0": 10, "n": 40, "radii": [0.0]},
    }


def test_a_run_certifies_with_a_shortlist_and_with_the_head_alone(tmp_path):
    run = certify(tables(), tmp_path / "run", local=True)
    assert run.outcome.complete
    assert run.certificates()["correct"].all()
    head = tables() | {"method": {"name": "shortlist-classify"}}
    alone = certify(head, tmp_path / "alone", local=True)
    assert alone.units()["nfe"].sum() == 2 * 50
    again = certify(tables(), tmp_path / "run", local=True)
    assert counts_of(again) == counts_of(run)


def written(
    path, *, denoiser: str | None = None, sigma=SIGMA, classes=10, shas=(), raced=None
) -> str:
    head = ShortlistHead(classes, (1, 8, 8), (32, 4, 4), 4)
    mine = checkpoint_sha256("digits") if denoiser is None else denoiser
    save_heads(path, {sigma: head}, denoiser=mine, image_shas=shas, recipe={}, raced=raced)
    return str(path)


def test_a_head_keeps_what_it_foretells(tmp_path):
    head = ShortlistHead(10, (1, 8, 8), (32, 4, 4), 4)
    head.lag_prior = LagPrior(0.1, 1 / 3, 1e-17)
    raced = raced_with(load_config("digits"))
    path = tmp_path / "head.safetensors"
    save_heads(path, {SIGMA: head}, denoiser="", image_shas=(), recipe={}, raced=raced)
    assert load_heads(str(path))[SIGMA].lag_prior == head.lag_prior
    assert read_head_facts(path).raced == raced


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"denoiser": "0" * 64}, "was trained on the network 000000000000"),
        ({"sigma": 0.5}, "was trained for sigma 0.5"),
        ({"classes": 7}, "was trained on 7 classes"),
        (
            {"raced": raced_with(load_config("digits", ["noise_levels.weights=linear-s"]))},
            "foretells races of other votes .*weights 'linear-s' against 'edm'",
        ),
        ({"shas": [DIGITS.image_sha(int(DIGITS.ids[1]))]}, "was trained on 1 of the images"),
    ],
)
def test_a_head_of_something_else_is_refused_before_any_work(tmp_path, made, said):
    head = written(tmp_path / "head.safetensors", **made)
    with pytest.raises(ConfigError, match=said):
        certify(tables(head=head), tmp_path / "run", local=True)
    assert not (tmp_path / "run").exists()


def test_a_rule_without_its_head_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a head"):
        load_config({"sift": {"rule": "shortlist"}})
    with pytest.raises(CheckpointError, match="is no file"):
        certify(tables(head="nothing"), tmp_path / "run", local=True)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match="damaged"):
        certify(tables(head=str(other)), tmp_path / "run", local=True)


def test_votes_of_another_head_are_votes_of_another_run(tmp_path):
    run = certify(tables(), tmp_path / "run", local=True)
    head = written(tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match=r"weights\.head"):
        certify(tables(head=head), tmp_path / "run", local=True)
    assert "weights.head" in run.document.votes_identity
