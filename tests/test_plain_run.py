"""Plain certificates through the run machinery, against losses computed one by one."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffcert_ray.certificates.betting import UnitSums
from diffcert_ray.certificates.lipschitz import plain_certificate
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import Dataset
from diffcert_ray.engine.losses import (
    draw_losses,
    evaluate_loss_item,
    pair_losses,
    score_gaps,
)
from diffcert_ray.errors import ConfigError, DatasetError, StoreError
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.plain.plan import plain_levels
from diffcert_ray.plain.stages import ImageLosses, LossStages
from diffcert_ray.plain.units import LossItem, LossResult, LossUnit, UnitLosses
from diffcert_ray.report.files import report_files
from diffcert_ray.report.series import Series
from diffcert_ray.run.certify import certify
from diffcert_ray.run.loss_rows import LossRows, estimates, largest_loss, loss_row, recompute_plain
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.stored import open_run
from diffcert_ray.run.stored_losses import StoredLosses, read_losses
from diffcert_ray.storage import writer as writing
from diffcert_ray.storage.compaction import compact
from diffcert_ray.tools.exact_worlds import GaussianClasses, gaussian_world, labelled_images

DRAWS, UNIT, CLASSES = 80, 32, 4  # the last unit is shorter


def separated_world() -> tuple[GaussianClasses, Dataset]:
    """Five images of four classes so far apart that 80 draws certify them."""
    world = gaussian_world(CLASSES, 16, 0.15, 0.6, 1, image_shape=(1, 4, 4))
    u, labels = labelled_images(world, 5, 1)
    pixels = ((u + 1) / 2).float().clamp(0, 1).numpy()
    names = tuple(str(k) for k in range(CLASSES))
    ids = np.arange(100, 105)  # ids are not positions
    return world, Dataset("world", "test", ids, labels.numpy(), pixels, names, "five images")


def plain_settings(**votes: object) -> dict:
    return {
        "name": "plain",
        "method": {"name": "dc"},
        "noise_levels": {"weights": "linear-s", "levels": 2, "min": 0.5, "max": 2.0},
        "votes": {"bound": "local", "alpha": 0.05, "radii": [0.0], "seed": 3} | votes,
        "plain": {"draws": DRAWS, "unit": UNIT},
        "numerics": {"batch": 32},
    }


def run_of(folder: Path, **options: object):
    world, data = separated_world()
    config = options.pop("config", plain_settings())
    return certify(
        config, folder, local=True, denoiser=world, dataset=data, **({"images": None} | options)
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory):
    """A run by both bounds."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    first = run_of(folder)
    second = run_of(folder, config=plain_settings(bound="lipschitz"))
    return first, second


def stored(run) -> StoredLosses:
    return read_losses(run.store, 2, CLASSES)


def losses_one_by_one(x: np.ndarray, image_id: int, s: np.ndarray, seed: int) -> np.ndarray:
    """The definition, a single evaluation at a time: [M, T, K]."""
    world, _ = separated_world()
    inside = torch.from_numpy(np.clip(x, 0.0, 1.0))
    u = 2.0 * inside - 1.0
    noise = NoiseSource(seed, 0.0, x.size)
    out = np.empty((DRAWS, len(s), CLASSES))
    for draw in range(DRAWS):
        for level in range(len(s)):
            address = [np.array([v]) for v in (image_id, 1, draw)]
            eps = noise.normal(*address, level).reshape(1, *x.shape)
            z = u[None] + float(s[level]) * eps
            for k in range(CLASSES):
                h = world(z, torch.tensor([s[level]], dtype=torch.float32), torch.tensor([k]))
                pixels = (torch.clip(h, -1, 1) + 1) / 2
                error = pixels.double() - inside.double()
                out[draw, level, k] = float((error**2).mean())
    return out


@pytest.mark.parametrize("bound", ["local", "lipschitz"])
def test_stored_certificate_is_that_of_losses_computed_one_by_one(clean, bound: str) -> None:
    _, data = separated_world()
    table = clean[1].certificates().set_index(["bound", "image_id"])
    s, weights = plain_levels(load_config(plain_settings()))
    image_id = int(data.ids[1])
    x = data.image(image_id)
    losses = losses_one_by_one(x, image_id, s, seed=3)
    expected = plain_certificate(
        UnitSums.from_draws(losses, UNIT),
        sigma_t=s / 2,
        weights=weights,
        dimensions=x.size,
        alpha=0.05,
        bound=bound,
        ceiling=largest_loss(x),
    )
    row = table.loc[(bound, image_id)]
    assert expected.radius > 0  # else the comparison says little
    assert row["radius"] == pytest.approx(expected.radius, rel=1e-4)  # float32 outputs
    assert row["predicted"] == expected.predicted
    assert (row["n"], row["n_a"], row["n0"], row["sigma"]) == (DRAWS, 0, 0, 0.0)
    assert np.isnan(row["p_low"])


def test_every_image_is_certified_by_both_bounds_from_one_set_of_losses(clean) -> None:
    first, second = clean
    assert first.outcome.complete
    assert first.outcome.nfe == 5 * DRAWS * 2 * CLASSES
    assert second.outcome.complete
    assert second.outcome.nfe == 0
    table = second.certificates()
    assert table.groupby("bound").size().to_dict() == {"local": 5, "lipschitz": 5}
    abstained = table.pivot(index="image_id", columns="bound", values="abstained")
    assert (abstained["local"] == abstained["lipschitz"]).all()


def test_continued_run_has_the_bits_of_a_clean_one(clean, tmp_path: Path) -> None:
    def stop_after(polls: int):
        asked = iter(range(polls))
        return lambda: next(asked, None) is None

    config = plain_settings()
    config["execution"] = {"item_s": 1e-9, "flush_s": 1e-3}
    spent = []
    for polls in (2, 2, 1000):
        run = run_of(tmp_path / "run", config=config, should_stop=stop_after(polls))
        spent.append((run.outcome.complete, run.outcome.nfe))
    assert [complete for complete, _ in spent] == [False, False, True]
    assert all(nfe > 0 for _, nfe in spent)
    assert sum(nfe for _, nfe in spent) == clean[0].outcome.nfe  # nothing was evaluated twice
    here, there = stored(run), stored(clean[0])
    np.testing.assert_array_equal(here.units, there.units)
    np.testing.assert_array_equal(here.sums, there.sums)
    np.testing.assert_array_equal(here.squares, there.squares)
    columns = ["image_id", "predicted", "radius"]
    local = clean[1].certificates().query("bound == 'local'").reset_index(drop=True)
    assert run.certificates()[columns].equals(local[columns])


def test_image_with_a_missing_unit_gets_no_certificate(clean) -> None:
    _, data = separated_world()
    plan = plan_of(load_config(plain_settings()), data)
    whole = stored(clean[0])
    lost = whole.units[4]
    kept = np.ones(len(whole.units), bool)
    kept[4] = False
    parts = [getattr(whole, n)[kept] for n in ("units", "sums", "squares", "nfe", "seconds")]
    found = recompute_plain(
        plan, StoredLosses(*parts, 0, {}, np.array([], object)), data.image, "local"
    )
    assert [image.image_id for image, _ in found] == [i for i in data.ids if i != lost[0]]
    short = ImageLosses(plan, int(lost[0]))
    with pytest.raises(ValueError, match="lacks draws"):
        short.unit_sums()


def test_recomputed_certificates_equal_the_stored_ones_and_label_the_estimate(clean) -> None:
    _, data = separated_world()
    plan = plan_of(load_config(plain_settings()), data)
    for bound in ("local", "lipschitz"):
        rows = clean[1].certificates().query("bound == @bound").set_index("image_id")
        for image, found in recompute_plain(plan, stored(clean[0]), data.image, bound):
            assert rows.loc[image.image_id, "radius"] == found.radius
            assert found.estimated_radius > found.radius


def test_unit_has_the_same_bits_in_any_item() -> None:
    world, data = separated_world()
    units = [LossUnit(int(i), a, a + 7) for i in data.ids[:3] for a in (0, 7)]
    options = {"s": np.array([0.5, 1.5]), "seed": 0, "batch": 16}
    together = evaluate_loss_item(world, LossItem(0, tuple(units[::-1])), data.image, **options)
    for unit, found in zip(units[::-1], together.tallies, strict=True):
        alone = evaluate_loss_item(world, LossItem(1, (unit,)), data.image, **options).tallies[0]
        assert found.unit == unit
        assert np.array_equal(alone.sums, found.sums)
        assert np.array_equal(alone.squares, found.squares)
    assert together.nfe == 6 * 7 * 2 * CLASSES
    assert (together.nfe + together.padded) % 16 == 0


def test_losses_are_those_of_the_projected_image_and_stay_in_the_unit_range() -> None:
    world, _ = separated_world()

    class Wild:
        image_shape, num_classes = world.image_shape, CLASSES

        def __call__(self, u, s, y=None):
            out = 1e9 * world(u, s, y)
            out[:, :, 0] = torch.nan
            return out

    def losses_of(x: np.ndarray) -> np.ndarray:
        draws = np.arange(6)
        ids = np.zeros_like(draws)
        options = {"s": np.array([0.5, 1.5]), "seed": 0, "batch": 16}
        return draw_losses(Wild(), lambda _: x, ids, draws, **options)

    outside = (np.random.default_rng(0).normal(0.5, 1.0, world.image_shape)).astype(np.float32)
    inside = np.clip(outside, 0.0, 1.0)
    assert (outside != inside).any()
    found = losses_of(outside)
    np.testing.assert_array_equal(found, losses_of(inside))
    assert found.min() >= 0.0
    assert found.max() <= largest_loss(outside) + 1e-6


def fake_result(item: LossItem, value: float = 0.5) -> LossResult:
    tallies = tuple(
        UnitLosses(u, np.full((2, CLASSES), value), np.full((2, CLASSES), value), 1, 1.0)
        for u in item.units
    )
    return LossResult(item.item_id, tallies, 1, 0, 1.0, "w", "cpu", "kind")


def small_plan():
    _, data = separated_world()
    return plan_of(load_config(plain_settings()), data)


def test_given_up_item_costs_its_image_the_certificate_and_no_other() -> None:
    stages = LossStages(small_plan(), lambda image_id: [])
    items = []
    while (item := stages.take(1.0)) is not None:
        items.append(item)
    assert stages.abandon(items[1]) == [(0.0, items[1].units[0].image_id)]
    for item in items[::-1]:
        if item is not items[1]:
            stages.deliver(fake_result(item))
    assert stages.finished
    given_up = {unit.image_id for unit in items[1].units}
    assert {i.image_id for i in stages.finished_images} == {*small_plan().image_ids} - given_up


def test_second_delivery_changes_nothing() -> None:
    stages = LossStages(small_plan(), lambda image_id: [])
    item = stages.take(1e9)
    assert item is not None
    assert len(stages.deliver(fake_result(item))) == len(item.units)
    assert stages.deliver(fake_result(item, 0.1)) == []
    assert stages.votes_done == item.votes


def deliver_again(run, numerics: str, factor: float = 1 + 1e-15) -> None:
    """Store a unit once more, with slightly other losses, as by a worker of a numerics kind."""
    whole = stored(run)
    unit = whole.of(int(whole.units[0, 0]))[0]
    changed = UnitLosses(unit.unit, unit.sums * factor, unit.squares * factor**2, unit.nfe, 1.0)
    sha = separated_world()[1].image_sha(unit.unit.image_id)
    with run.store.writer() as writer:
        writer.meet_kind(numerics, {})
        result = LossResult(0, (changed,), 1, 0, 1.0, "w", "cpu", numerics)
        writer.add_losses([loss_row(changed, result, sha)])


def test_other_deliveries_of_one_kind_are_refused_and_of_another_kind_counted(
    clean, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", images=(0, 1))
    whole = stored(run)
    kind = next(iter(run.outcome.numerics))
    deliver_again(run, "another")
    assert stored(run).differing == 1
    np.testing.assert_array_equal(stored(run).sums, whole.sums)  # the first delivery counts
    deliver_again(run, kind)
    with pytest.raises(StoreError, match="one numerics kind differ"):
        stored(run)


def test_certificates_follow_losses_of_another_kind_that_count_instead(
    clean, tmp_path: Path, monkeypatch
) -> None:
    run = run_of(tmp_path / "run", images=(0, 1))
    before = run.certificates()
    monkeypatch.setattr(writing, "writer_name", lambda: "00000000T000000Z-0")  # sorts first
    deliver_again(run, "another", 0.9)
    monkeypatch.undo()
    again = run_of(tmp_path / "run", images=(0, 1))
    assert again.outcome.nfe == 0
    after = again.certificates()
    assert (after["radius"] != before["radius"]).all()
    data = separated_world()[1]
    plan = plan_of(
        again.config,
        dataclasses.replace(data, ids=data.ids[:1], labels=data.labels[:1], pixels=data.pixels[:1]),
    )
    [(_, given)] = recompute_plain(plan, stored(again), data.image, plan.bound)
    assert after["radius"].tolist() == [given.radius]


def test_run_refuses_other_draws_units_alpha_and_votes(clean) -> None:
    folder = Path(clean[0].address)
    for change, message in (
        ({"plain": {"draws": DRAWS + UNIT, "unit": UNIT}}, "plain.draws is 112"),
        ({"plain": {"draws": DRAWS, "unit": 16}}, "plain.unit: run 32, now 16"),
        ({"votes": plain_settings()["votes"] | {"alpha": 0.01}}, "votes.alpha is 0.01"),
        ({"votes": {"bound": "clopper-pearson", "radii": [0.0]}}, "another configuration"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_of(folder, config=plain_settings() | change)


def test_losses_are_not_combined_with_pixels_that_have_changed(clean, tmp_path: Path) -> None:
    world, data = separated_world()
    run_of(tmp_path / "run", images=(0, 2))
    changed = dataclasses.replace(data, pixels=data.pixels * np.float32(0.5))  # same fingerprint
    for bound in ("local", "lipschitz"):
        config = plain_settings(bound=bound)
        with pytest.raises(ConfigError, match=r"image 100 has pixels \w+, but the run's votes"):
            certify(config, tmp_path / "run", local=True, denoiser=world, dataset=changed)
    plan = plan_of(load_config(plain_settings()), data)
    image, _ = next(iter(recompute_plain(plan, stored(clean[0]), data.image, "local")))
    rows = LossRows("id", {100: 0}, data.image_sha, data.image)
    assert rows.certificate(image).image_id == 100
    rows = dataclasses.replace(rows, pixels=changed.image)
    with pytest.raises(DatasetError, match="image 100 has changed since the run was started"):
        rows.certificate(image)


def test_plain_bounds_need_the_plain_method() -> None:
    with pytest.raises(ConfigError, match=r'set method.name = "dc"'):
        load_config(plain_settings() | {"method": {"name": "apndc"}})
    with pytest.raises(ConfigError, match="reference"):
        load_config(plain_settings() | {"noise_levels": {"weights": "reference", "grid": "linear"}})


def test_shipped_preset_stays_between_levels_one_and_three() -> None:
    config = load_config("digits-local")
    s, weights = plain_levels(config)
    assert ((s > 1.0) & (s <= 3.0)).all()
    assert weights.sum() == pytest.approx(1.0)
    assert config.plain.draws % config.plain.unit == 0


def test_opened_run_knows_that_it_has_no_votes(clean) -> None:
    run = open_run(clean[0].address)
    assert run.config.kind_name == "losses"
    assert run.document.votes_identity["plain.unit"] == UNIT
    assert not any(key.startswith("sift") for key in run.document.votes_identity)


def test_score_gap_is_the_weighted_loss_difference_and_has_its_slope() -> None:
    world, data = separated_world()
    x = torch.from_numpy(data.pixels[:3]).double().clamp(0.05, 0.95)
    a, b = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])
    s, weights = torch.tensor([0.5, 1.5]).double(), torch.tensor([0.25, 0.75]).double()
    eps = torch.randn(6, 2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()

    def gaps(at: torch.Tensor) -> torch.Tensor:
        return score_gaps(pair_losses(world, at, a, b, eps, s), weights)

    u = 2 * x - 1
    for draw in range(6):
        expected = torch.zeros(3).double()
        for level in range(2):
            z = u + s[level] * eps[draw, level]
            for k, sign in ((a, -1.0), (b, 1.0)):
                h = world(z, s[level].repeat(3), k).clamp(-1, 1)
                loss = (((h - u) / 2) ** 2).flatten(1).mean(dim=1)
                expected += sign * weights[level] * loss
        torch.testing.assert_close(gaps(x)[draw], expected, rtol=0, atol=1e-12)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(gaps(point).mean(), point)
    step = 1e-5
    central = (gaps(x + step * direction) - gaps(x - step * direction)) / (2 * step)
    slope = (gradient * direction).sum()
    torch.testing.assert_close(slope, central.mean(), rtol=1e-5, atol=1e-8)


def test_estimate_is_never_called_certified(clean) -> None:
    _, data = separated_world()
    plan = plan_of(load_config(plain_settings()), data)
    line = estimates(plan, stored(clean[0]), data.image, "local")
    radii = [f for _, f in recompute_plain(plan, stored(clean[0]), data.image, "local")]
    certified, estimated = (
        np.median([getattr(f, name) for f in radii]) for name in ("radius", "estimated_radius")
    )
    before, after = line.split("; estimate, NOT certified: ")
    assert 0 <= certified - float(before.rsplit(" ", 1)[1]) < 1e-4  # rounded down
    assert after.startswith(f"{estimated:.4f}")


def test_report_of_a_plain_run_promises_the_plain_classifier(clean) -> None:
    table = clean[1].certificates()
    for bound in ("local", "lipschitz"):
        rows = table[table["bound"] == bound]
        text = report_files([Series("plain", "title", rows, (0.0,))])["table.md"].decode()
        assert "plain diffusion classifier" in " ".join(text.split())
        assert "smoothed" not in text


def test_no_more_draws_are_spent_on_a_given_up_image() -> None:
    stages = LossStages(small_plan(), lambda image_id: [])
    first = stages.take(1.0)
    assert first is not None
    ((_, lost),) = stages.abandon(first)
    later = []
    while (item := stages.take(1.0)) is not None:
        later += [unit.image_id for unit in item.units]
    assert sorted(set(later)) == [i for i in small_plan().image_ids if i != lost]


def test_compacted_losses_have_the_same_bits_and_the_run_continues_from_them(
    clean, tmp_path: Path
) -> None:
    config = plain_settings()
    config["execution"] = {"item_s": 1e-9, "flush_s": 1e-3}
    run = run_of(tmp_path / "run", config=config, images=(0, 3))
    before, parts = stored(run), len(run.store.location.list("losses"))
    assert parts > 1
    report = compact(run.store, delete_sources=True)
    assert report.deleted == parts + len(run.certificates())
    assert run.store.location.list("losses") == []
    for name in ("units", "sums", "squares", "nfe"):
        np.testing.assert_array_equal(getattr(stored(run), name), getattr(before, name))
    run = run_of(tmp_path / "run", config=config)
    assert run.outcome.nfe == 2 * DRAWS * 2 * CLASSES  # of the two images that were left
    np.testing.assert_array_equal(stored(run).sums, stored(clean[0]).sums)
    compact(run.store)
    np.testing.assert_array_equal(stored(run).sums, stored(clean[0]).sums)
    files = list((tmp_path / "run").glob("compact/*/losses-*.parquet"))
    assert len(files) == 2
    frame = pd.concat(map(pd.read_parquet, files))
    assert len(frame) == stored(run).sums.size


def test_compaction_keeps_the_first_delivery_of_losses_and_refuses_what_differs(
    clean, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", images=(0, 1))
    whole = stored(run)
    kind = next(iter(run.outcome.numerics))
    deliver_again(run, "another")
    compact(run.store, delete_sources=True)
    assert stored(run).differing == 1
    np.testing.assert_array_equal(stored(run).sums, whole.sums)
    deliver_again(run, kind)
    with pytest.raises(StoreError, match=r"one numerics kind differ.*compact/000001"):
        compact(run.store)


def test_plain_certificates_whose_losses_were_deleted_are_refused_or_made_again(
    clean, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run")
    for name in run.store.location.list("losses"):
        run.store.location.delete(name)
    with pytest.raises(StoreError, match=r"5 certificates in .* 0 \+ 0 votes are there of 0 \+ 80"):
        run_of(tmp_path / "run")
    run = run_of(tmp_path / "run", on_damaged="recompute")
    assert run.outcome.nfe == clean[0].outcome.nfe
    np.testing.assert_array_equal(stored(run).sums, stored(clean[0]).sums)
