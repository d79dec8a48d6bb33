"""Terminals without UTF-8, width, colour or reader: every command ends as it would elsewhere."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from diffcert_ray.commands import screen
from diffcert_ray.commands.main import main
from diffcert_ray.commands.terminal import NARROWEST, in_signs_of
from diffcert_ray.commands.terminal import screen as new_screen
from diffcert_ray.report.text_table import TextTable

GOLDEN = Path(__file__).parent / "golden" / "run_schema_2"
TINY = ("dataset.first=1", "votes.n0=10", "votes.n=20", "votes.radii=[0.0]")
COMMANDS = {
    "certify": (
        "certify",
        "digits-quick",
        *(f"--set={t}" for t in TINY),
        "--local",
        "--run",
        "new",
    ),
    "report": ("report", "run"),
    "status": ("status", "run"),
    "verify": ("verify", "run", "--sample", "0"),
    "export": ("export", "run"),
    "json": ("report", "run", "--json"),
    "config": ("config",),
    "help": ("--help",),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code or 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_command_fails_where_the_terminal_lacks_a_sign(folder, monkeypatch, command, encoding):
    page = io.BytesIO()
    stream = io.TextIOWrapper(page, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert ended(*COMMANDS[command]) == 0
    stream.flush()
    said = page.getvalue().decode(encoding)
    assert said.strip()
    assert "?" not in said.replace("diffcert config --help?", "")


def test_words_stand_for_missing_signs_and_columns_stay_aligned(monkeypatch):
    page = io.BytesIO()
    stream = io.TextIOWrapper(page, encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    cells = (("≥ 1.0", "5"), ("9", "55"))
    screen.print_table(TextTable("at σ", ("share", "images"), cells))
    lines = page.getvalue().decode().splitlines()
    assert "at sigma" in lines[1]
    assert lines[-2:] == [">= 1.0|     5", "     9|    55"]
    assert in_signs_of("utf-8", "≥ σ…") == "≥ σ…"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone_does_not_change_how_a_command_ends(folder, monkeypatch, command):
    if command in ("config", "help"):
        pytest.skip("nothing is done but printing")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(screen.out, "quiet", False)
        assert ended(*COMMANDS[command]) == 0
        assert screen.out.quiet
    monkeypatch.undo()
    page = io.StringIO()
    monkeypatch.setattr(sys, "stdout", page)
    screen.out.print("next")
    assert page.getvalue() == "next\n"  # nothing of before is left over


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide", "²"])
def test_a_columns_that_is_no_width_is_as_if_it_were_not_set(columns):
    odd, none = (new_screen(environ={**e, "TERM": "x"}) for e in ({"COLUMNS": columns}, {}))
    assert odd.width == none.width >= NARROWEST
    assert new_screen(environ={"COLUMNS": "44"}).width == 44


def test_help_is_not_blank_where_columns_is_0(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    assert ended("report", "--help") == 0
    assert "RUN|LOG" in capsys.readouterr().out


@pytest.mark.parametrize(("no_color", "styled"), [("", True), ("1", False)])
def test_no_color_means_no_escape_code_at_all(no_color, styled):
    terminal = {"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": no_color}
    console = new_screen(environ=terminal)
    console.file = io.StringIO()
    console.print("[bold]a[/] [italic]b[/] [dim]c[/] [red]d[/]")
    assert ("\x1b" in console.file.getvalue()) is styled


def test_a_table_wider_than_the_terminal_comes_in_parts_that_fit(monkeypatch):
    page = io.StringIO()
    console = type(screen.out)(file=page, width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(screen, "out", console)
    header = ("sigma", "images", *(f"r = {k / 4:g}" for k in range(7)))
    row = ("0.25", "50", *["100.0 %\n(93.0-100.0)"] * 7)
    screen.print_table(TextTable("title", header, (row,)))
    lines = page.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 40
    assert sum(line.count("(93.0-100.0)") for line in lines) == 7
    heads = [line for line in lines if "sigma" in line]
    assert len(heads) == sum("0.25" in line and "100.0 %" in line for line in lines) > 2
