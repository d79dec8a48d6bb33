"""A table of text cells, written as Markdown or LaTeX; the command line prints the same one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "≥": r"$\ge$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "…": r"\ldots{}",
    "†": r"$^\dagger$",
}


@dataclass(frozen=True)
class TextTable:
    """Cells ready to be shown.

    Args:
        title: over the table.
        header: one name for each column.
        rows: cells; a line break in a cell separates its parts.
        notes: sentences under the table.
        label: what the table is called in file names and LaTeX references.
        bold: (row, column) of cells that stand out.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    label: str = "table"
    bold: frozenset[tuple[int, int]] = frozenset()


def without_repeats(tables: Sequence[TextTable]) -> list[TextTable]:
    """The same tables, each note under the first table that has it only."""
    said: set[str] = set()
    kept = []
    for table in tables:
        kept.append(replace(table, notes=tuple(n for n in table.notes if n not in said)))
        said.update(table.notes)
    return kept


def markdown(table: TextTable) -> str:
    """The table as Markdown: title, cells, notes."""
    lines = [f"**{_cell(table.title)}**"]
    if table.rows:
        lines += ["", _row(table.header), "|---" * len(table.header) + "|"]
    lines += [
        _row(tuple(f"**{cell}**" if (i, c) in table.bold else cell for c, cell in enumerate(row)))
        for i, row in enumerate(table.rows)
    ]
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def latex(table: TextTable) -> str:
    """The table as LaTeX (with the package booktabs): a float with caption and label.

    The parts of a cell, as figure, interval and guaranteed figure, stand in rows below each other.

    A table without rows becomes its notes as comments.
    """
    if not table.rows:
        return "".join(f"% {table.title}: {note}\n" for note in table.notes)
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(' '.join((table.title + '.', *table.notes)))}}}",
        rf"  \label{{tab:{table.label}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {_latex_row(table.header)}",
        r"    \midrule",
        *(
            f"    {_latex_row(line, i if part == 0 else -1, table.bold)}"
            for i, row in enumerate(table.rows)
            for part, line in enumerate(_lines_of(row))
        ),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Plain text with every character that LaTeX would interpret escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", r"\|")


def _lines_of(row: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The first parts of all cells, then the second ones, and so on."""
    return list(zip_longest(*(cell.split("\n") for cell in row), fillvalue=""))


def _latex_row(
    cells: tuple[str, ...], row: int = -1, bold: frozenset[tuple[int, int]] = frozenset()
) -> str:
    texts = [latex_text(cell) for cell in cells]
    texts = [rf"\textbf{{{t}}}" if (row, c) in bold else t for c, t in enumerate(texts)]
    return " & ".join(texts) + r" \\"
