"""Figures of a dataset, against counts by hand, exact sums of the binomial law, and simulation."""

import math

import mpmath
import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from diffcert_ray.certificates.metrics import (
    abstention_rate,
    acr,
    best_sigma_per_radius,
    certified_accuracy,
    p_low_distribution,
)
from diffcert_ray.certificates.radius import certificate

# image_id, correct, abstained, radius, p_low
TEN_IMAGES = [
    (0, True, False, 0.50, 0.98),
    (1, True, False, 0.25, 0.85),
    (2, True, False, 0.10, 0.66),
    (3, True, False, 0.75, 0.999),
    (4, False, False, 0.90, 0.9999),
    (5, False, True, 0.00, 0.45),
    (6, False, True, 0.00, 0.45),
    (7, True, False, 0.30, 0.88),
    (8, True, False, 0.40, 0.94),
    (9, False, False, 0.20, 0.79),
]


def table(rows=TEN_IMAGES, **changes):
    frame = pd.DataFrame(rows, columns=["image_id", "correct", "abstained", "radius", "p_low"])
    frame = frame.assign(sigma=0.25, label=1, n_a=90, n=100, alpha=0.001, bound="clopper-pearson")
    return frame.assign(**changes)


def exact_quantile(share, n, p):
    """Smallest m with P(Binomial(n, p) <= m) >= share, by exact summation."""
    p, total = mpmath.mpf(p), mpmath.mpf(0)
    for m in range(n + 1):
        total += math.comb(n, m) * p**m * (1 - p) ** (n - m)
        if total >= share:
            return m
    return n


def test_certified_accuracy_counts_right_images_with_radius_at_least_r():
    got = certified_accuracy(table(), [0.0, 0.25, 0.2500001, 0.75, 0.8])
    assert got["certified_accuracy"].tolist() == [0.6, 0.5, 0.4, 0.1, 0.0]
    assert got["radius"].tolist() == [0.0, 0.25, 0.2500001, 0.75, 0.8]
    assert got["n_images"].tolist() == [10] * 5
    assert got["sigma"].tolist() == [0.25] * 5


def test_an_abstention_is_not_certified_even_at_radius_zero():
    rows = [(0, True, True, 0.0, 0.4), (1, True, False, 0.1, 0.7)]
    assert certified_accuracy(table(rows), [0.0])["certified_accuracy"].tolist() == [0.5]


def test_interval_is_the_exact_two_sided_binomial_one():
    got = certified_accuracy(table(), [0.0, 0.25, 0.8], confidence=0.9)
    for certified, row in zip([6, 5, 0], got.itertuples(), strict=True):
        oracle = stats.binomtest(certified, 10).proportion_ci(0.9, method="exact")
        assert row.interval_low == pytest.approx(oracle.low, rel=1e-9)
        assert row.interval_high == pytest.approx(oracle.high, rel=1e-9)


@pytest.mark.parametrize(("alpha", "rho"), [(0.05, 0.01), (0.2, 0.001), (0.001, 0.05)])
def test_guaranteed_low_takes_off_the_binomial_quantile(alpha, rho):
    faulty = exact_quantile(1 - mpmath.mpf(rho), 10, alpha)
    got = certified_accuracy(table(alpha=alpha), [0.0, 0.75], rho=rho)["guaranteed_low"]
    assert got.tolist() == pytest.approx([max(0, 6 - faulty) / 10, max(0, 1 - faulty) / 10])


def test_guaranteed_low_exceeds_the_truth_in_at_most_rho_of_datasets():
    # No image reaches r, each misses it by a hair, so every certified one is a fault: the worst
    # case. 300 datasets at rho = 0.05; a true rate of 0.05 fails this with probability < 1e-6.
    alpha, rho, n, datasets = 0.05, 0.05, 500, 300
    radius = np.array([certificate(k, n, sigma=0.25, alpha=alpha).radius for k in range(n + 1)])
    rng = np.random.default_rng(1)
    n_a = rng.binomial(n, special.ndtr(0.9999), size=(datasets, 200))
    images = pd.DataFrame({"image_id": range(200), "correct": True, "label": 1, "sigma": 0.25})
    images = images.assign(alpha=alpha, bound="clopper-pearson", n=n, abstained=False)
    wrong = 0
    for counts in n_a:
        certificates = images.assign(radius=radius[counts])
        got = certified_accuracy(certificates, [0.25], rho=rho)
        wrong += bool(got["guaranteed_low"].iloc[0] > 0.0)
    assert stats.binom.sf(wrong - 1, datasets, rho) > 1e-6
    assert wrong > 0


def test_several_sigmas_give_one_block_each():
    wider = table(sigma=0.5).assign(radius=lambda rows: 2 * rows["radius"])
    got = certified_accuracy(pd.concat([wider, table()]), [0.3, 0.6])
    assert got["sigma"].tolist() == [0.25, 0.25, 0.5, 0.5]
    assert got["radius"].tolist() == [0.3, 0.6, 0.3, 0.6]
    assert got["certified_accuracy"].tolist() == [0.4, 0.1, 0.5, 0.4]
    single = certified_accuracy(wider, [0.3, 0.6])
    pd.testing.assert_frame_equal(got[2:].reset_index(drop=True), single)


def test_images_without_a_certificate_count_as_not_certified():
    got = certified_accuracy(table(), [0.0, 0.25], asked={0.25: 40, 0.5: 40})
    assert got["certified_accuracy"].tolist() == [6 / 40, 5 / 40]
    assert got["n_images"].tolist() == [40, 40]
    assert got["n_missing"].tolist() == [30, 30]
    # Binomial(40, 0.001) is above 1 with probability 0.0008: one faulty one is taken off, of 40.
    assert got["guaranteed_low"].tolist() == [5 / 40, 4 / 40]
    for certified, row in zip([6, 5], got.itertuples(), strict=True):
        worst = stats.binomtest(certified, 40).proportion_ci(0.95, method="exact")
        best = stats.binomtest(certified + 30, 40).proportion_ci(0.95, method="exact")
        assert row.interval_low == pytest.approx(worst.low, rel=1e-9)
        assert row.interval_high == pytest.approx(best.high, rel=1e-9)


def test_what_the_missing_images_turn_out_to_be_only_raises_the_figures():
    rng = np.random.default_rng(0)
    whole = pd.DataFrame({"image_id": range(50), "correct": rng.random(50) < 0.8})
    whole = whole.assign(abstained=False, radius=rng.random(50), p_low=rng.random(50))
    whole = (
        table()
        .iloc[:0]
        .merge(whole, how="right")
        .assign(sigma=0.25, label=1, n_a=90, n=100, alpha=0.001, bound="sequential")
    )
    easy = whole[whole["correct"] & (whole["radius"] > 0.5)]  # what finishes first
    radii = [0.0, 0.4, 0.8]
    all_of_them = certified_accuracy(whole, radii)
    so_far = certified_accuracy(easy, radii, asked={0.25: 50})
    biased = certified_accuracy(easy, radii)
    for name in ("certified_accuracy", "guaranteed_low", "interval_low"):
        assert (so_far[name] <= all_of_them[name]).all()
        assert (biased[name][:2] > all_of_them[name][:2]).all()
    assert (so_far["interval_high"] >= all_of_them["interval_high"]).all()
    assert acr(easy, asked={0.25: 50})["acr"][0] <= acr(whole)["acr"][0] < acr(easy)["acr"][0]


def test_missing_images_have_no_radius_no_p_low_and_may_abstain():
    asked = {0.25: 20}
    assert acr(table(), asked=asked)["acr"].tolist() == pytest.approx([2.3 / 20])
    low = p_low_distribution(table(), asked=asked)
    assert low["share_at_most"].tolist() == pytest.approx([12 / 20, *np.arange(13, 21) / 20])
    got = abstention_rate(table(), asked=asked)
    assert got["abstention_rate"].tolist() == [2 / 20]
    least = stats.binomtest(2, 20).proportion_ci(0.95, method="exact")
    most = stats.binomtest(12, 20).proportion_ci(0.95, method="exact")
    assert got["interval_low"].iloc[0] == pytest.approx(least.low, rel=1e-9)
    assert got["interval_high"].iloc[0] == pytest.approx(most.high, rel=1e-9)
    for figure in (acr, p_low_distribution, abstention_rate):
        assert set(figure(table(), asked=asked)["n_missing"]) == {10}
        assert set(figure(table())["n_missing"]) == {0}


def test_no_best_sigma_is_chosen_before_all_images_have_a_certificate():
    both = pd.concat([table(), table(sigma=0.5)])
    assert len(best_sigma_per_radius(both, [0.25], asked={0.25: 10, 0.5: 10})) == 1
    for asked in ({0.25: 10, 0.5: 11}, {0.25: 10, 0.5: 10, 1.0: 10}):
        with pytest.raises(ValueError, match="finish the run"):
            best_sigma_per_radius(both, [0.25], asked=asked)


def test_asked_of_another_run_is_refused():
    for asked in ({0.25: 9}, {0.5: 10}):
        with pytest.raises(ValueError, match="10 have a certificate"):
            certified_accuracy(table(), [0.25], asked=asked)


def test_acr_counts_wrong_and_abstaining_images_as_zero():
    got = acr(table())
    assert got["acr"].tolist() == pytest.approx([(0.5 + 0.25 + 0.1 + 0.75 + 0.3 + 0.4) / 10])
    assert got["n_images"].tolist() == [10]
    assert got["cut_off"].tolist() == [False]


def test_sequential_figures_say_that_they_were_cut_off_by_stopping():
    stopped = table(bound="sequential", n=range(100, 110))
    assert acr(stopped)["cut_off"].tolist() == [True]
    assert p_low_distribution(stopped)["cut_off"].all()
    assert len(certified_accuracy(stopped, [0.25])) == 1  # n differs by design


def test_p_low_distribution_is_the_empirical_one_over_all_images():
    got = p_low_distribution(table(label=np.nan, correct=np.nan))
    assert got["p_low"].tolist() == sorted({row[4] for row in TEN_IMAGES})
    assert got["share_at_most"].tolist() == pytest.approx([0.2, *np.arange(3, 11) / 10])
    assert not got["cut_off"].any()


def test_abstention_rate_needs_no_labels():
    got = abstention_rate(table(label=np.nan, correct=np.nan))
    oracle = stats.binomtest(2, 10).proportion_ci(0.95, method="exact")
    assert got["abstention_rate"].tolist() == [0.2]
    assert got["interval_low"].iloc[0] == pytest.approx(oracle.low, rel=1e-9)
    assert got["interval_high"].iloc[0] == pytest.approx(oracle.high, rel=1e-9)


def test_best_sigma_is_marked_as_a_selection_and_pays_for_it():
    small = table(alpha=0.05).assign(radius=lambda rows: rows["radius"].clip(upper=0.3))
    large = table(alpha=0.05, sigma=0.5).assign(
        radius=lambda rows: 2 * rows["radius"],
        correct=lambda rows: rows["correct"] & (rows["image_id"] != 1),
    )
    got = best_sigma_per_radius(pd.concat([large, small]), [0.6, 0.25], rho=0.02)
    assert got["radius"].tolist() == [0.25, 0.6]
    assert got["sigma"].tolist() == [0.25, 0.5]
    assert got["certified_accuracy"].tolist() == [0.5, 0.4]
    assert got["selected"].all()
    assert got["n_sigmas"].tolist() == [2, 2]
    assert got["alpha_per_image"].tolist() == pytest.approx([0.1, 0.1])
    alone = certified_accuracy(small, [0.25], rho=0.01, confidence=0.975)
    for column in ("guaranteed_low", "interval_low", "interval_high"):
        assert got[column].iloc[0] == pytest.approx(alone[column].iloc[0], rel=1e-12)


def test_best_of_one_sigma_is_no_selection_and_ties_go_to_the_smaller_sigma():
    alone = best_sigma_per_radius(table(), [0.25])
    assert alone["selected"].tolist() == [False]
    assert alone["alpha_per_image"].tolist() == [0.001]
    both = best_sigma_per_radius(pd.concat([table(sigma=0.5), table()]), [0.25])
    assert both["sigma"].tolist() == [0.25]


def test_best_sigma_refuses_different_images():
    with pytest.raises(ValueError, match="do not have the same images"):
        best_sigma_per_radius(pd.concat([table(), table(TEN_IMAGES[:-1], sigma=0.5)]), [0.25])


def test_unlabelled_images_are_refused_with_the_remedy():
    for unlabelled in (table(label=[np.nan] + [1] * 9), table(label=[pd.NA] + [1] * 9)):
        for figure in (
            lambda rows: certified_accuracy(rows, [0.25]),
            acr,
            lambda rows: best_sigma_per_radius(rows, [0.25]),
        ):
            with pytest.raises(ValueError, match="1 of 10 rows have no label"):
                figure(unlabelled)


MIXED = {
    "bound": ({"bound": ["sequential"] * 3 + ["clopper-pearson"] * 7}, "mixes bound="),
    "alpha": ({"alpha": [0.01] * 3 + [0.001] * 7}, "mixes alpha="),
    "n": ({"n": [100] * 3 + [200] * 7}, "mixes n=.*fixed-n bound"),
    "method": ({"method": ["dc"] * 3 + ["apndc"] * 7}, "mixes method="),
    "votes_id": ({"votes_id": ["a"] * 3 + ["b"] * 7}, "mixes votes_id="),
    "estimate": ({"bound": "estimate"}, "bound='estimate' is no certificate"),
    "repeats": ({"image_id": [0] * 10}, "image_id=0 at sigma=0.25 occurs more than once"),
    "no sigma": ({"sigma": np.nan}, "rows without sigma"),
}


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize(
    "figure", [lambda rows: certified_accuracy(rows, [0.25]), acr, p_low_distribution]
)
def test_rows_that_do_not_belong_together_are_refused(case, figure):
    changes, message = MIXED[case]
    with pytest.raises(ValueError, match=message):
        figure(table(**changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certified_accuracy(table(), []), "give at least one"),
        (lambda: certified_accuracy(table(), [math.nan]), "at least 0"),
        (lambda: certified_accuracy(table(), [0.1], rho=0.0), "rho=0.0"),
        (lambda: certified_accuracy(table(), [0.1], confidence=1.0), "confidence=1.0"),
        (lambda: best_sigma_per_radius(table(), [0.1], confidence=2.0), "confidence=2.0"),
        (lambda: certified_accuracy(table().iloc[:0], [0.1]), "no rows"),
        (lambda: certified_accuracy(table().drop(columns="n"), [0.1]), "lacks the columns n"),
        (lambda: acr(table(radius=np.nan)), "neither abstain nor have a radius"),
        (lambda: p_low_distribution(table(p_low=np.nan)), "10 rows have no p_low"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bounds_without_votes_have_a_certified_accuracy():
    direct = table(bound="lipschitz", n=2048, p_low=np.nan, n_a=pd.NA)
    assert certified_accuracy(direct, [0.25])["certified_accuracy"].tolist() == [0.5]
