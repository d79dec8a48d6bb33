"""The terminal as all commands use it: results on stdout, all else on stderr, tables, JSON."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from diffcert_ray.commands.terminal import in_signs_of, screen

if TYPE_CHECKING:
    from diffcert_ray.report.text_table import TextTable

out = screen()
err = screen(stderr=True)


def escaped(text: str) -> str:
    """Text that may hold brackets, for rich."""
    return escape(text)


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout; numbers that are none become null."""
    out.out(json.dumps(_finite(facts), allow_nan=False), highlight=False)


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
    """A table of figures, no figure cut off: what is too wide for a terminal comes in parts.

    Where the output is no terminal (a file, a pipe) a table stays whole. The first column stands
    in every part.
    """
    out.print(f"\n[bold]{escaped(_signs(table.title))}[/]")
    for columns in _parts(table):
        shown = _drawn(table, columns)
        if table.rows:
            shown.width = _width(shown)
            out.print(shown, crop=False)
    for note in table.notes:
        out.print(f"[dim]{escaped(note)}[/]")


def _parts(table: "TextTable") -> list[list[int]]:
    """Columns that fit side by side; one part where the output is no terminal."""
    everything = list(range(len(table.header)))
    if not out.is_terminal or len(everything) < 3:
        return [everything]
    parts = [everything[:2]]
    for column in everything[2:]:
        if _width(_drawn(table, [*parts[-1], column])) <= out.width:
            parts[-1].append(column)
        else:
            parts.append([0, column])
    return parts


def _drawn(table: "TextTable", columns: list[int]) -> Table:
    shown = Table(  # the box puts one space between columns: five wide intervals fit 80 characters
        box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    for column in columns:
        name = escaped(_signs(table.header[column]))
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(escaped(_signs(row[column])) for column in columns))
    return shown


def _width(shown: Table) -> int:
    return out.measure(shown, options=out.options.update(max_width=10_000)).maximum


def _signs(text: str) -> str:
    """Words for signs that the terminal lacks, before anything is aligned."""
    return in_signs_of(out.encoding, text)
