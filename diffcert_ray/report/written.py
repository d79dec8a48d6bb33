"""A report in its folder: its files written, and their figures for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pandas as pd

from diffcert_ray.report.files import report_files
from diffcert_ray.report.published import PublishedRow, published_rows
from diffcert_ray.report.sources import Sources, pictures_of, series_of_run
from diffcert_ray.run.stored import Run
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.views import replace_view


@dataclass(frozen=True)
class Report:
    """A report whose files are written.

    Args:
        sources: what it is about.
        published: rows to compare with.
        folder: of the files.
        files: their contents by name.
    """

    sources: Sources
    published: Sequence[PublishedRow]
    folder: str
    files: Mapping[str, bytes]

    def figures(self) -> dict[str, Any]:
        """The rows of table.csv, what each series rests on, and the files, for machines."""
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
        files = [f"{self.folder}/{name}" for name in self.files]
        derived = [
            row
            for name, data in self.files.items()
            if name.endswith("_derived.csv")
            for row in pd.read_csv(BytesIO(data)).to_dict("records")
        ]
        figures = {"series": series, "certified_accuracy": rows, "files": files}
        return figures | ({"derived": derived} if derived else {})


def write_report_of(run: Run) -> Report:
    """Write the report of one run into its folder."""
    return write_report(Sources(tuple(series_of_run(run)), (run,)))


def write_report(
    sources: Sources,
    output: str | None = None,
    datasets: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Write the files of a report to a folder, by default the first run's report/.

    Args:
        sources: what it is about; with a run where no folder is given.
        output: folder or prefix of the files.
        datasets: whose published rows it compares with, besides those of the sources' datasets.
        storage_options: what fsspec's filesystem takes, for an output that is not local.
    """
    series, runs = sources.series, sources.runs
    published = published_rows([*dict.fromkeys(one.dataset for one in series), *datasets])
    files = report_files(series, published, pictures_of(runs[0]) if runs else None)
    if output:
        location = open_location(output, storage_options if "://" in output else None)
        prefix, folder = "", output
    else:
        location = runs[0].store.location
        prefix, folder = "report/", f"{runs[0].address.rstrip('/')}/report"
    for name, data in files.items():
        replace_view(location, prefix + name, data)
    return Report(sources, published, folder, files)
