"""Logs of Cohen et al., written and read: idx label predict radius correct time, tab-separated."""

import datetime
import io
import re
from typing import Final

import numpy as np
import pandas as pd

from diffcert_ray.certificates.fraction import check_fraction
from diffcert_ray.certificates.radius import check_sigma
from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.errors import LogError

COLUMNS: Final = ("idx", "label", "predict", "radius", "correct", "time")
DEFAULT_ALPHA: Final = 0.001
"""What published logs use; a log does not say it."""
LOG_BOUND: Final = "clopper-pearson"
_SIGMA_IN_NAME = re.compile(r"(?:sigma|noise)[-_=]?(\d+(?:\.\d+)?|\.\d+)", re.IGNORECASE)


def write_cohen_log(certificates: pd.DataFrame) -> str:
    """Write certificates of one sigma as a log.

    Args:
        certificates: rows of a run, one sigma and bound: image_id, label, predicted (-1: abstain),
            radius (pixel units), correct, seconds.

    Returns:
        The text: a header, then a line for each image in the order of image_id. Radii have all
        their digits, so that reading gives the same numbers (published logs have three).

    Raises:
        ValueError: several sigmas or bounds, or an image occurs twice.

    Source: the columns that Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918) publish.
    """
    if certificates["sigma"].nunique() != 1 or certificates["bound"].nunique() != 1:
        raise ValueError(
            f"sigmas {sorted(certificates['sigma'].unique())} and bounds "
            f"{sorted(certificates['bound'].unique())}: a log has one of each, write one log each"
        )
    if certificates["image_id"].duplicated().any():
        raise ValueError("an image occurs twice: a log has one line for each image")
    lines = ["\t".join(COLUMNS)]
    for row in certificates.sort_values("image_id").to_dict("records"):
        cells = (
            int(row["image_id"]),
            int(row["label"]),
            int(row["predicted"]),
            repr(float(row["radius"])),
            int(row["correct"]),
            datetime.timedelta(seconds=round(float(row["seconds"]), 6)),
        )
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def read_cohen_log(text: str, *, sigma: float, alpha: float = DEFAULT_ALPHA) -> pd.DataFrame:
    """Read a log as certificates.

    Args:
        text: what the file holds.
        sigma: smoothing noise that the log was made at, pixel units (a log does not say it).
        alpha: failure probability of each of its certificates, in (0, 1).

    Returns:
        The columns of the certificates table that a log has: sigma, image_id, label, predicted,
        correct, abstained, radius, alpha, bound, seconds; n, n0, n0_used, nfe and p_low are NaN.

    Raises:
        LogError: not a log of certificates, or a line is damaged.
        ValueError: sigma or alpha is out of range.
    """
    check_sigma(sigma)
    check_fraction("alpha", alpha)
    rows = _parsed(text)
    predicted = rows["predict"].to_numpy(dtype=np.int64)
    unknown = float("nan")
    return pd.DataFrame(
        {
            "sigma": sigma,
            "image_id": rows["idx"].to_numpy(dtype=np.int64),
            "label": rows["label"].to_numpy(dtype=np.int64),
            "predicted": predicted,
            "correct": rows["correct"].to_numpy(dtype=bool),
            "abstained": predicted == ABSTAIN,
            "radius": rows["radius"].to_numpy(dtype=float),
            "p_low": unknown,
            "n": unknown,
            "n0": unknown,
            "n0_used": unknown,
            "alpha": alpha,
            "bound": LOG_BOUND,
            "nfe": unknown,
            "seconds": rows["seconds"].to_numpy(dtype=float),
        }
    )


def sigma_of_name(path: str) -> float | None:
    """The sigma (pixel units) that a log's name or folders tell, the innermost first.

    As in ``cifar10/noise_0.25/test/sigma_0.50`` or ``run-sigma-0.5.tsv``; None where no part is
    ``sigma`` or ``noise`` with a number.
    """
    for part in reversed(re.split(r"[/\\]", path)):
        numbers = _SIGMA_IN_NAME.findall(part)
        if numbers:
            return float(numbers[-1])
    return None


def _parsed(text: str) -> pd.DataFrame:
    header = tuple(text.split("\n", 1)[0].rstrip("\r").split("\t"))
    lacking = [name for name in COLUMNS if name not in header]
    if lacking:
        raise LogError(
            f"the first line is {list(header)[:8]!r} and lacks {', '.join(lacking)}: a log of "
            f"certificates has the tab-separated columns {' '.join(COLUMNS)}"
        )
    rows = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    if rows.empty:
        raise LogError("the log has no rows: certify at least one image first")
    for name in ("idx", "label", "predict", "radius", "correct"):
        rows[name] = _numbers(rows[name], name, whole=name != "radius")
    rows["seconds"] = pd.to_timedelta(rows["time"], errors="coerce").dt.total_seconds()
    _check(rows)
    return rows


def _numbers(cells: pd.Series, name: str, *, whole: bool) -> pd.Series:
    numbers = pd.to_numeric(cells, errors="coerce")
    bad = ~np.isfinite(numbers) | ((numbers % 1 != 0) if whole else (numbers < 0))
    if bad.any():
        line = int(np.flatnonzero(bad)[0])
        kind = "a whole number" if whole else "a number of at least 0"
        raise LogError(
            f"line {line + 2} has {name} {cells.iloc[line]!r}, which must be {kind}: the file is "
            "damaged or still being written; remove the line or make the log again"
        )
    return numbers


def _check(rows: pd.DataFrame) -> None:
    """Refuse lines that contradict themselves or each other."""
    right = (rows["predict"] == rows["label"]).astype(int)
    wrong = np.flatnonzero(right != rows["correct"])
    repeated = np.flatnonzero(rows["idx"].duplicated())
    kept = np.flatnonzero((rows["predict"] == ABSTAIN) & (rows["radius"] > 0))
    for lines, problem in (
        (wrong, "says correct although predict is not the label, or the reverse"),
        (repeated, "repeats an idx"),
        (kept, "abstains (predict -1) and has a radius"),
    ):
        if len(lines):
            raise LogError(
                f"line {int(lines[0]) + 2} {problem}: a log has one line for each image, correct "
                "is 1 exactly where predict is label; make the log again"
            )
