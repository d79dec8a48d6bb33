"""Figures in l-infinity and l1 that follow from l2 radii: right, rounded down, and marked so."""

import io
import json
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from diffcert_ray.certificates.norms import derived_radius
from diffcert_ray.commands.main import app
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.files import report_files, report_tables
from diffcert_ray.report.series import with_norms
from tests.test_report import ROWS, certificates, series

LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.5\t1\t0:00:01\n1\t4\t4\t0.2\t1\t1\n"


def test_the_l2_ball_holds_the_derived_balls_and_no_larger_ones():
    random = np.random.default_rng(3)
    for dimensions in (1, 3, 64, 784, 3072, 150528):
        for radius in (0.0, 1e-9, 0.25, 1 / 3, float(random.random()), 3.7):
            linf = derived_radius(radius, "linf", dimensions)
            exact = Fraction(linf) ** 2 * dimensions  # squared l2 length of the corner
            assert exact <= Fraction(radius) ** 2
            assert exact >= Fraction(radius) ** 2 * Fraction(1 - 1e-15)
            assert derived_radius(radius, "l1", dimensions) == radius  # a vertex


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0.1, "l0", 3), "norm 'l0' is not known"),
        ((-0.1, "linf", 3), "radius=-0.1"),
        ((math.nan, "l1", 3), "radius=nan"),
        ((0.1, "linf", 0), "dimensions=0"),
    ],
)
def test_what_has_no_derived_radius_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        derived_radius(*arguments)


def derived(norm: str, rows=ROWS, radii=(0.0, 0.25)):
    asked = with_norms([series(rows, radii=radii, dimensions=3072)], [norm])
    (table,) = [t for t in report_tables(asked) if "derived" in t.title]
    return asked, table


def test_a_table_of_linf_has_the_asked_radii_divided_and_grey_levels():
    _, table = derived("linf")
    assert table.title.startswith("Certified accuracy, l-infinity, derived from l2")
    quarter = 0.25 / math.sqrt(3072)
    assert table.header[2:] == (
        "r = 0 (0/255)",
        "r = 0.00196 (0.5/255)",
        "r = 0.00392 (1/255)",
        "r = 0.00451 (1.15/255)",
        "r = 0.00784 (2/255)",
        "r = 0.01568 (4/255)",
    )
    assert abs(quarter - 0.00451) < 1e-5
    shares = [cell.split(" ")[0] for cell in table.rows[0][2:]]
    assert shares == ["60.0", "60.0", "40.0", "40.0", "20.0", "20.0"]
    assert "R / sqrt(D), D = 3072" in table.notes[0]
    assert "Derived, not certified by itself" in table.notes[0]


def test_a_table_of_l1_has_the_l2_radii():
    _, table = derived("l1")
    assert table.header[2:] == ("r = 0", "r = 0.25")
    assert [cell.split(" ")[0] for cell in table.rows[0][2:]] == ["60.0", "40.0"]


def test_every_file_has_the_derived_figures_and_none_without_asking():
    asked, _ = derived("linf")
    files = report_files(asked)
    rows = pd.read_csv(io.BytesIO(files["table_linf_derived.csv"]))
    assert rows["certified_accuracy"].tolist() == [0.6, 0.6, 0.4, 0.4, 0.2, 0.2]
    assert set(rows["origin"]) == {"derived from l2"}
    assert set(rows["norm"]) == {"linf"}
    for name in ("index.html", "table.md", "table.tex"):
        assert b"derived from l2" in files[name]
    plain = report_files([series(ROWS)])
    assert not any(b"derived from l2" in data for data in plain.values())
    assert files["table.csv"] == plain["table.csv"]


def test_an_unfinished_series_stays_a_lower_bound():
    one = series(certificates([0.5]), radii=(0.0,), dimensions=4, asked={0.25: 4})
    (asked,) = with_norms([one], ["linf"])
    (table,) = [t for t in report_tables([asked]) if "derived" in t.title]
    assert "INCOMPLETE" in table.title
    assert table.rows[0][2].startswith("25.0 %")


def test_the_command_derives_from_a_run_and_from_a_log(clean, tmp_path):
    def report(*arguments):
        output = str(tmp_path / "out")
        return CliRunner().invoke(app, ["report", *arguments, "--json", "--output", output])

    found = json.loads(report(clean.address, "--norm", "linf", "--norm", "l1").output)
    radii = {row["radius"] for row in found["derived"] if row["norm"] == "l1"}
    assert radii == {0.0, 0.1}
    (dimensions,) = {row["dimensions"] for row in found["derived"]}
    assert dimensions == 16
    assert derived_radius(0.1, "linf", 16) in {row["radius"] for row in found["derived"]}
    (tmp_path / "sigma_0.25").write_text(LOG)
    lost = report(str(tmp_path / "sigma_0.25"), "--norm", "linf")
    assert isinstance(lost.exception, ConfigError)
    assert "--log-dimensions, as in 3072" in str(lost.exception)
    asked = report(str(tmp_path / "sigma_0.25"), "--norm", "linf", "--log-dimensions", "3072")
    assert json.loads(asked.output)["derived"][0]["certified_accuracy"] == 1.0
    other = report(clean.address, "--norm", "l0")
    assert "'l0' is not known" in str(other.exception)
