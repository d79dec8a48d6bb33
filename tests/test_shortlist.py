"""The rule `shortlist`: which classes enter, what must not change a vote, and which heads fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffcert_ray import certify
from diffcert_ray.checkpoints.files import checkpoint_sha256
from diffcert_ray.checkpoints.head_file import load_heads, save_heads
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.conventions import ALL_CLASSES, NOT_TARGET
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.engine.votes import evaluate_item, evaluate_votes
from diffcert_ray.errors import CheckpointError, ConfigError
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.shortlist import Shortlist
from diffcert_ray.method.sift import fine_rounds
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


def test_log_odds_against_a_class_count_as_standard_errors():
    log_p = np.log([[0.8, 0.1, 0.1]])
    start = Shortlist(0.03, 0.25).head_start(log_p, np.array([0]))
    np.testing.assert_allclose(start[0], [0.0, 0.25 * np.log(8), 0.25 * np.log(8)])


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
    everything = base_of(least_p=NOTHING_DROPPED)
    race = replace(everything, sift=replace(everything.sift, rule="paired-z", shortlist=None))
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


def written(path, *, denoiser: str | None = None, sigma=SIGMA, classes=10, shas=()) -> str:
    head = ShortlistHead(classes, (1, 8, 8), (32, 4, 4), 4)
    mine = checkpoint_sha256("digits") if denoiser is None else denoiser
    save_heads(path, {sigma: head}, denoiser=mine, image_shas=shas, recipe={})
    return str(path)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"denoiser": "0" * 64}, "was trained on the network 000000000000"),
        ({"sigma": 0.5}, "was trained for sigma 0.5"),
        ({"classes": 7}, "was trained on 7 classes"),
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
