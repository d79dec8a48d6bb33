"""The report of finished certificates: dataset figures as tables, curves and files."""

from collections.abc import Sequence

import pandas as pd

from diffcert_ray.metrics import certified_accuracy, p_low_distribution
from diffcert_ray.report.curve import curve_png
from diffcert_ray.report.dataset_tables import RHO, dataset_tables, guarantee
from diffcert_ray.report.text_table import latex, markdown

__all__ = ["dataset_tables", "guarantee", "report_files"]


def report_files(
    certificates: pd.DataFrame, radii: Sequence[float], title: str
) -> dict[str, bytes]:
    """The report of one run: name -> bytes of each file.

    Args:
        certificates: rows of a run, one bound.
        radii: of the tables, pixel units.
        title: what was certified, in words.

    Returns:
        The tables as table.md and table.tex, table.csv (certified accuracy), p_low.csv (its whole
        distribution, bounds from votes only) and curve.png.

    Raises:
        ValueError: rows that must not be compared with each other.
    """
    tables = dataset_tables(certificates, radii, title)
    bound = str(certificates["bound"].iloc[0])
    text = "\n".join([f"# {title}\n", *map(markdown, tables), guarantee(bound), ""])
    accuracy = certified_accuracy(certificates, radii, rho=RHO)
    files = {
        "table.md": text.encode(),
        "table.tex": "\n".join(map(latex, tables)).encode(),
        "table.csv": accuracy.to_csv(index=False).encode(),
        "curve.png": curve_png(certificates, title),
    }
    if any(table.label == "p_low" for table in tables):
        distribution = p_low_distribution(certificates)
        files["p_low.csv"] = distribution.to_csv(index=False).encode()
    return files
