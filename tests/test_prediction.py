"""PREDICT: against the exact law of the votes, and through the classifier."""

import math

import numpy as np
import pytest

from diffcert_ray import ABSTAIN, Classifier
from diffcert_ray.certificates.prediction import prediction
from diffcert_ray.errors import ConfigError
from tests.worlds import small_world

SETTINGS = {"noise_levels": {"levels": 24}}


def two_sided(top: int, other: int) -> float:
    """P(at least as uneven as top : other) for a fair coin, by exact summation."""
    total, most = top + other, max(top, other)
    tail = sum(math.comb(total, k) for k in range(most, total + 1)) / 2**total
    return min(1.0, 2 * tail)


@pytest.mark.parametrize("other", [0, 1, 3, 10, 40])
def test_abstains_exactly_where_the_two_sided_test_does_not_reject(other):
    for top in range(other + 1, other + 60):
        expected = 7 if two_sided(top, other) <= 0.01 else ABSTAIN
        assert prediction({7: top, 2: other, 5: min(other, 1)}, alpha=0.01) == expected


def test_an_exact_tie_abstains():
    assert prediction({0: 500, 1: 500}) == ABSTAIN


def test_unresolved_votes_count_for_the_runner_up():
    assert prediction({0: 60, 1: 20}, alpha=0.001) == 0
    assert prediction({0: 60, 1: 20, -2: 20}, alpha=0.001) == ABSTAIN
    assert prediction({-2: 5}) == ABSTAIN


def test_a_wrong_class_is_returned_with_probability_at_most_alpha():
    """Exact law of n votes over two classes, the smoothed class at 0.51: no false alarms."""
    n, p, alpha = 40, 0.51, 0.05
    law = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    wrong = sum(w for k, w in enumerate(law) if prediction({0: k, 1: n - k}, alpha=alpha) == 1)
    assert 0 < wrong <= alpha


@pytest.mark.parametrize(
    ("counts", "alpha", "message"),
    [
        ({}, 0.001, "at least one vote"),
        ({0: 5}, 0.0, "alpha"),
        ({0: -1, 1: 3}, 0.001, "at least 0"),
        ({-1: 3}, 0.001, "classes of at least 0"),
        ({-3: 3}, 0.001, "classes of at least 0"),
    ],
)
def test_counts_that_make_no_sense_are_refused(counts, alpha, message):
    with pytest.raises(ValueError, match=message):
        prediction(counts, alpha=alpha)


def test_a_batch_is_predicted_as_its_images_are():
    world, data = small_world(images=12)
    classifier = Classifier(world, sigma=0.25, settings=SETTINGS)
    ids = data.ids.tolist()
    batch = classifier.predict(data.pixels, ids, n=60, alpha=0.01)
    assert batch.shape == (12,)
    assert batch.dtype == np.int64
    assert {*batch} - {ABSTAIN}  # not all of them abstain
    for image, image_id, found in zip(data.pixels[:3], ids, batch, strict=False):
        single = classifier.predict(image, [image_id], n=60, alpha=0.01)
        assert single.shape == ()
        assert single == found


def test_a_prediction_is_that_of_the_classifiers_own_votes(monkeypatch):
    world, data = small_world(images=5)
    classifier = Classifier(world, sigma=0.25, settings=SETTINGS)
    monkeypatch.setattr("diffcert_ray.engine.classifier.PREDICT_VOTES", 100)  # two images at a time
    found = classifier.predict(data.pixels, n=50, alpha=0.05)
    for position, image in enumerate(data.pixels):
        votes = classifier.votes(image, position, "estimate", 0, 50)
        classes, counts = np.unique(votes, return_counts=True)
        tally = dict(zip(classes.tolist(), counts.tolist(), strict=True))
        assert found[position] == prediction(tally, alpha=0.05)


def test_bad_batches_are_refused_before_any_vote():
    world, data = small_world()
    classifier = Classifier(world, sigma=0.25, settings=SETTINGS)
    with pytest.raises(ConfigError, match="2 image_ids for 6 images"):
        classifier.predict(data.pixels, [1, 2])
    with pytest.raises(ConfigError, match="id of its own"):
        classifier.predict(data.pixels[:2], [1, 1])
    with pytest.raises(ConfigError, match="image has shape"):
        classifier.predict(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="at least one vote"):
        classifier.predict(data.pixels, n=0)
    assert classifier.nfe == 0
