"""The job that replays sifting rules on stored losses: a replay is what the engine does."""

import numpy as np
import pytest

from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.tools.exact_worlds import gaussian_world, labelled_images
from diffcert_ray.votes.units import Item, Part, Unit
from jobs.pareto import WorldSettings, cast_in_full, compared, configuration, replay

WORLD = WorldSettings(
    network="gaussian", classes=5, spread=0.1, sigma=0.25, images=2, votes=30, radii=(0.0, 0.1)
)


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "full"},
        {"rule": "exact"},
        {"rule": "paired-z", "z": 1.0, "first_level": 0.66, "first_ratio": 1.5},
    ],
    ids=lambda rule: rule["rule"],
)
def test_a_replay_votes_and_spends_as_the_engine_does(rule):
    losses = cast_in_full(WORLD, compiled=False)
    network = gaussian_world(5, 192, 0.3, 0.1, seed=0, image_shape=(3, 8, 8))
    u, _ = labelled_images(network, 2, seed=0)
    pictures = ((u + 1.0) / 2.0).float().numpy()
    base = base_classifier(configuration(WORLD, rule), network, 0.25)
    winner, nfe = replay(base.sift, losses.losses)
    for position in range(2):
        unit = Unit(0.25, position, "estimate", 0, 30)
        item = Item(0, 0.25, (Part(unit, 0, 30),))
        votes, spent = evaluate_votes(base, item, pictures.__getitem__)
        mine = losses.image == position
        assert np.bincount(winner[mine], minlength=5).tolist() == (
            np.bincount(votes, minlength=5).tolist()
        )
        assert nfe[mine].sum() + 30 == spent  # and one evaluation to denoise each


def test_front_holds_what_nothing_beats_in_both():
    losses = cast_in_full(WORLD, compiled=False)
    rules = {"full": {"rule": "full"}, "exact": {"rule": "exact"}} | {
        f"z {z}": {"rule": "paired-z", "z": z} for z in (0.5, 1.0, 2.0)
    }
    found = compared(losses, WORLD, rules)
    front = found[found.front]
    assert (front.agreement.diff().dropna() > 0).all()
    assert front.agreement.iloc[-1] == 1.0
    assert "full" not in set(front.rule)  # exact votes the same for less
