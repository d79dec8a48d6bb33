"""What a run stores that contradicts itself: looked for wherever certificates are read.

A certificate is a row that anybody can edit. Whatever in it follows from its other columns, or from
the stored counts, is computed again, in milliseconds, before anyone gets to see it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.errors import StoreError

Booleans = npt.NDArray[np.bool_]

REMEDY = (
    "Restore it from a copy, or delete it and run certify again with --recompute-damaged: what is "
    "missing is made again from the votes"
)


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Rows that cannot be right, all for one reason."""

    rows: npt.NDArray[np.int64]  # positions in the table
    reason: Callable[[int], str]  # position -> why, as a clause that names the values


@dataclass(frozen=True, eq=False)
class UnitsExamined:
    """What the stored units say of certificates, and of themselves."""

    contradictions: list[Contradiction]  # certificates that they do not bear out
    odd: list[str]  # sentences about units that the run cannot have stored
    begun: Mapping[float, set[int]]  # sigma -> images that have a stored unit


def contradiction(wrong: Booleans, reason: Callable[[int], str]) -> Iterator[Contradiction]:
    """One contradiction where anything is wrong, none elsewhere."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        yield Contradiction(rows, reason)


def row_contradictions(certificates: pd.DataFrame, classes: int) -> Iterator[Contradiction]:
    """Certificates whose columns do not fit together, whatever was counted."""
    column = {name: certificates[name].to_numpy() for name in certificates.columns}
    label, predicted = column["label"], column["predicted"]
    correct, abstained = column["correct"], column["abstained"]
    radius, n_a, n = column["radius"], column["n_a"], column["n"]

    def says(name: str) -> Callable[[int], str]:
        return lambda row: f"{name} {column[name][row]}"

    yield from contradiction(
        (label < 0) | (label >= classes),
        lambda row: f"label {label[row]} is none of the run's {classes} classes",
    )
    yield from contradiction(
        (predicted < ABSTAIN) | (predicted >= classes),
        lambda row: f"predicted {predicted[row]} is none of the run's {classes} classes, nor -1",
    )
    yield from contradiction(
        abstained != (predicted == ABSTAIN),
        lambda row: f"abstained is {abstained[row]} although predicted is {predicted[row]}",
    )
    yield from contradiction(
        correct != ((predicted == label) & ~abstained),
        lambda row: (
            f"correct is {correct[row]} although predicted is {predicted[row]} and label "
            f"{label[row]}"
        ),
    )
    yield from contradiction(
        ~(np.isfinite(radius) & (radius >= 0)) | (abstained & (radius != 0)),
        lambda row: f"radius {radius[row]} with abstained {abstained[row]}",
    )
    yield from contradiction(
        (n < 0) | (n_a < 0) | (n_a > n), lambda row: f"n_a is {n_a[row]} of n = {n[row]}"
    )
    yield from contradiction(
        ((n == 0) | (column["nfe"] == 0)) & ~(abstained & (n == 0)),
        lambda row: f"it certifies without votes or draws: n {n[row]}, nfe {column['nfe'][row]}",
    )
    yield from contradiction(column["nfe"] < 0, says("nfe"))
    seconds = column["seconds"]
    yield from contradiction(~(np.isfinite(seconds) & (seconds >= 0)), says("seconds"))


def sentence(certificates: pd.DataFrame, found: Contradiction, row: int) -> str:
    """One stored certificate and what is wrong with it."""
    about = certificates.iloc[row]
    where = f" at sigma {about['sigma']:g}" if about["sigma"] > 0 else ""
    return f"image {about['image_id']}{where}: {found.reason(row)}"


def refuse(
    certificates: pd.DataFrame,
    found: Sequence[Contradiction],
    source: Callable[[int], str],
    address: str,
) -> None:
    """Refuse a run of which anything was found."""
    if not found:
        return
    rows = np.unique(np.concatenate([one.rows for one in found]))
    first = found[0]
    row = int(first.rows[0])
    count = f"{len(rows)} certificates contradict" if len(rows) > 1 else "1 certificate contradicts"
    raise StoreError(
        f"{count} what {address} stores, first (in {source(row)}) "
        f"{sentence(certificates, first, row)}. {REMEDY}"
    )
