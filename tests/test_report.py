"""The report: figures are those of the certificates, rounded in the safe direction."""

import io

import numpy as np
import pandas as pd
import pytest

from diffcert_ray.metrics import best_sigma_per_radius, certified_accuracy, p_low_distribution
from diffcert_ray.report import report_files
from diffcert_ray.report.curve import curve_png
from diffcert_ray.report.dataset_tables import dataset_tables
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
            "alpha": 0.001, "bound": "clopper-pearson", "nfe": 1200, "seconds": 0.5,
            "method": "apndc", "votes_id": "x",
        }
    ).assign(**changes)  # fmt: skip


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
    assert "p_low.csv" not in report_files(plain, [0.0], "title")


def test_the_best_sigma_is_marked_as_a_selection_with_its_price():
    both = pd.concat([ROWS, certificates([0.2] * 5, sigma=0.5)])
    found = table(both, "best_sigma")
    assert "selection" in found.title
    assert [row[:2] for row in found.rows] == [("0", "0.5"), ("0.25", "0.25")]
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


def test_radii_that_stopping_cut_off_say_so():
    sequential = ROWS.assign(bound="sequential", n=[20, 40, 60, 80, 100])
    assert "not comparable" in " ".join(table(sequential, "images").notes)
    assert "not comparable" not in " ".join(table(ROWS, "images").notes)


def test_the_curve_is_a_png_of_readable_size():
    image = curve_png(ROWS, "title")
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(image[16:20], "big") >= 900  # pixels across


def test_the_files_hold_the_figures_and_what_a_certificate_says():
    files = report_files(ROWS, [0.0, 0.25], "title")
    assert set(files) == {"table.csv", "table.md", "table.tex", "curve.png", "p_low.csv"}
    text = files["table.md"].decode()
    assert "With probability at least 1 - alpha" in text
    assert "| 0.25 | 5 | 60.0 % (" in text
    stored = pd.read_csv(io.BytesIO(files["table.csv"]))
    assert stored["guaranteed_low"].tolist() == [0.4, 0.2]
    stored = pd.read_csv(io.BytesIO(files["p_low.csv"]))
    pd.testing.assert_frame_equal(stored, p_low_distribution(ROWS))


def test_certificates_of_different_alpha_are_not_mixed_into_one_table():
    mixed = pd.concat([ROWS, certificates([0.1], sigma=0.25).assign(alpha=0.01, image_id=99)])
    with pytest.raises(ValueError, match="alpha"):
        report_files(mixed, [0.0], "title")


def test_markdown_keeps_a_cell_in_its_column():
    found = markdown(TextTable("title", ("a|b", "c"), (("1\n2", "3"),), ("note",)))
    assert found.splitlines()[2:5] == [r"| a\|b | c |", "|---|---|", "| 1 2 | 3 |"]
    assert found.endswith("note\n")


def test_latex_escapes_what_it_would_interpret():
    found = latex(TextTable("5 % of a_b", ("x", "y"), (("≥ 50.0", "1 & 2"),), label="one"))
    assert r"\caption{5 \% of a\_b.}" in found
    assert r"$\ge$ 50.0 & 1 \& 2 \\" in found
    assert found.count(r"\begin{") == found.count(r"\end{") == 2
