"""Published certified accuracies to compare with, each with its source."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from diffcert_ray.report.text_table import TextTable

SECONDARY = "*"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Args:
        dataset: name of the dataset.
        method: as the publication calls it.
        radii: pixel units, ascending.
        accuracy: certified accuracy at each, per cent.
        source: the publication.
        secondary: the figures were read in a text that cites it.
    """

    dataset: str
    method: str
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    source: str
    secondary: bool

    @property
    def label(self) -> str:
        """The method, marked where its figures come from a secondary source."""
        return self.method + (SECONDARY if self.secondary else "")


def published_rows(datasets: Sequence[str]) -> list[PublishedRow]:
    """The published rows about some datasets."""
    text = (resources.files("diffcert_ray.report") / "published.toml").read_text("utf-8")
    rows = [_row(table) for table in tomllib.loads(text)["row"]]
    return [row for row in rows if row.dataset in datasets]


def published_text(rows: Sequence[PublishedRow]) -> TextTable:
    """Published rows as a table, with where they come from."""
    radii = sorted({r for row in rows for r in row.radii})
    cells = []
    for row in rows:
        known = dict(zip(row.radii, row.accuracy, strict=True))
        shares = [f"{known[r]:.1f} %" if r in known else "-" for r in radii]
        cells.append((f"{row.label}, {row.dataset}", *shares, row.source))
    notes = [
        "Published figures have no intervals here, and often are the best of several sigmas for "
        "each radius, chosen after seeing the results."
    ]
    if any(row.secondary for row in rows):
        notes.append(f"{SECONDARY} from a secondary source, not read in the publication itself.")
    header = ("published", *(f"r = {r:g}" for r in radii), "source")
    return TextTable("Published rows", header, tuple(cells), tuple(notes), "published")


def _row(table: dict[str, object]) -> PublishedRow:
    radii, accuracy = table["radii"], table["accuracy"]
    if not isinstance(radii, list) or not isinstance(accuracy, list):
        raise ValueError(f"published row {table['method']!r}: radii and accuracy must be lists")
    if len(radii) != len(accuracy) or not all(0 <= a <= 100 for a in accuracy):
        raise ValueError(
            f"published row {table['method']!r} has {len(radii)} radii and {len(accuracy)} "
            "accuracies: give one accuracy in per cent, 0 to 100, for each radius"
        )
    return PublishedRow(
        dataset=str(table["dataset"]),
        method=str(table["method"]),
        radii=tuple(map(float, radii)),
        accuracy=tuple(map(float, accuracy)),
        source=str(table["source"]),
        secondary=bool(table["secondary"]),
    )
