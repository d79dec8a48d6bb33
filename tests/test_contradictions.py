"""Stored certificates against their counts: exact for every bound, fast, and refused by name."""

import numpy as np
import pandas as pd
import pytest

from diffcert_ray import certificate, certified_accuracy, certify, open_run
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.recomputed import radius_of_bound, recomputed, sequential_agrees
from diffcert_ray.certificates.sequential import sequential_q_bound
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.method.grid import rounding_radius, slack
from diffcert_ray.run.counted_votes import (
    counted_votes,
    off_contradictions,
    unborne,
    vote_contradictions,
)
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.schemas import UnitRow, unit_table
from tests.worlds import settings, small_world

ALPHA, SIGMA, N0, UNIT = 0.001, 0.25, 20, 20


@pytest.mark.parametrize("bound", ["clopper-pearson", "two-class"])
@pytest.mark.parametrize("n", [1, 47, 1000, 100_000])
def test_recomputed_values_are_those_of_certificate(bound, n):
    draw = np.random.default_rng(n)
    n_a = np.unique(np.append(draw.binomial(n, draw.beta(5, 0.5, 60)), [0, n // 2, n])).astype(int)
    n_b = draw.integers(0, n - n_a + 1)
    two = bound == "two-class"
    one = [
        certificate(int(a), n, sigma=SIGMA, alpha=ALPHA, bound=bound, n_b=int(b) if two else None)
        for a, b in zip(n_a, n_b, strict=True)
    ]
    p_low, radius = np.array([c.p_low for c in one]), np.array([c.radius for c in one])
    abstained = np.array([c.abstained for c in one])
    given = recomputed(
        n_a, np.full(len(n_a), n), sigma=np.full(len(n_a), SIGMA), alpha=ALPHA, bound=bound,
        n_b=n_b if two else None,
    )  # fmt: skip
    assert given.p_low_agrees(p_low).all()
    assert given.radius_agrees(radius, abstained).all()
    assert not given.radius_agrees(radius * (1 + 1e-6), abstained)[~abstained].any()
    assert not given.radius_agrees(np.where(abstained, 0.1, radius), np.zeros_like(abstained))[
        abstained
    ].any()
    raised = p_low + 1e-6 * (1 - p_low)
    assert not given.p_low_agrees(raised).any()


def test_slack_and_what_is_taken_off_are_subtracted():
    n_a, n, sigma = np.array([990]), np.array([1000]), np.array([SIGMA])
    plain = recomputed(n_a, n, sigma=sigma, alpha=ALPHA, bound="clopper-pearson")
    less = recomputed(
        n_a, n, sigma=sigma, alpha=ALPHA, bound="clopper-pearson", slack=1e-3, taken_off=0.01
    )
    assert less.p_low_agrees(1.0 - plain.q - 1e-3).all()
    radius = radius_of_bound(plain.q + 1e-3, sigma).radius - 0.01
    assert less.radius_agrees(radius, np.array([False])).all()
    assert not less.radius_agrees(plain.radius, np.array([False])).any()


@pytest.mark.parametrize("bound", ["clopper-pearson", "two-class"])
@pytest.mark.parametrize("n", [100, 1000, 100_000])
def test_stored_certificates_agree_and_radii_a_little_above_them_do_not(bound, n):
    """Stored values are rounded down, by less than what a comparison allows."""
    two = bound == "two-class"
    off = {"slack": slack(SIGMA, 3072), "taken_off": rounding_radius(3072)}
    n_a = np.unique(np.linspace(0.6 * n, n, 40).astype(int))
    one = [
        executed_certificate(
            int(a), n, sigma=SIGMA, alpha=ALPHA, bound=bound, n_b=int(n - a) if two else None, **off
        )
        for a in n_a
    ]
    p_low, radius = np.array([c.p_low for c in one]), np.array([c.radius for c in one])
    abstained = np.array([c.abstained for c in one])
    given = recomputed(
        n_a, np.full(len(n_a), n), sigma=np.full(len(n_a), SIGMA), alpha=ALPHA, bound=bound,
        n_b=n - n_a if two else None, **off,
    )  # fmt: skip
    assert given.p_low_agrees(p_low).all()
    assert given.radius_agrees(radius, abstained).all()
    exact = given.radius - given.taken_off
    left = ~abstained & (exact > 0)
    assert left.sum() > 20
    assert (radius[left] <= exact[left]).all()
    assert not given.radius_agrees(exact + 1e-9, abstained)[left].any()


@pytest.mark.parametrize("dimensions", [0, 64, 3072])
def test_what_is_taken_off_is_the_runs_own(dimensions):
    own = {"slack": slack(SIGMA, dimensions), "taken_off": rounding_radius(dimensions)}
    row = {"sigma": SIGMA, "nfe": 9, **own}

    def wrong(**columns: float) -> bool:
        return bool(list(off_contradictions(pd.DataFrame([row | columns]), dimensions)))

    assert not wrong()
    assert not wrong(taken_off=2 * own["taken_off"])
    assert wrong(nfe=0) == (dimensions > 0)
    assert not wrong(nfe=0, slack=0.0, taken_off=0.0)
    for name in own:
        assert wrong(**{name: float(np.nextafter(own[name], -1.0))})
        assert wrong(**{name: 2.1 * own[name] + 1e-300})
        assert wrong(**{name: float("nan")})
    assert wrong(sigma=0.5) == (dimensions > 0)


def looks(images: int, count: int, seed: int = 0):
    """Cumulative votes of many images at looks every 100 votes, and their best bounds."""
    draw = np.random.default_rng(seed)
    k = draw.binomial(100, draw.beta(5, 0.5, images)[:, None], (images, count)).cumsum(1)
    n = np.broadcast_to(100 * np.arange(1, count + 1), k.shape)
    pairs, where = np.unique(np.stack([k.ravel(), n.ravel()]), axis=1, return_inverse=True)
    q = sequential_q_bound(*pairs, ALPHA)[where.reshape(-1)].reshape(k.shape).min(1)
    return np.repeat(np.arange(images), count), k.ravel(), n.ravel(), q


def test_a_sequential_bound_is_told_from_one_that_is_a_millionth_away():
    image, k, n, q = looks(300, 10)
    assert sequential_agrees(q, image, k, n, ALPHA).all()
    assert not sequential_agrees(q * (1 - 1e-6), image, k, n, ALPHA).any()
    low = q < 1 - 1e-5
    assert not sequential_agrees(q * (1 + 1e-6), image, k, n, ALPHA)[low].any()


@pytest.mark.parametrize("bound", ["clopper-pearson", "two-class", "sequential"])
def test_fifty_thousand_certificates_are_compared_with_their_votes(bound):
    """A table of this size has 550,000 units."""
    images, n = 50_000, 1000
    draw = np.random.default_rng(0)
    group = units_of_many(images, n, draw)
    table, done = group
    found = list(vote_contradictions(table.assign(bound=bound), alpha=ALPHA, bound=bound))
    votes = counted_votes(done, table, n0=100, unit=100)
    found += unborne(table, votes, alpha=ALPHA, bound=bound)
    assert all(0 <= one.rows.min() <= one.rows.max() < images for one in found)
    assert (votes.estimate == n).all()
    assert (votes.select == 100).all()


def units_of_many(images: int, n: int, draw: np.random.Generator):
    """Certificates of zero radius and their units, as flat arrays made at once."""
    from diffcert_ray.storage.done_units import UnitGroup

    def group(units: int) -> UnitGroup:
        rows = images * units
        a = draw.binomial(100, np.repeat(draw.beta(5, 0.5, images), units)).astype(np.int32)
        counts = np.stack([a, 100 - a], 1).ravel()
        start = np.tile(100 * np.arange(units, dtype=np.int32), images)
        ids = np.repeat(np.arange(images), units)
        return UnitGroup(
            ids, start, start + 100, np.full(rows, -1, np.int32), 2 * np.arange(rows + 1),
            np.tile(np.array([3, 7], np.int32), rows), counts, np.ones(rows, np.int64),
            np.zeros(rows), np.arange(images), units * np.arange(images + 1),
        )  # fmt: skip

    done = DoneUnits({(SIGMA, "select"): group(1), (SIGMA, "estimate"): group(n // 100)}, {})
    columns = {
        "sigma": SIGMA, "image_id": np.arange(images), "label": 3, "predicted": 3,
        "correct": True, "abstained": False, "radius": 0.1, "p_low": 0.7,
        "n_a": draw.binomial(n, 0.9, images), "n": n, "n0": 100, "n0_used": 100, "nfe": 1,
        "slack": 0.0, "taken_off": 0.0,
    }  # fmt: skip
    return pd.DataFrame(columns), done


def unit(stream: str, start: int, counts: dict[int, int], image_id: int = 5) -> UnitRow:
    classes, votes = zip(*sorted(counts.items()), strict=True)
    return UnitRow(
        SIGMA, image_id, "sha", stream, start, start + sum(votes), -1, classes, votes, 1, 0.0,
        "cpu", "kind", "w", 0,
    )  # fmt: skip


def test_votes_are_counted_as_the_run_counts_them():
    rows = [
        unit("select", 0, {3: 10, 7: 10}),  # a tie goes to the lowest class
        unit("estimate", 0, {3: 15, 7: 3, -2: 2}),
        unit("estimate", 20, {3: 18, 7: 2}),
        unit("estimate", 40, {3: 20}),  # beyond n
        unit("estimate", 0, {7: 20}, image_id=6),  # without a selection
    ]
    order = sorted(rows, key=lambda r: (r.sigma, r.stream, r.image_id, r.start))
    table = unit_table(order)
    encoded = table.set_column(3, "stream", table["stream"].dictionary_encode())
    done = DoneUnits.from_table(encoded)
    asked = pd.DataFrame({"sigma": SIGMA, "image_id": [6, 5, 9], "n": [20, 40, 40]})
    votes = counted_votes(done, asked, n0=N0, unit=UNIT)
    assert votes.select.tolist() == [0, 20, 0]
    assert votes.chosen.tolist() == [-1, 3, -1]
    assert votes.estimate.tolist() == [20, 40, 0]
    assert votes.n_a.tolist() == [0, 33, 0]
    assert votes.n_b[1] == 5 + 2
    own = votes.look_row == 1
    assert votes.look_k[own].tolist() == [15, 33]
    assert votes.look_n[own].tolist() == [20, 40]


@pytest.mark.parametrize("bound", ["clopper-pearson", "two-class", "sequential"])
def test_an_honest_run_has_no_contradiction_by_any_bound(tmp_path, bound):
    world, data = small_world()
    votes = {"bound": bound, "sigmas": [0.25, 0.5]}
    run = certify(settings(votes=votes), tmp_path / "r", local=True, denoiser=world, dataset=data)
    examined = open_run(tmp_path / "r").examined()
    assert examined.contradictions == []
    assert examined.odd == []
    assert len(run.certificates()) == 2 * len(data)


def test_a_run_is_read_once_until_something_is_added(tmp_path):
    world, data = small_world()
    run = certify(settings(), tmp_path / "r", local=True, denoiser=world, dataset=data)
    first = run.examined()
    assert run.examined() is first
    certificates = run.certificates()
    certificates["radius"] = 9.0  # the caller's copy
    assert run.certificates()["radius"].max() < 9.0
    (row,) = run.store.certificates().slice(0, 1).to_pylist()
    from diffcert_ray.storage.schemas import CertificateRow

    with run.store.writer() as writer:
        writer.add_certificates([CertificateRow(**row | {"radius": 2 * row["radius"] + 1})])
    with pytest.raises(StoreError, match=r"1 certificate contradicts .* image 1\d\d at sigma 0.25"):
        run.certificates()


def test_a_configuration_that_is_not_that_of_the_votes_is_refused(tmp_path):
    world, data = small_world()
    certify(settings(), tmp_path / "r", local=True, denoiser=world, dataset=data)
    document = tmp_path / "r" / "run.toml"
    text = document.read_text()
    document.write_text(text.replace("\nseed = 0", "\nseed = 5"))
    with pytest.raises(ConfigError, match=r"votes\.seed 0 for its votes, but its .* gives 5"):
        open_run(tmp_path / "r")
    document.write_text(text.replace("images = 6", "images = 2"))
    with pytest.raises(ConfigError, match="document_id"):
        open_run(tmp_path / "r")
    document.write_text(text.replace('checkpoint = "digits"', 'checkpoint = "elsewhere"'))
    assert open_run(tmp_path / "r").config.model.checkpoint == "elsewhere"


@pytest.mark.parametrize("columns", [{"correct": True}, {"abstained": True}, {"predicted": -1}])
def test_figures_of_rows_that_contradict_themselves_are_refused(columns):
    row = {"sigma": 0.25, "image_id": 3, "label": 1, "predicted": 2, "correct": False}
    row |= {"abstained": False, "radius": 0.1, "alpha": 0.001, "bound": "two-class", "n": 100}
    certified_accuracy(pd.DataFrame([row]), [0.0])
    with pytest.raises(ValueError, match="1 rows contradict themselves, first image_id=3"):
        certified_accuracy(pd.DataFrame([row | columns]), [0.0])
