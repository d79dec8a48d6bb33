"""Logs of Cohen et al., written and read: idx label predict radius correct time, tab-separated."""

import datetime
import io
import re
import warnings
from typing import Final

import numpy as np
import pandas as pd

from diffcert_ray.certificates.fraction import check_fraction
from diffcert_ray.certificates.radius import check_sigma
from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.errors import LogError
from diffcert_ray.report.log_times import seconds_of

COLUMNS: Final = ("idx", "label", "predict", "radius", "correct", "time")
DEFAULT_ALPHA: Final = 0.001
"""What published logs use; a log does not say it."""
LOG_BOUND: Final = "clopper-pearson"
NEEDED: Final = COLUMNS[:-1]
"""Some published logs have no times."""
SEPARATORS: Final = ("\t", ",", r"\s+")
MOST_SIGMAS: Final = 6.0
"""No log's radius is so many sigmas: it would take more than a billion votes."""
_TRUTH: Final = {"true": "1", "false": "0"}
_NO_RADIUS: Final = frozenset({"", "nan", "none", "-1", "-1.0", "-inf"})
"""What stands for the radius of an abstention in some logs, besides 0."""


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
        text: what the file holds: tabs, commas or spaces between the columns; time (seconds, or as
            a clock) may be missing; an abstention's radius may be nan.
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
    _check_sigma_is_possible(rows, sigma)
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


def _check_sigma_is_possible(rows: pd.DataFrame, sigma: float) -> None:
    """Refuse a sigma at which no number of votes gives the radii."""
    largest = float(rows["radius"].max())
    if largest > MOST_SIGMAS * sigma:
        raise LogError(
            f"the log has the radius {largest:g}, more than {MOST_SIGMAS:g} times the sigma "
            f"{sigma:g} that it is read with, which no number of votes gives: give its own sigma "
            "(--log-sigma), in units of pixels in [0, 1]"
        )


def _separator(line: str) -> str | None:
    """What separates the columns that a first line names; None where some are lacking."""
    for separator in SEPARATORS:
        if set(NEEDED) <= {_name(cell) for cell in re.split(separator, line.strip("\r\n"))}:
            return separator
    return None


def _name(cell: str) -> str:
    return cell.strip().strip('"').lower()


def check_header(text: str) -> str:
    """What separates the columns of a log.

    Raises:
        LogError: the first line does not name the columns of one.
    """
    header = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    separator = _separator(header)
    if separator is None:
        cells = [_name(cell) for cell in header.split("\t")]
        lacking = [name for name in NEEDED if name not in cells]
        raise LogError(
            f"the first line is {cells[:8]!r} and lacks {', '.join(lacking)}: a log of "
            f"certificates has the tab-separated columns {' '.join(COLUMNS)} (time may be missing)"
        )
    return separator


def _parsed(text: str) -> pd.DataFrame:
    separator, text = check_header(text), text.lstrip("\r\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            rows = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                engine="c" if len(separator) == 1 else "python",
                dtype=str,
                keep_default_na=False,
                index_col=False,  # never the first column, where lines are longer than the header
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise LogError(f"the log cannot be read as a table: {error}") from None
    rows.columns = pd.Index([_name(cell) for cell in rows.columns])
    if rows.empty:
        raise LogError("the log has no rows: certify at least one image first")
    rows["correct"] = rows["correct"].fillna("").map(lambda cell: _TRUTH.get(_name(cell), cell))
    abstained = pd.to_numeric(rows["predict"], errors="coerce") == ABSTAIN
    without = rows["radius"].fillna("").map(lambda cell: _name(cell) in _NO_RADIUS)
    rows.loc[abstained & without, "radius"] = "0"
    for name in ("idx", "label", "predict", "radius", "correct"):
        rows[name] = _numbers(rows[name], name, whole=name != "radius")
    times = rows["time"].fillna("") if "time" in rows else pd.Series("", index=rows.index)
    rows["seconds"] = times.map(seconds_of)
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
