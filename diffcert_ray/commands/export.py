"""``diffcert export``: write a run's certificates for others."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from diffcert_ray.commands.arguments import RunArgument
from diffcert_ray.commands.screen import err, escaped, out
from diffcert_ray.commands.storage_options import StorageOption, storage_options


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
    from diffcert_ray.report.export import export_logs, missing_in_export
    from diffcert_ray.run.stored import open_run

    exported = open_run(run, storage_options(storage))
    output.mkdir(parents=True, exist_ok=True)
    for line in missing_in_export(exported):
        err.print(f"[bold]{escaped(line)}[/]", soft_wrap=True)
    if form is ExportFormat.parquet:
        from diffcert_ray.report.parquet_export import export_parquet

        path = output / f"{exported.config.name}.parquet"
        out.print(f"{path} ({export_parquet(exported, path):,} rows)", soft_wrap=True)
        return
    for name, text in export_logs(exported).items():
        (output / name).write_text(text, encoding="utf-8")
        out.print(f"{output / name}", soft_wrap=True)
