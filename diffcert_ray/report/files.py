"""The files of a report as bytes: tables, curves and one HTML page."""

from collections.abc import Callable, Sequence
from importlib import metadata

import pandas as pd

from diffcert_ray.certificates.metrics import certified_accuracy, p_low_distribution
from diffcert_ray.report.curve import curve_pictures
from diffcert_ray.report.dataset_tables import RHO, comparison_text, guarantee, wrong_text
from diffcert_ray.report.derived_tables import derived_rows
from diffcert_ray.report.gallery import Pictures, make_gallery
from diffcert_ray.report.lines import accuracy_lines
from diffcert_ray.report.page import render_page
from diffcert_ray.report.published import PublishedRow, published_text
from diffcert_ray.report.series import Series, unfinished_lines
from diffcert_ray.report.series_tables import series_tables
from diffcert_ray.report.text_table import TextTable, latex, markdown, without_repeats


def report_tables(
    series: Sequence[Series], published: Sequence[PublishedRow] = ()
) -> list[TextTable]:
    """The figures of each series; with several, a comparison of all; published rows.

    Raises:
        ValueError: a series has rows that must not be compared with each other.
    """
    tables = [table for one in series for table in series_tables(one)]
    if len(series) > 1:
        tables.append(comparison_text(series, sorted({r for one in series for r in one.radii})))
    if published:
        tables.append(published_text(published))
    return without_repeats(tables)


def report_files(
    series: Sequence[Series],
    published: Sequence[PublishedRow] = (),
    pictures: Pictures | None = None,
) -> dict[str, bytes]:
    """The report: name -> bytes of each file.

    Returns:
        index.html (which needs no other file), table.md and table.tex (all tables), table.csv
        (certified accuracies), p_low.csv (its whole distribution, bounds from votes only),
        curve.png and curve.svg; where other norms are asked for, table_NORM_derived.csv. The same
        certificates give the same bytes. Of a run that is not finished each says so; in the .csv
        files n_missing is above 0.

    Raises:
        ValueError: a series has rows that must not be compared with each other.
    """
    title = ", ".join(one.name for one in series)
    lacking = unfinished_lines(series)
    tables = report_tables(series, published)
    lines, radii = accuracy_lines(series, published)
    files = {
        "index.html": report_page(series, published, pictures),
        "table.md": _markdown(title, tables, series).encode(),
        "table.tex": "\n".join(
            [
                *(f"% {line}\n" for line in lacking),
                *(latex(t) for t in tables if t.label != "first"),
            ]
        ).encode(),
        "table.csv": _csv(series, _accuracies),
        **curve_pictures(lines, radii, "\n".join([title, *lacking])),
    }
    for norm in dict.fromkeys(norm for one in series for norm in one.norms):
        files[f"table_{norm}_derived.csv"] = _csv(
            [one for one in series if norm in one.norms],
            lambda s, norm=norm: derived_rows(  # type: ignore[misc]
                s.certificates, s.radii, norm, s.dimensions or 1, s.asked
            ),
        )
    votes = [one for one in series if one.certificates["p_low"].notna().all()]
    if votes:
        files["p_low.csv"] = _csv(
            votes, lambda s: p_low_distribution(s.certificates, asked=s.asked)
        )
    return files


def report_page(
    series: Sequence[Series],
    published: Sequence[PublishedRow] = (),
    pictures: Pictures | None = None,
) -> bytes:
    """The page alone, index.html of ``report_files``."""
    gallery = make_gallery(series, pictures or Pictures())
    return render_page(
        series, published, gallery, version=metadata.version("diffcert_ray")
    ).encode()


def guarantees(series: Sequence[Series]) -> list[str]:
    """What the certificates of some series say, each sentence once."""
    return list(dict.fromkeys(guarantee(one.bound) for one in series))


def _accuracies(one: Series) -> pd.DataFrame:
    return certified_accuracy(one.certificates, one.radii, rho=RHO, asked=one.asked)


def _csv(series: Sequence[Series], table: Callable[[Series], pd.DataFrame]) -> bytes:
    """One table of all series; the last column names the series."""
    rows = pd.concat([table(one).assign(series=one.name) for one in series], ignore_index=True)
    return rows.to_csv(index=False).encode()


def _markdown(title: str, tables: Sequence[TextTable], series: Sequence[Series]) -> str:
    parts = [f"# {title}\n", *(f"**{line}**\n" for line in unfinished_lines(series))]
    parts += map(markdown, tables)
    parts += [f"{sentence}\n" for sentence in guarantees(series)]
    for one in series:
        parts += [f"{note}\n" for note in one.notes]
        parts.append(markdown(wrong_text(one)))
        parts.append(f"## How {one.name} was made\n")
        if one.command:
            parts.append(f"    {one.command}\n")
        parts.append("".join(f"- {what}: {value}\n" for what, value in one.facts))
    return "\n".join(parts)
