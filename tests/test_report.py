"""The report: figures are those of the certificates, rounded in the safe direction."""

import io

import numpy as np
import pandas as pd
import pytest

from diffcert_ray.certificates.metrics import (
    best_sigma_per_radius,
    certified_accuracy,
    p_low_distribution,
)
from diffcert_ray.certificates.radius import BOUNDS
from diffcert_ray.config.tables import PLAIN_BOUNDS
from diffcert_ray.report.charts import NARROW, Axis, Line, even_axis, line_chart
from diffcert_ray.report.dataset_tables import comparison_text, dataset_tables, wrong_text
from diffcert_ray.report.files import guarantees, report_files, report_tables
from diffcert_ray.report.lines import accuracy_lines, cost_lines, p_low_lines
from diffcert_ray.report.published import published_rows
from diffcert_ray.report.series import Series, asked_radii, distinct_names, series_of_log
from diffcert_ray.report.text_table import TextTable, latex, markdown


def certificates(radii, *, sigma: float = 0.25, correct=None, **changes) -> pd.DataFrame:
    radii = np.asarray(radii, float)
    correct = radii > 0 if correct is None else np.asarray(correct)
    count = len(radii)
    return pd.DataFrame(
        {
            "sigma": sigma, "image_id": np.arange(count), "label": 1,
            "predicted": np.where(radii > 0, np.where(correct, 1, 2), -1), "correct": correct,
            "abstained": radii == 0, "radius": radii, "p_low": 0.9, "n_a": 90, "n": 100, "n0": 20,
            "n0_used": 20,
            "alpha": 0.001, "bound": "clopper-pearson", "nfe": 1200, "seconds": 0.5,
            "method": "apndc", "votes_id": "x",
        }
    ).assign(**changes)  # fmt: skip


def series(rows: pd.DataFrame, name: str = "one", radii=(0.0, 0.25), **about) -> Series:
    return Series(name, f"{name}: title", rows, tuple(radii), **about)


ROWS = certificates([0.875, 0.25, 0.125, 0.0, 0.4], correct=[True, True, True, False, False])


def table(rows: pd.DataFrame, label: str, radii=(0.0, 0.25)) -> TextTable:
    (found,) = [t for t in dataset_tables(rows, radii, "title") if t.label == label]
    return found


def test_accuracy_has_a_row_for_each_sigma_and_a_column_for_each_radius_ascending():
    both = pd.concat([certificates([0.5] * 5, sigma=0.5), ROWS])
    found = table(both, "accuracy", (0.25, 0.0))
    assert found.header == ("sigma", "images", "r = 0", "r = 0.25")
    assert [row[:2] for row in found.rows] == [("0.25", "5"), ("0.5", "5")]
    assert [row[2].split(" ")[0] for row in found.rows] == ["60.0", "100.0"]


def test_a_cell_has_both_intervals_rounded_outwards():
    exact = certified_accuracy(ROWS, [0.25]).iloc[0]
    share, interval, guaranteed = table(ROWS, "accuracy").rows[0][3].split("\n")
    assert share == "40.0 %"
    low, high = map(float, interval.strip("()").split("-"))
    assert low <= 100 * exact["interval_low"] < low + 0.1
    assert high - 0.1 < 100 * exact["interval_high"] <= high
    # At alpha 0.001 one of five certificates may fail, with probability above 0.001 in all.
    assert guaranteed == "≥ 20.0"


def test_the_summary_counts_wrong_and_abstaining_images_as_radius_zero():
    (row,) = table(ROWS, "images").rows
    assert row == ("0.25", "0.250", "20.0 %\n(0.5-71.7)", "20.0 %", "120", "1,200", "10.0", "0.50")


def test_the_printed_average_radius_is_never_above_the_true_one():
    (row,) = table(certificates([0.2999, 0.3]), "images").rows
    assert row[1] == "0.299"


def test_p_low_shares_are_those_at_or_above_each_edge():
    p_low = [0.3, 0.5, 0.95, 0.9999, 0.98765]
    found = table(ROWS.assign(p_low=p_low), "p_low")
    assert found.header[1:] == ("≥ 0.5", "≥ 0.7", "≥ 0.9", "≥ 0.99", "≥ 0.999", "median")
    (row,) = found.rows
    assert row[1:] == ("80.0 %", "60.0 %", "60.0 %", "20.0 %", "20.0 %", "0.9500")


def test_rows_without_votes_have_no_p_low_table():
    plain = certificates([0.1, 0.2], sigma=0.0, bound="local", p_low=float("nan"))
    assert "p_low" not in {t.label for t in dataset_tables(plain, [0.0], "title")}
    assert "p_low.csv" not in report_files([series(plain)])


@pytest.mark.parametrize("bound", [*PLAIN_BOUNDS, *BOUNDS])
def test_where_rounding_is_not_covered_every_table_and_the_printed_sentence_say_so(bound):
    of_bound = certificates([0.1, 0.2], correct=[False, False], bound=bound)
    both = [series(of_bound), series(certificates([0.1, 0.2]), "two")]
    mine = [*dataset_tables(of_bound, [0.0], "title"), wrong_text(both[0])]
    plain, about = bound in PLAIN_BOUNDS, "in real arithmetic only"
    assert len(mine) >= 3
    assert [about in t.title for t in mine] == [plain] * len(mine)
    assert [about in row[0] for row in comparison_text(both, [0.0]).rows] == [plain, False]
    (sentence,) = guarantees(both[:1])
    assert (about in sentence) == plain
    files = report_files(both[:1])
    for name in ("index.html", "table.md", "table.tex"):
        assert (about in " ".join(files[name].decode().split())) == plain, name


def test_the_best_sigma_is_marked_as_a_selection_with_its_price():
    both = pd.concat([ROWS, certificates([0.2] * 5, sigma=0.5)])
    found = table(both, "best_sigma")
    assert "selection" in found.title
    assert found.header[1:] == ("r = 0", "r = 0.25")
    assert found.rows[0] == ("sigma", "0.5", "0.25")
    assert "after seeing the results of 2 sigmas" in found.notes[0]
    assert "1 - 0.002" in found.notes[0]
    # The interval is that of 97.5 %, wider than the accuracy table's.
    exact = best_sigma_per_radius(both, [0.25]).iloc[0]
    low = float(found.rows[1][2].split("(")[1].split("-")[0])
    assert low <= 100 * exact["interval_low"] < low + 0.1


def test_one_sigma_is_no_selection():
    assert "best_sigma" not in {t.label for t in dataset_tables(ROWS, [0.0], "title")}


def test_no_best_sigma_while_a_sigma_lacks_images():
    both = pd.concat([ROWS, certificates([0.2] * 3, sigma=0.5)])
    found = table(both, "best_sigma")
    assert found.rows == ()
    assert "finish the run" in found.notes[0]


EIGHT_OF_60 = certificates([0.5] * 8)
STOPPED = EIGHT_OF_60.assign(bound="sequential", n=range(20, 100, 10))


def test_an_unfinished_run_is_shown_as_lower_bounds_in_every_table():
    found = {t.label: t for t in dataset_tables(STOPPED, [0.0, 0.25], "title", {0.25: 60})}
    assert all(t.title.startswith("INCOMPLETE. ") for t in found.values())
    assert found["accuracy"].rows == (
        ("0.25", "8 of 60", "13.3 %\n(5.9-100.0)\n≥ 10.0", "13.3 %\n(5.9-100.0)\n≥ 10.0"),
    )
    (row,) = found["images"].rows
    assert row[1:4] == ("0.066", "0.0 %\n(0.0-94.1)", "0.0 %")
    (row,) = found["p_low"].rows
    assert row[1:] == ("13.3 %", "13.3 %", "13.3 %", "0.0 %", "0.0 %", "0.0000")
    assert all(any("lower bounds" in note for note in t.notes) for t in found.values())
    finished = dataset_tables(EIGHT_OF_60, [0.0], "title", {0.25: 8})
    assert finished == dataset_tables(EIGHT_OF_60, [0.0], "title")
    assert "INCOMPLETE" not in str(finished)


def test_the_finished_images_alone_are_progress_with_fixed_n_and_nothing_with_sequential():
    fixed = table(EIGHT_OF_60, "accuracy")
    assert "alone" not in " ".join(fixed.notes)
    fixed, stopped = (dataset_tables(rows, [0.0, 0.75], "title", {0.25: 60})[0]
                      for rows in (EIGHT_OF_60, STOPPED))  # fmt: skip
    said = " ".join(fixed.notes)
    assert "no result: of the 8 finished images alone at sigma 0.25, 100.0 % at r = 0," in said
    assert "100" not in " ".join(stopped.notes)
    assert "clear images finish first" in " ".join(stopped.notes)


def test_every_file_of_an_unfinished_run_says_so_and_none_is_biased_upward():
    one = series(STOPPED, asked={0.25: 60, 0.5: 60})
    line = "INCOMPLETE: 8 of 60 images at sigma 0.25, 0 of 60 images at sigma 0.5 finished; "
    assert one.unfinished.startswith(line)
    files = report_files([one])
    for name in ("index.html", "table.md", "table.tex"):
        assert line in files[name].decode(), name
        assert "100.0 %" not in files[name].decode(), name
    assert "INCOMPLETE" in files["curve.svg"].decode()
    for name in ("table.csv", "p_low.csv"):
        stored = pd.read_csv(io.BytesIO(files[name]))
        assert set(stored["n_images"]) == {60}
        assert set(stored["n_missing"]) == {52}
    (drawn,), _ = accuracy_lines([one])
    exact = certified_accuracy(STOPPED, list(drawn.x), asked=one.asked)
    assert list(drawn.y) == exact["certified_accuracy"].tolist()
    assert max(drawn.y) == 8 / 60
    assert list(drawn.high) == exact["interval_high"].tolist()
    lines = p_low_lines([one])
    assert lines is not None
    assert max(lines[0][0].y) == 8 / 60
    whole = report_files([series(EIGHT_OF_60, asked={0.25: 8})])
    assert not any(b"INCOMPLETE" in data for data in whole.values())


def test_an_unfinished_series_stands_beside_others_with_its_lower_bounds():
    beside = comparison_text(
        [series(STOPPED, "a", asked={0.25: 60}), series(ROWS, "b")], [0.0, 0.25]
    )
    assert beside.rows[0] == ("a (INCOMPLETE, 8 of 60), σ = 0.25", "0.13", "0.13")
    assert beside.bold == {(1, 1), (1, 2)}
    assert "lower bounds" in " ".join(beside.notes)


def test_no_best_sigma_while_all_sigmas_lack_the_same_images():
    both = pd.concat([ROWS, certificates([0.2] * 5, sigma=0.5)])
    found = [t for t in dataset_tables(both, [0.0], "title", {0.25: 9, 0.5: 9})][-1]
    assert (found.label, found.rows) == ("best_sigma", ())


def test_radii_that_stopping_cut_off_say_so():
    sequential = ROWS.assign(bound="sequential", n=[20, 40, 60, 80, 100])
    assert "not comparable" in " ".join(table(sequential, "images").notes)
    assert "not comparable" not in " ".join(table(ROWS, "images").notes)


def test_the_files_hold_the_figures_and_what_a_certificate_says():
    one = series(ROWS, facts=(("votes_id", "abc"),), command="diffcert certify one.toml")
    files = report_files([one])
    names = "index.html table.md table.tex table.csv p_low.csv curve.png curve.svg"
    assert set(files) == set(names.split())
    text = files["table.md"].decode()
    assert "With probability at least 1 - alpha" in text
    assert "| 0.25 | 5 | 60.0 % (" in text
    assert "diffcert certify one.toml" in text
    assert "- votes_id: abc" in text
    stored = pd.read_csv(io.BytesIO(files["table.csv"]))
    assert stored["guaranteed_low"].tolist() == [0.4, 0.2]
    assert set(stored["series"]) == {"one"}
    stored = pd.read_csv(io.BytesIO(files["p_low.csv"])).drop(columns="series")
    pd.testing.assert_frame_equal(stored, p_low_distribution(ROWS))
    assert files["curve.png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(files["curve.png"][16:20], "big") >= 900  # pixels across
    assert b"certified accuracy</text>" in files["curve.svg"]


def test_equal_certificates_give_equal_files():
    first, again = (report_files([series(ROWS)]) for _ in range(2))
    assert first == again


def test_several_series_stand_side_by_side_with_the_best_in_bold():
    other = certificates([0.3, 0.3, 0.3, 0.0, 0.0], sigma=0.5)
    found = comparison_text([series(ROWS, "a"), series(other, "b")], [0.25, 0.0])
    assert found.rows == (("a, σ = 0.25", "0.60", "0.40"), ("b, σ = 0.5", "0.60", "0.60"))
    assert found.bold == {(0, 1), (1, 1), (1, 2)}
    assert "| b, σ = 0.5 | **0.60** | **0.60** |" in markdown(found)
    assert r"b, $\sigma$ = 0.5 & \textbf{0.60} & \textbf{0.60} \\" in latex(found)
    assert "selection" in found.notes[0]


def test_published_rows_say_their_source_and_that_it_is_secondary():
    rows = published_rows(["cifar10"])
    assert len(rows) >= 3
    assert published_rows(["digits"]) == []
    tables = report_tables([series(ROWS, dataset="cifar10")], rows)
    assert tables[-1].label == "published"
    assert all("arXiv" in row[-1] for row in tables[-1].rows)
    assert "secondary source" in " ".join(tables[-1].notes)
    assert all(("*" in row[0]) == p.secondary for row, p in zip(tables[-1].rows, rows, strict=True))


def test_a_note_is_said_once_in_a_report():
    tables = report_tables([series(ROWS, "a"), series(ROWS, "b")])
    notes = [note for table in tables for note in table.notes]
    assert len(notes) == len(set(notes))


def test_wrong_ones_are_counted_by_pair_without_abstentions():
    wrong = certificates([0.5, 0.25, 0.125, 0.0], correct=[False, False, True, False])
    found = wrong_text(series(wrong), ("zero", "one", "two"))
    assert found.rows == (("0.25", "one", "two", "2", "0.500"),)
    assert found.notes[0].startswith("2 of 4 certificates")


def test_a_log_is_a_series_without_votes():
    log = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n7\t1\t1\t0.6\t1\t0:00:02\n"
    one = series_of_log("logs/noise_0.5.tsv", log)
    assert one.by_sigma()[0][0] == 0.5
    assert one.radii == (0.0, 0.25, 0.5)
    (row,) = dataset_tables(one.certificates, one.radii, one.title)[1].rows
    assert row[4:] == ("-", "-", "-", "2.00")
    assert p_low_lines([one]) is None
    assert cost_lines([one], "nfe", "NFE") is None
    assert "p_low.csv" not in report_files([one])
    with pytest.raises(ValueError, match="--log-sigma"):
        series_of_log("logs/mine.tsv", log)


def test_radii_nobody_asked_for_cover_the_largest_one_in_few_columns():
    assert asked_radii(certificates([0.6, 0.1])) == (0.0, 0.25, 0.5)
    assert asked_radii(certificates([3.3, 0.1])) == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    assert asked_radii(certificates([0.0, 0.0])) == (0.0,)


def test_equal_names_are_told_apart():
    names = [one.name for one in distinct_names([series(ROWS), series(ROWS), series(ROWS, "b")])]
    assert names == ["one", "one (2)", "b"]


def test_accuracy_lines_are_the_certified_accuracies():
    (line,), axis = accuracy_lines([series(ROWS)])
    exact = certified_accuracy(ROWS, list(line.x))
    assert list(line.y) == exact["certified_accuracy"].tolist()
    assert list(line.guaranteed) == exact["guaranteed_low"].tolist()
    assert axis.high >= 0.875  # the largest certified radius is in the picture


def test_a_share_line_counts_images_at_or_above():
    rows = ROWS.assign(nfe=[10, 20, 20, 40, 80])
    found = cost_lines([series(rows)], "nfe", "NFE")
    assert found is not None
    (line,), _ = found

    def share(x: float) -> float:
        return [y for a, y in zip(line.x, line.y, strict=True) if a < x][-1]

    assert [share(x) for x in (5, 10, 20, 21, 80)] == pytest.approx([1, 1, 0.8, 0.4, 0.2])
    assert cost_lines([series(ROWS)], "nfe", "NFE") is None  # all alike: no chart


def test_a_chart_draws_a_step_down_where_the_value_falls():
    unit = Axis("x", 0.0, 1.0, ((0.0, "0"), (1.0, "1")))
    svg = line_chart([Line("<a>", [0.0, 0.5, 1.0], [1.0, 0.0, 0.0])], unit, unit, "t", NARROW)
    assert "&lt;a&gt;" in svg
    assert "<a>" not in svg
    # Right to the middle, down, right to the end: three corners and the end point.
    path = svg.split('class="step" d="M')[1].split('"')[0].split("L")
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = ([float(v) for v in p.split()] for p in path)
    assert (y0, y2) == (y1, y3)
    assert y2 > y0
    assert x1 == x2 == (x0 + x3) / 2


@pytest.mark.parametrize(
    ("high", "ticks"),
    [(1.0, 6), (0.35, 4), (1.63, 4), (0.0, 6), (52_345.0, 6)],
)
def test_axes_have_round_ticks_within_their_range(high, ticks):
    axis = even_axis("x", high)
    values = [value for value, _ in axis.ticks]
    assert len(values) == ticks
    assert values[0] == 0.0
    assert values[-1] <= axis.high
    assert values == pytest.approx([float(text.replace(",", "")) for _, text in axis.ticks])


def test_certificates_of_different_alpha_are_not_mixed_into_one_table():
    mixed = pd.concat([ROWS, certificates([0.1], sigma=0.25).assign(alpha=0.01, image_id=99)])
    with pytest.raises(ValueError, match="alpha"):
        report_files([series(mixed)])


def test_markdown_keeps_a_cell_in_its_column():
    found = markdown(TextTable("title", ("a|b", "c"), (("1\n2", "3"),), ("note",)))
    assert found.splitlines()[2:5] == [r"| a\|b | c |", "|---|---|", "| 1 2 | 3 |"]
    assert found.endswith("note\n")


def test_latex_has_the_parts_of_a_cell_in_rows_of_their_own():
    row = ("0.25", "40.0 %\n(5.2-85.4)\n≥ 20.0", "0 %†")
    found = latex(TextTable("t", ("sigma", "r = 0", "r = 1"), (row,), bold=frozenset({(0, 1)})))
    lines = [line.strip() for line in found.splitlines() if line.endswith(r"\\")][1:]
    assert lines == [
        r"0.25 & \textbf{40.0 \%} & 0 \%$^\dagger$ \\",
        r" & (5.2-85.4) &  \\".strip(),
        r" & $\ge$ 20.0 &  \\".strip(),
    ]


def test_latex_escapes_what_it_would_interpret():
    found = latex(TextTable("5 % of a_b", ("x", "y"), (("≥ 50.0", "1 & 2"),), label="one"))
    assert r"\caption{5 \% of a\_b.}" in found
    assert r"$\ge$ 50.0 & 1 \& 2 \\" in found
    assert found.count(r"\begin{") == found.count(r"\end{") == 2
