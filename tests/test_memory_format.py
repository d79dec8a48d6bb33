"""Networks with channels last: the same votes, and a votes_id of their own."""

import pytest
import torch
from torch import nn

from diffcert_ray.config.identity import canonical_hash, votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.denoisers.device import keep_channels_last
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import CheckpointError
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import small_world

SMALL = {"noise_levels": {"levels": 8}, "dataset": {"first": 2}}


def config_of(order: bool, **tables):
    return load_config(SMALL | tables | {"numerics": {"batch": 16, "channels_last": order}})


def counts(loaded, sigma: float) -> dict[int, int]:
    unit = Unit(sigma, int(loaded.dataset.ids[0]), "estimate", 0, 60)
    return dict(loaded.cast_votes(Item(0, sigma, (Part(unit, 0, 60),))).tallies[0].counts)


def is_last(filters: torch.Tensor) -> bool:
    usual = filters.is_contiguous()
    return not usual and filters.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_casts_the_same_votes_wherever_rows_stand():
    found = []
    for order in (False, True):
        config = config_of(order)
        loaded = WorkerSpec(config, weights_of(config)).load("test")
        assert is_last(loaded.networks.denoiser.model.enc["8x8_block0"].conv0.weight) == order
        assert not loaded.numerics.endswith("-positional")
        found.append(counts(loaded, 1.0))
    assert len(found[0]) > 1
    assert found[0] == found[1]


def test_a_trained_classifier_is_kept_channels_last_too():
    layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    classifier = nn.Sequential(*layers)
    for order in (False, True):
        config = config_of(order, method={"name": "classify"})
        weights = weights_of(config, None, classifier)
        loaded = WorkerSpec(config, weights, classifier=classifier).load("test")
        assert is_last(loaded.networks.classifier._network[1].weight) == order
    assert not is_last(classifier[1].weight)  # the caller's own


def test_votes_id_tells_the_order_in_memory_but_not_the_usual_one():
    ids = [
        canonical_hash(votes_identity(config_of(order), {"denoiser": "ab" * 32}))
        for order in (False, True)
    ]
    assert ids[0] != ids[1]
    assert "numerics.channels_last" not in votes_identity(config_of(False), {"denoiser": ""})


def test_a_denoiser_that_is_no_module_is_refused():
    with pytest.raises(CheckpointError, match=r"no torch module: set numerics\.channels_last"):
        keep_channels_last(small_world()[0])
