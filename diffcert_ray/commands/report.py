"""The figures of runs: on the terminal, as files, as logs."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffcert_ray.report.published import PublishedRow
    from diffcert_ray.report.sources import Sources
    from diffcert_ray.run.stored import Run

from diffcert_ray.commands.arguments import JsonOption, RunArgument
from diffcert_ray.commands.screen import err, escaped, out, print_json, print_table
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
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Print the figures of runs and logs, and write them with pictures and a page to look at.

    [dim]diffcert report runs/digits-demo[/]
    [dim]diffcert report runs/new runs/old published-sigma-0.25.tsv --output compared[/]

    The page, index.html, needs no other file.
    """
    from diffcert_ray.report.sources import open_sources

    options = storage_options(storage)
    found = open_sources(sources, log_sigma=log_sigma, log_alpha=log_alpha, storage_options=options)
    folder = output or (None if found.runs else f"{sources[0]}-report")
    made = written(found, folder, published or (), options)
    if as_json:
        print_json(made.figures())
    else:
        made.show()


class ExportFormat(enum.StrEnum):
    """What ``export`` writes."""

    logs = "logs"
    parquet = "parquet"


def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option(help="Folder of the files")] = Path(),
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Logs, or one file with images and votes")
    ] = ExportFormat.logs,
    storage: StorageOption = None,
) -> None:
    """Write a run's certificates for others: logs of Cohen et al., or Parquet with the images.

    [dim]diffcert export runs/digits --output logs[/]
    [dim]diffcert export runs/digits --format parquet[/]

    Logs are tab-separated, one for each sigma and bound. The Parquet file has the layout of
    Hugging Face datasets.
    """
    from diffcert_ray.report.sources import export_logs, missing_in_export
    from diffcert_ray.run.stored import open_run

    found = open_run(run, storage_options(storage))
    output.mkdir(parents=True, exist_ok=True)
    for line in missing_in_export(found):
        err.print(f"[bold]{escaped(line)}[/]", soft_wrap=True)
    if form is ExportFormat.parquet:
        from diffcert_ray.report.parquet_export import export_parquet

        path = output / f"{found.config.name}.parquet"
        out.print(f"{path} ({export_parquet(found, path):,} rows)", soft_wrap=True)
        return
    for name, text in export_logs(found).items():
        (output / name).write_text(text, encoding="utf-8")
        out.print(f"{output / name}", soft_wrap=True)


@dataclass(frozen=True)
class Report:
    """A report whose files are written.

    Args:
        sources: what it is about.
        published: rows to compare with.
        place: folder of the files.
        files: their contents by name.
    """

    sources: "Sources"
    published: "Sequence[PublishedRow]"
    place: str
    files: Mapping[str, bytes]

    def show(self) -> None:
        """Print the figures."""
        from diffcert_ray.report.files import guarantees, report_tables
        from diffcert_ray.report.series import unfinished_lines

        series = self.sources.series
        for line in unfinished_lines(series):
            out.print(f"[bold]{escaped(line)}[/]", soft_wrap=True)
        for table in report_tables(series, self.published):
            print_table(table)
        for note in dict.fromkeys(note for one in series for note in one.notes):
            out.print(escaped(note), soft_wrap=True)
        for sentence in guarantees(series):
            out.print(f"\n{sentence}", soft_wrap=False)
        for run in self.sources.runs:
            out.print(
                f"\nresults: {run.address} (certificates/, {run.kind.folder}/)", soft_wrap=True
            )
        out.print(f"report: {self.place}/index.html", soft_wrap=True)

    def figures(self) -> dict[str, Any]:
        """The same for machines: the rows of table.csv, what each series rests on, the files."""
        import pandas as pd

        series = [
            {
                "name": s.name,
                "title": s.title,
                "unfinished": s.unfinished or None,
                "facts": dict(s.facts),
                "notes": list(s.notes),
            }
            for s in self.sources.series
        ]
        rows = pd.read_csv(BytesIO(self.files["table.csv"])).to_dict("records")
        files = [f"{self.place}/{name}" for name in self.files]
        return {"series": series, "certified_accuracy": rows, "files": files}


def report_of(run: "Run") -> Report:
    """The report of one run, written into its folder."""
    from diffcert_ray.report.sources import Sources, series_of_run

    return written(Sources(tuple(series_of_run(run)), (run,)))


def print_report_of(run: "Run") -> None:
    """The report of one run, as ``report`` prints it."""
    report_of(run).show()


def written(
    sources: "Sources",
    output: str | None = None,
    datasets: Sequence[str] = (),
    storage: Mapping[str, Any] | None = None,
) -> Report:
    """Write the files of a report to a folder, by default the first run's report/."""
    from diffcert_ray.report.files import report_files
    from diffcert_ray.report.published import published_rows
    from diffcert_ray.report.sources import pictures_of, replace_file
    from diffcert_ray.storage.open_location import open_location

    series, runs = sources.series, sources.runs
    published = published_rows([*dict.fromkeys(one.dataset for one in series), *datasets])
    files = report_files(series, published, pictures_of(runs[0]) if runs else None)
    remote = output is not None and "://" in output
    location = (
        open_location(output, storage if remote else None) if output else runs[0].store.location
    )
    folder = "" if output else "report/"
    for name, data in files.items():
        replace_file(location, folder + name, data)
    place = output or f"{runs[0].address.rstrip('/')}/report"
    return Report(sources, published, place, files)
