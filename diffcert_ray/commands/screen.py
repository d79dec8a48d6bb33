"""The terminal as all commands use it: results on stdout, all else on stderr, tables, JSON."""

import json
import math
from collections.abc import Mapping
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


def escaped(text: str) -> str:
    """Text that may hold brackets, for rich."""
    return escape(text)


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout; numbers that are none become null."""
    typer.echo(json.dumps(_finite(facts), allow_nan=False))


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have, and without numpy's types."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):  # numpy
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
