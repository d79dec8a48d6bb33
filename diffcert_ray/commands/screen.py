"""What the commands share of the terminal: two consoles, tables, progress, signals, exit codes."""

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from diffcert_ray.report.text_table import TextTable

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DONE, FAILED, BAD_USE, INCOMPLETE = 0, 1, 2, 3


def escaped(text: str) -> str:
    """Text that may hold brackets, for rich."""
    return escape(text)


def print_json(found: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout; numbers that are none become null."""
    typer.echo(json.dumps(_finite(found), allow_nan=False))


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have, and without numpy's types."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):  # numpy
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress_shown(*, quiet: bool = False, as_json: bool = False) -> Iterator[Any]:
    """What takes a run's progress: a live bar on a terminal, else a line now and then.

    Args:
        quiet: show nothing.
        as_json: JSON lines, on a terminal too.
    """
    from diffcert_ray.commands.progress import LineProgress, LiveProgress, QuietProgress, json_line

    shown: LineProgress | LiveProgress | QuietProgress
    if quiet:
        shown = QuietProgress()
    elif as_json:
        shown = LineProgress(err, line=json_line)
    else:
        shown = LiveProgress(err) if err.is_terminal else LineProgress(err)
    with shown as progress:
        yield progress


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """A list that fills at the first SIGINT or SIGTERM; the second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        err.print("stopping: storing what has come back (again: stop at once)")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_table(table: "TextTable") -> None:
    """A table of figures, whole: on a terminal too narrow for it lines wrap, nothing is cut off."""
    shown = Table(  # the box puts one space between columns: five wide intervals fit 80 characters
        title=f"\n{escaped(table.title)}", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    for name in table.header:
        shown.add_column(escaped(name), justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*map(escaped, row))
    if table.rows:
        shown.width = out.measure(shown, options=out.options.update(max_width=10_000)).maximum
        out.print(shown, crop=False)
    for note in table.notes:
        out.print(f"[dim]{escaped(note)}[/]")
