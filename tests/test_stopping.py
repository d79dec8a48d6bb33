"""When an image of a sequential run has enough votes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcert_ray.certificates.radius import certificate
from diffcert_ray.certificates.sequential import sequential_q_bound
from diffcert_ray.certificates.stopping import SequentialLooks

PLAN = {
    **{"cap": 1000, "sigma": 0.25, "radii": (0.25, 0.5), "alpha": 0.001, "futility_level": 0.01},
    **{"slack": 0.0, "taken_off": 0.0},
}


def decide(k, n, **changes):
    """What the last of the looks at cumulative counts says."""
    looks = SequentialLooks(**{**PLAN, **changes})
    pairs = zip(np.atleast_1d(k).tolist(), np.atleast_1d(n).tolist(), strict=True)
    return [looks.look(*pair) for pair in pairs][-1]


def upper_bound(k, n, level):
    """A time-uniform upper bound on the probability of a success."""
    return sequential_q_bound(n - k, n, level)


def test_unanimous_votes_stop_at_the_first_look_that_certifies_the_largest_radius():
    assert decide(350, 350) == "continue"  # 2 sigmas take 351
    assert decide(351, 351) == "certified"
    assert decide(46, 46, radii=[0.25]) == "continue"
    assert decide(47, 47, radii=[0.25]) == "certified"


def test_the_best_look_so_far_counts():
    assert decide([47, 48], [47, 60], radii=[0.25]) == "certified"
    assert decide(48, 60, radii=[0.25]) == "continue"


def test_certified_goes_before_cap_and_cap_before_futile():
    assert decide(351, 351, cap=351) == "certified"
    assert decide(350, 350, cap=350) == "cap"
    assert decide(0, 1000) == "cap"


def test_a_probability_below_the_smallest_missing_radius_is_futile():
    # p = 0.5 is far below Phi(1) = 0.841, the probability that radius 0.25 needs.
    assert decide(50, 100) == "futile"
    assert upper_bound(50, 100, PLAN["futility_level"]) < 0.841


def test_what_the_cap_is_unlikely_to_certify_is_given_up_early():
    # 0.846 is above Phi(1) = 0.8413, but 10,000 votes certify 0.25 from about 0.858 on only.
    assert certificate(8600, 10_000, sigma=0.25, bound="sequential").radius >= 0.25
    assert certificate(8500, 10_000, sigma=0.25, bound="sequential").radius < 0.25
    asked = {"cap": 10_000, "radii": [0.25], "futility_level": 0.05}
    assert decide(3384, 4000, **asked) == "futile"
    assert decide(3420, 4000, **asked) == "continue"  # 0.855
    assert decide(3384, 4000, **asked | {"cap": 10**6}) == "continue"


def test_a_larger_radius_out_of_reach_does_not_stop_a_smaller_one():
    # About 0.9 of the votes: between Phi(1) = 0.841 and Phi(2) = 0.977.
    assert upper_bound(90, 100, PLAN["futility_level"]) < 0.977
    assert decide(90, 100) == "continue"
    assert decide(90, 100, radii=[0.5]) == "futile"


def test_once_the_smaller_radius_is_certified_the_next_one_decides():
    k, n = [200, 360], [220, 390]
    first = certificate(k[:1], n[:1], sigma=0.25, bound="sequential")
    assert first.radius < 0.25
    assert decide(k[:1], n[:1]) == "continue"
    assert certificate(k, n, sigma=0.25, bound="sequential").radius >= 0.25
    assert decide(k, n) == "futile"
    assert decide(k, n, radii=[0.25]) == "certified"


def test_what_unanimous_votes_to_the_cap_cannot_certify_is_futile():
    unlikely = 1e-12  # so that only the votes left can make it futile
    assert decide(20, 21, cap=50, radii=[0.25], futility_level=unlikely) == "futile"
    assert decide(20, 21, cap=80, radii=[0.25], futility_level=unlikely) == "continue"
    assert certificate(49, 50, sigma=0.25, bound="sequential").radius < 0.25
    assert certificate(79, 80, sigma=0.25, bound="sequential").radius >= 0.25


@given(n=st.integers(1, 400), lost=st.integers(0, 60), cap=st.integers(400, 2000))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_at_level_zero_futile_means_that_the_best_continuation_fails(n, lost, cap):
    k = max(0, n - lost)
    decision = decide(k, n, cap=cap, futility_level=1e-300)
    best = certificate([k, k + cap - n], [n, cap], sigma=0.25, bound="sequential") if cap > n else 0
    now = certificate(k, n, sigma=0.25, bound="sequential").radius
    missing = [r for r in PLAN["radii"] if now < r]
    if decision == "futile":
        assert best.radius < min(missing)
    elif decision == "continue":
        assert best.radius >= min(missing)
    else:
        assert (decision == "certified") == (not missing)


def test_futility_gives_up_reachable_images_no_more_often_than_its_level():
    # p lies just above what the radius needs. 2,000 images; with a true rate of at most 0.05 the
    # share 0.076 is exceeded with probability below 1e-6 (binomial).
    rng = np.random.default_rng(5)
    n = np.arange(20, 401, 20)
    k = np.cumsum(rng.binomial(20, 0.8414, size=(2000, n.size)), axis=1)
    given_up = upper_bound(k, n, 0.05) < 0.8413
    assert 0 < given_up.any(axis=1).mean() < 0.076
    for image in range(5):
        assert decide(k[image], n, radii=[0.25], cap=10**6) == "continue"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cap": 90}, "n=100 votes are beyond the cap of 90"),
        ({"radii": []}, "give at least one"),
        ({"radii": [-0.1]}, "at least 0"),
        ({"radii": [2.5]}, "more than 8 sigma"),
        ({"futility_level": 0.0}, "futility_level=0.0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"sigma": 0.0}, "sigma=0.0"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        decide(90, 100, **changes)


@given(seed=st.integers(0, 10**6), p=st.sampled_from([0.6, 0.85, 0.97, 1.0]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_looks_taken_one_by_one_certify_what_the_best_of_all_looks_certifies(seed, p):
    votes = np.random.default_rng(seed).random(500) < p
    k, n = np.cumsum(votes)[19::20], np.arange(20, 501, 20)
    looks = SequentialLooks(**{**PLAN, "futility_level": 1e-300})
    for at in range(len(n)):
        decision = looks.look(int(k[at]), int(n[at]))
        best = certificate(k[: at + 1], n[: at + 1], sigma=0.25, bound="sequential")
        assert (decision == "certified") == (best.radius >= max(PLAN["radii"]))
        if decision != "continue":
            return
