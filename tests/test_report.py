"""The report: figures are those of the certificates, rounded in the safe direction."""

import numpy as np
import pandas as pd
import pytest

from diffcert_ray.report import (
    accuracy_cells,
    accuracy_markdown,
    accuracy_table,
    curve_png,
    report_files,
    summary,
)


def certificates(radii, *, sigma: float = 0.25, correct=None) -> pd.DataFrame:
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
    )  # fmt: skip


ROWS = certificates([0.875, 0.25, 0.125, 0.0, 0.4], correct=[True, True, True, False, False])


def test_cells_are_certified_accuracies_with_their_intervals():
    cells = accuracy_cells(accuracy_table(ROWS, [0.25, 0.0]))
    assert cells == {0.25: ["5", "60.0 % (15-95)", "40.0 % (5-85)"]}


def test_markdown_has_a_row_for_each_sigma_and_a_column_for_each_radius():
    both = pd.concat([ROWS, certificates([0.5] * 5, sigma=0.5)])
    lines = accuracy_markdown(accuracy_table(both, [0.0, 0.25])).splitlines()
    assert lines[0] == "| sigma | images | r = 0 | r = 0.25 |"
    assert len(lines) == 4
    assert lines[3].startswith("| 0.5 | 5 | 100.0 %")


def test_the_summary_counts_wrong_and_abstaining_images_as_radius_zero():
    (found,) = summary(ROWS)
    assert found.acr == "0.250"
    assert (found.abstained, found.wrong) == (0.2, 0.2)
    assert (found.votes_per_image, found.nfe_per_image, found.nfe_per_vote) == (120, 1200, 10)


def test_the_printed_average_radius_is_never_above_the_true_one():
    (found,) = summary(certificates([0.2999, 0.3]))
    assert found.acr == "0.299"


def test_the_curve_is_a_png_of_readable_size():
    image = curve_png(ROWS, "title")
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(image[16:20], "big") >= 900  # pixels across


def test_the_report_says_what_a_certificate_says():
    files = report_files(ROWS, [0.0], "title")
    assert set(files) == {"table.csv", "table.md", "curve.png"}
    assert b"With probability at least 1 - alpha" in files["table.md"]


def test_certificates_of_different_alpha_are_not_mixed_into_one_table():
    mixed = pd.concat([ROWS, certificates([0.1], sigma=0.25).assign(alpha=0.01, image_id=99)])
    with pytest.raises(ValueError, match="alpha"):
        accuracy_table(mixed, [0.0])
