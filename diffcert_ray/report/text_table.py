"""A table of text cells, written as Markdown or LaTeX; the command line prints the same one."""

from dataclasses import dataclass

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
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    label: str = "table"


def markdown(table: TextTable) -> str:
    """The table as Markdown: title, cells, notes."""
    lines = [f"**{_cell(table.title)}**", "", _row(table.header), "|---" * len(table.header) + "|"]
    lines += [_row(row) for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def latex(table: TextTable) -> str:
    """The table as LaTeX (with the package booktabs): a float with caption and label."""
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
        *(f"    {_latex_row(row)}" for row in table.rows),
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


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(latex_text(cell.replace("\n", " ")) for cell in cells) + r" \\"
