"""The first screen: nine lines that say what was certified, how far n reaches, and what it cost."""

import pandas as pd
import pytest

from diffcert_ray.certificates.reach import largest_radius
from diffcert_ray.report.dataset_tables import accuracy_text, p_low_text
from diffcert_ray.report.files import report_files
from diffcert_ray.report.first_screen import first_screen, share_text
from diffcert_ray.report.lines import accuracy_lines
from diffcert_ray.report.series_tables import series_tables
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.run.certify import certify
from diffcert_ray.run.stored import open_run
from tests.test_report import certificates, series
from tests.worlds import settings, small_world

SIX = certificates([0.3, 0.2, 0.2, 0.1, 0.2, 0.0], correct=[True, True, True, True, False, False])


def six(radii=(0.0, 0.25, 0.5), reach=0.4, **about):
    return series(SIX, radii=radii, votes=100, reach={0.25: reach}, dataset="digits", **about)


def test_it_says_what_was_certified_in_figures():
    title = first_screen(six()).title
    assert title == "Certified accuracy, one: title; 6 images of digits, n = 100"


def test_counts_stand_beside_shares_that_are_rounded_to_the_nearest():
    (row,) = first_screen(six()).rows
    assert row[0] == "0.25"
    assert row[2].split("\n")[0] == "4 = 66.7 %"
    assert share_text(4, 6) == "66.7 %"
    assert p_low_text(SIX.assign(p_low=[0.95] * 4 + [0.2] * 2)).rows[0][1] == "66.7 %"


def test_beyond_the_reach_of_n_zero_is_marked_and_has_no_interval():
    found = first_screen(six())
    assert found.header == ("sigma", "reach", "r = 0", "r = 0.25", "r = 0.5")
    assert (found.rows[0][1], found.rows[0][4]) == ("0.400", "0 %†")
    assert "largest radius that 100 votes can certify" in found.notes[0]
    assert "†" in found.notes[0]
    full = accuracy_text(SIX, (0.0, 0.5), "title", None, {0.25: 0.4})
    assert full.rows[0][3] == "0 %†"
    assert "by construction" in full.notes[-1]
    assert "(" in accuracy_text(SIX, (0.0, 0.5), "title").rows[0][3]


def test_where_n_certifies_nothing_at_all_even_radius_0_is_marked():
    none = certificates([0.0] * 3)
    (row,) = first_screen(series(none, radii=(0.0,), votes=1, reach={0.25: 0.0})).rows
    assert row[2] == "0 %†"


def test_the_curve_has_no_band_beyond_the_reach():
    (line,), _ = accuracy_lines([six()])
    bands = dict(zip(line.x, line.high, strict=True))
    assert min(high for r, high in bands.items() if r <= 0.4) > 0
    assert max(high for r, high in bands.items() if r > 0.4) == 0


def test_it_counts_the_wrong_and_the_abstained_and_the_cost():
    _, failures, cost = first_screen(six()).notes
    assert failures == "Of 6 images, sigma 0.25: 1 wrong (16.7 %), 1 abstained (16.7 %)."
    assert cost == "Cost: 7,200 NFE (10.0 per vote), 3 worker seconds."


def test_no_best_sigma_is_named_where_all_figures_are_zero():
    both = pd.concat([certificates([0.3] * 5), certificates([0.2] * 5, sigma=0.5)])
    (best,) = [t for t in series_tables(series(both, radii=(0.1, 1.0))) if t.label == "best_sigma"]
    assert best.rows[0] == ("sigma", "0.25", "-")


def test_page_and_markdown_begin_with_it_and_the_paper_leaves_it_out():
    files = report_files([six()])
    page = files["index.html"].decode()
    assert page.index("4 = 66.7 %") < page.index("<svg")
    assert "4 = 66.7 %" in files["table.md"].decode()
    assert "66.7 \\%" in files["table.tex"].decode()
    assert "4 = 66.7" not in files["table.tex"].decode()


@pytest.mark.parametrize("n", [60, 600])
def test_the_reach_of_a_run_is_that_of_its_n_and_no_radius_is_above_it(tmp_path, n):
    world, data = small_world(images=2)
    votes = {"n": n, "radii": [0.0]}
    certify(settings(votes=votes), tmp_path / "run", local=True, denoiser=world, dataset=data)
    (one,) = series_of_run(open_run(tmp_path / "run"))
    alpha = float(one.certificates["alpha"].iloc[0])
    ideal = largest_radius(n, 0.25, alpha, "clopper-pearson", slack=0.0, taken_off=0.0)
    assert one.votes == n
    assert one.certificates["radius"].max() <= one.reach[0.25] <= ideal
    assert one.reach[0.25] > 0.95 * ideal
