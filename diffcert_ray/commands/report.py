"""``diffcert report``: the figures of runs and logs, on the terminal and as files."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffcert_ray.report.written import Report

from diffcert_ray.commands.arguments import JsonOption
from diffcert_ray.commands.screen import escaped, out, print_json, print_table
from diffcert_ray.commands.storage_options import StorageOption, storage_options


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|LOG...", help="Run folders or prefixes, and logs of Cohen et al. (.tsv)"
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the files [default: report/ of the first run, or LOG-report]",
            show_default=False,
        ),
    ] = None,
    log_sigma: Annotated[
        float | None, typer.Option(min=0, help="Sigma of logs whose names do not tell")
    ] = None,
    log_alpha: Annotated[float, typer.Option(min=0, max=1, help="Alpha of logs")] = 0.001,
    published: Annotated[
        list[str] | None,
        typer.Option(help="Compare with published rows of this dataset too, e.g. cifar10"),
    ] = None,
    norm: Annotated[
        list[str] | None,
        typer.Option(help="Also derive figures in linf or l1 from the l2 radii; repeatable"),
    ] = None,
    log_dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Numbers in an image of logs, for --norm linf: 3072 for CIFAR"),
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Print the figures of runs and logs, and write them with pictures and a page to look at.

    [dim]diffcert report runs/digits-demo[/]
    [dim]diffcert report runs/new runs/old published-sigma-0.25.tsv --output compared[/]

    The page, index.html, needs no other file.
    """
    from diffcert_ray.report.series import with_norms
    from diffcert_ray.report.sources import open_sources
    from diffcert_ray.report.written import write_report

    options = storage_options(storage)
    opened = open_sources(
        sources, log_sigma=log_sigma, log_alpha=log_alpha, storage_options=options
    )
    series = with_norms(opened.series, norm or (), log_dimensions)
    opened = replace(opened, series=series)
    folder = output or (None if opened.runs else f"{sources[0]}-report")
    written = write_report(opened, folder, published or (), options)
    if as_json:
        print_json(written.figures())
    else:
        show_report(written)


def show_first_screen(report: "Report") -> None:
    """Print what a run comes to, and where the rest is."""
    from diffcert_ray.report.first_screen import first_screen

    for one in report.sources.series:
        print_table(first_screen(one))
    (run,) = report.sources.runs
    out.print(
        f"results: {run.address}; the rest: {report.folder}/index.html, or diffcert report "
        f"{run.address}",
        soft_wrap=True,
    )


def show_report(report: "Report") -> None:
    """Print the figures of a report, and where it lies."""
    from diffcert_ray.report.files import guarantees, report_tables
    from diffcert_ray.report.series import unfinished_lines

    series = report.sources.series
    for line in unfinished_lines(series):
        out.print(f"[bold]{escaped(line)}[/]", soft_wrap=True)
    for table in report_tables(series, report.published):
        print_table(table)
    for note in dict.fromkeys(note for one in series for note in one.notes):
        out.print(escaped(note), soft_wrap=True)
    for sentence in guarantees(series):
        out.print(f"\n{sentence}", soft_wrap=False)
    for run in report.sources.runs:
        out.print(f"\nresults: {run.address} (certificates/, {run.kind.folder}/)", soft_wrap=True)
    out.print(f"report: {report.folder}/index.html", soft_wrap=True)
