"""What the commands print on a terminal."""

import importlib
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from diffcert_ray.commands import screen
from diffcert_ray.report.text_table import TextTable

certify_command = importlib.import_module("diffcert_ray.commands.certify")
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


@pytest.mark.parametrize(
    ("terminal", "quiet", "told"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_person_at_a_terminal_is_told_what_ctrl_c_does(monkeypatch, terminal, quiet, told):
    page = io.StringIO()
    console = Console(file=page, width=100, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(certify_command, "err", console)
    run = SimpleNamespace(address="runs/a", document=SimpleNamespace(votes_id="17f0"))
    certify_command._say_where(run, quiet=quiet)
    assert ("Ctrl-C stores what has come back" in page.getvalue()) is told
    assert ("17f0" in page.getvalue()) is not quiet
