"""Exporting a run's certificates: its logs of Cohen et al., and what an export lacks.

The other form, one Parquet file with the images, is in ``parquet_export``.
"""

from diffcert_ray.report.cohen_log import write_cohen_log
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.report.unfinished import unfinished, unfinished_line
from diffcert_ray.run.stored import Run


def export_logs(run: Run) -> dict[str, str]:
    """A run's certificates as logs of Cohen et al., one for each sigma and bound.

    Returns:
        File name -> text. The name tells bound and sigma, which the log itself does not, and that
        images are missing: who reads the log could not know it.
    """
    logs = {}
    for one in series_of_run(run):
        for sigma, rows in one.certificates.groupby("sigma"):
            lacking = "-incomplete" if sigma in unfinished(one.certificates, one.asked) else ""
            name = f"{run.config.name}-{one.bound}-sigma-{sigma:g}{lacking}.tsv"
            logs[name] = write_cohen_log(rows)
    return logs


def missing_in_export(run: Run) -> list[str]:
    """A line for each bound whose rows, which an export holds, are not those of all images."""
    asked = run.asked()
    lines = [
        unfinished_line(rows, asked, "are not in the export; clear images may finish first")
        for _, rows in run.certificates().groupby("bound")
    ]
    return [line for line in lines if line]
