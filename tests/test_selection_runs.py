"""Runs whose selection stops once a class leads: equal whatever happens, read, and verified."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from diffcert_ray import certify, open_run
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.report.dataset_tables import images_text
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.run.odd_units import odd_units
from diffcert_ray.run.verify import verify_run
from diffcert_ray.storage.store import RunStore
from tests.noting_pools import noted, noting
from tests.tampering import certificates as edit_certificates
from tests.tampering import units as edit_units
from tests.test_run import StopAfter
from tests.worlds import check_same, counts_of, settings

STOPPING = {
    "n0": 40, "select": 4, "select_unit": 2, "estimate": "target", "sigmas": [0.25, 0.8],
}  # fmt: skip
VOTES = {
    "fixed": STOPPING,
    "sequential": STOPPING | {"bound": "sequential", "n": 400, "unit": 10},
    "complete": STOPPING | {"estimate": "complete"},
}


@pytest.fixture
def drive(world, tmp_path):
    def driven(votes: str = "fixed", folder: str = "run", **given):
        tables = settings(votes=VOTES[votes], execution=given.pop("execution", {}))
        given = {"local": True, "denoiser": world[0], "dataset": world[1]} | given
        return certify(tables, tmp_path / folder, **given)

    return driven


def chosen(counts: dict, sigma: float, image_id: int) -> tuple[int, int]:
    """(votes used, class), from the stored units of an image in their order."""
    total: Counter = Counter()
    for start in range(0, 40, 2):
        total.update(counts[sigma, image_id, "select", start, start + 2])
        ranking = [n for _, n in total.most_common()] + [0, 0]
        if ranking[0] - ranking[1] >= 4:
            return start + 2, total.most_common(1)[0][0]
    return 40, min(total, key=lambda c: (-total[c], c))


@pytest.mark.parametrize("votes", VOTES)
def test_certificates_are_of_the_class_that_the_votes_up_to_the_lead_choose(drive, votes):
    run = drive(votes)
    counts = counts_of(run)
    certificates = run.certificates()
    for row in certificates.to_dict("records"):
        sigma, image_id = row["sigma"], row["image_id"]
        used, klass = chosen(counts, sigma, image_id)
        assert (row["n0"], row["n0_used"]) == (40, used)
        if votes != "sequential":
            n_a = sum(
                counts[sigma, image_id, "estimate", a, a + 20].get(klass, 0) for a in (0, 20, 40)
            )
            off = {"slack": row["slack"], "taken_off": row["taken_off"]}
            expected = executed_certificate(n_a, 60, sigma=sigma, alpha=0.001, **off)
            assert (row["n_a"], row["radius"]) == (n_a, expected.radius)
        assert row["predicted"] in (klass, -1)
    assert len(set(certificates["n0_used"])) > 2  # some votes are close
    assert certificates["n0_used"].max() < 40


@pytest.mark.parametrize("votes", VOTES)
def test_a_stopped_run_and_other_items_end_with_the_same_certificates(drive, votes, tmp_path):
    clean, small = drive(votes, "clean"), {"item_s": 0.005, "flush_s": 0.005}
    for _ in range(200):
        pool = noting(tmp_path / "book")
        run = drive(votes, execution=small, should_stop=StopAfter(9), pool=pool)
        if run.outcome.complete:
            break
    assert run.outcome.complete
    columns = ["image_id", "predicted", "radius", "n_a", "n", "n0_used"]
    assert run.certificates()[columns].equals(clean.certificates()[columns])
    stored, whole = counts_of(run), counts_of(clean)
    assert {k: stored[k] for k in set(stored) & set(whole)} == {
        k: whole[k] for k in set(stored) & set(whole)
    }
    if votes != "sequential":
        check_same(run, clean)
        selected = {v for v in noted(tmp_path / "book") if v[2] == "select"}
        assert len(selected) == run.certificates()["n0_used"].sum()  # none in vain
    assert verify_run_of_world(run) == []


def verify_run_of_world(run) -> list[str]:
    """What a reader finds wrong, without casting votes again."""
    examined = run.examined()
    return [*examined.odd, *[one.reason(int(one.rows[0])) for one in examined.contradictions]]


def test_the_report_and_the_costs_count_the_votes_that_selected(drive):
    run = drive()
    (one,) = series_of_run(run)
    rows = run.certificates()
    mean = rows.groupby("sigma")["n0_used"].mean()
    table = images_text(rows, run.asked())
    cells = [row[4] for row in table.rows]
    assert cells == [f"{60 + used:,.0f}" for used in mean]
    assert f"Selection votes, means per image: {mean[0.25]:.1f} at sigma 0.25" in " ".join(
        table.notes
    )
    assert "; 0 in no certificate" in dict(one.facts)["votes cast"]


def test_another_lead_or_another_unit_is_another_run(drive, world, tmp_path):
    drive()
    for other in ({"select": 5}, {"select_unit": 1}, {"select": None, "select_unit": 5}):
        tables = settings(votes={k: v for k, v in (STOPPING | other).items() if v is not None})
        with pytest.raises(ConfigError, match=r"votes of another configuration .*votes.select"):
            certify(tables, tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])


# ---- edits of a run of digits, which verify can cast again --------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Images with certificates at one noise, and close selection votes at another."""
    votes = {"sigmas": [0.25, 0.8], "n0": 30, "select": 3, "select_unit": 1, "n": 20, "unit": 10}
    tables = {"votes": votes | {"radii": [0.0]}, "noise_levels": {"levels": 6}}
    tables["dataset"] = {"name": "digits", "first": 6}
    folder = tmp_path_factory.mktemp("digits") / "run"
    certify(tables, folder, local=True)
    return folder


@pytest.fixture
def copy(digits, tmp_path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def differences(folder: Path) -> list[str]:
    return verify_run(open_run(folder), sample=10**6).differences


def more_used(rows: list) -> list:
    return [replace(row, n0_used=row.n0_used + 1) for row in rows]


def test_an_honest_run_of_selection_that_stops_has_no_difference(copy):
    run = open_run(copy)
    assert differences(copy) == []
    assert run.certificates()["n0_used"].max() > run.certificates()["n0_used"].min() >= 3


def test_a_class_chosen_from_more_votes_than_the_rule_takes_is_found(copy):
    edit_certificates(more_used)(copy)
    with pytest.raises(
        StoreError, match=r"n0_used is \d+, but its class is chosen by \d+ selection"
    ):
        open_run(copy).certificates()
    assert any("n0_used is" in said for said in differences(copy))


def test_a_class_chosen_by_later_votes_is_found(copy):
    """As who goes on selecting until the class that he would like leads."""

    def other_class(rows: list) -> list:
        return [replace(r, predicted=(r.predicted + 1) % 10, correct=False) for r in rows]

    edit_certificates(lambda rows: [r if r.abstained else other_class([r])[0] for r in rows])(copy)
    with pytest.raises(StoreError, match="but its votes chose"):
        open_run(copy).certificates()


def test_a_selection_unit_left_out_or_of_another_size_is_found(copy, tmp_path):
    def first_selection(row) -> bool:
        return row.stream == "select" and row.start == 1

    left_out = Path(shutil.copytree(copy, tmp_path / "left_out"))
    edit_units(lambda rows: [r for r in rows if not first_selection(r)])(left_out)
    with pytest.raises(StoreError, match="rests on votes that are not stored"):
        open_run(left_out).certificates()
    longer = [replace_stop(r) if first_selection(r) else r for r in rows_of_units(copy)]
    edit_units(lambda rows: longer)(copy)
    with pytest.raises(StoreError, match="rests on votes that are not stored"):
        open_run(copy).certificates()
    assert any("are no unit of 1 votes" in odd for odd in oddities(copy))


def oddities(folder: Path) -> list[str]:
    done = RunStore.open(str(folder)).done_units()
    return list(
        odd_units(done, classes=10, n0=20, n=20, unit=10, complete=False, fixed=True, select=2)
    )


def rows_of_units(folder: Path) -> list:
    from diffcert_ray.storage.schemas import UnitRow
    from tests.tampering import rows_of

    return rows_of(folder, UnitRow)


def replace_stop(row):
    """The same unit with a vote more."""
    return replace(row, stop=row.stop + 1, counts=(row.counts[0] + 1, *row.counts[1:]))


def test_later_selection_units_in_the_store_change_no_certificate(copy):
    before = open_run(copy).certificates()
    rows = rows_of_units(copy)
    last = max(r.stop for r in rows if r.stream == "select")
    image = next(r for r in rows if r.stream == "select" and r.stop == last)
    other = {"classes": ((image.classes[0] + 1) % 10,), "counts": (1,)}
    later = [
        replace(image, start=k, stop=k + 1, **other) for k in range(last, 30)
    ]  # all of them for another class: cast by a worker that had nothing else to do
    with open_run(copy).store.writer() as writer:
        writer.add_units(later)
    run = open_run(copy)
    assert later
    assert run.certificates().equals(before)
    found = verify_run(run, sample=0)
    assert found.differences == []
