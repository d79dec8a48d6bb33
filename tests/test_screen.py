"""What the commands print on a terminal."""

import io

import pytest
from rich.console import Console

from diffcert_ray.commands import screen
from diffcert_ray.report.text_table import TextTable

CELL = "100.0 %\n(93.0-100.0)\n≥ 92.0"


def printed(monkeypatch: pytest.MonkeyPatch, columns: int, radii: int) -> list[str]:
    page = io.StringIO()
    monkeypatch.setattr(screen, "out", Console(file=page, width=columns, highlight=False))
    header = ("sigma", "images", *(f"r = {k / 4:g}" for k in range(radii)))
    screen.print_table(TextTable("title", header, (("0.25", "50", *[CELL] * radii),)))
    return page.getvalue().splitlines()


def test_five_radii_with_the_widest_intervals_fit_80_columns(monkeypatch):
    lines = printed(monkeypatch, 80, 5)
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sum(line.count("(93.0-100.0)") for line in lines) == 5


def test_no_figure_is_cut_off_on_a_terminal_that_is_too_narrow(monkeypatch):
    lines = printed(monkeypatch, 60, 9)
    assert sum(line.count("(93.0-100.0)") for line in lines) == 9
    assert "…" not in "".join(lines)
