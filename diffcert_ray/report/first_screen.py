"""What a person sees first, on the terminal and on the page: a whole run in nine lines."""

import math
from typing import Any

import pandas as pd

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.report.dataset_tables import (
    BY_CONSTRUCTION,
    RHO,
    beyond_reach,
    interval_text,
    marked,
)
from diffcert_ray.report.series import Series
from diffcert_ray.report.text_table import TextTable


def first_screen(one: Series) -> TextTable:
    """Certified accuracy with counts and intervals, how far n reaches, what failed, what it cost.

    A row for each sigma, radii across. A figure beyond the reach of n is 0 by construction: it is
    marked, and has no interval, since no image could have been certified there.
    """
    radii = sorted(one.radii)
    accuracy = certified_accuracy(one.certificates, radii, rho=RHO, asked=one.asked)
    rows = []
    for sigma, block in accuracy.groupby("sigma"):
        reach = (one.reach or {}).get(float(str(sigma)))
        cells = [_cell(row, reach) for row in block.to_dict("records")]
        shown = () if one.reach is None else (_reach_text(reach),)
        rows.append((f"{sigma:g}", *shown, *cells))
    header = ("sigma", *(("reach",) if one.reach is not None else ()))
    return TextTable(
        marked(f"Certified accuracy, {one.title}; {_asked_for(one)}", one.certificates, one.asked),
        (*header, *(f"r = {r:g}" for r in radii)),
        tuple(rows),
        (_legend(one, rows), _failures(one), _cost(one.certificates)),
        "first",
    )


def _cell(row: dict[Any, Any], reach: float | None) -> str:
    images = int(row["n_images"])
    count = round(row["certified_accuracy"] * images)
    if count == 0 and beyond_reach(row["radius"], reach):
        return f"0 %{BY_CONSTRUCTION}"
    interval = interval_text(row["interval_low"], row["interval_high"])
    return f"{count:,} = {share_text(count, images)}\n({interval})"


def share_text(count: int, images: int) -> str:
    """A count as per cent, rounded to the nearest tenth: 4 of 6 is "66.7 %"."""
    return f"{100 * count / images:.1f} %" if images else "-"


def _reach_text(reach: float | None) -> str:
    return "-" if reach is None else round_radius_down(reach, 3)


def _asked_for(one: Series) -> str:
    """How many images and votes the figures rest on."""
    counts = dict.fromkeys(
        f"{_images(one, sigma):,}"
        if len(rows) == _images(one, sigma)
        else f"{len(rows):,} of {_images(one, sigma):,}"
        for sigma, rows in one.by_sigma()
    )
    images = " or ".join(counts)
    votes = f", n = {one.votes:,}" if one.votes else ""
    data = f" of {one.dataset}" if one.dataset else ""
    return f"{images} images{data}{votes}"


def _images(one: Series, sigma: float) -> int:
    rows = one.certificates
    return (one.asked or {}).get(sigma, int((rows["sigma"] == sigma).sum()))


def _legend(one: Series, rows: list[tuple[str, ...]]) -> str:
    said = "In brackets: 95 % interval for the population of images."
    if one.reach is None:
        return said
    said += f" reach: the largest radius that {one.votes:,} votes can certify"
    if any(cell.endswith(BY_CONSTRUCTION) for row in rows for cell in row):
        return f"{said}; 0 %{BY_CONSTRUCTION} beyond it is by construction."
    return f"{said}."


def _failures(one: Series) -> str:
    parts = []
    for sigma, rows in one.by_sigma():
        wrong = int((~rows["correct"] & ~rows["abstained"]).sum())
        abstained, images = int(rows["abstained"].sum()), _images(one, sigma)
        where = f"sigma {sigma:g}: " if sigma > 0 else ""
        parts.append(
            f"{where}{wrong:,} wrong ({share_text(wrong, images)}), "
            f"{abstained:,} abstained ({share_text(abstained, images)})"
        )
    return f"Of {_images(one, one.by_sigma()[0][0]):,} images, {'; '.join(parts)}."


def _cost(rows: pd.DataFrame) -> str:
    """Evaluations, votes and time of all images, as far as they are known (a log knows none)."""
    nfe, seconds = (float(rows[name].sum(skipna=False)) for name in ("nfe", "seconds"))
    votes = float((rows["n"] + rows["n0_used"]).sum(skipna=False))
    known = []
    if not math.isnan(nfe):
        each = f" ({nfe / votes:.1f} per vote)" if votes > 0 else ""
        known.append(f"{nfe:,.0f} NFE{each}")
    if not math.isnan(seconds):
        known.append(f"{seconds:,.0f} worker seconds")
    return f"Cost: {', '.join(known)}." if known else "Cost: not known."
