"""What the charts show, as lines: certified accuracy, p_low, votes and evaluations per image."""

import math
from collections.abc import Sequence

import numpy as np

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.report.charts import Axis, Line, even_axis
from diffcert_ray.report.dataset_tables import RHO, beyond_reach
from diffcert_ray.report.published import PublishedRow
from diffcert_ray.report.series import Series

POINTS = 300  # of an accuracy curve
SHARE_AXIS = even_axis("share of images", 1.0, ticks=5, per_cent=True)
ACCURACY_AXIS = even_axis("certified accuracy", 1.0, ticks=5, per_cent=True)
P_LOW_TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


def accuracy_lines(
    series: Sequence[Series], published: Sequence[PublishedRow] = ()
) -> tuple[list[Line], Axis]:
    """Certified accuracy against radius: a line for each series and sigma, and published points."""
    stop = max((r for row in published for r in row.radii), default=0.0)
    for one in series:
        reached = one.certificates.loc[one.certificates["correct"], "radius"]
        stop = max(stop, float(reached.max()) if len(reached) else 0.0, *one.radii, 1e-6)
    radii = [i * 1.02 * stop / POINTS for i in range(POINTS + 1)]
    lines = []
    for one in series:
        table = certified_accuracy(one.certificates, radii, rho=RHO, asked=one.asked)
        for sigma, _ in one.by_sigma():
            columns = {n: values.tolist() for n, values in table[table["sigma"] == sigma].items()}
            reach = (one.reach or {}).get(sigma)
            beyond = [beyond_reach(r, reach) for r in radii]  # no band: 0 by construction
            lines.append(
                Line(
                    line_name(series, one, sigma),
                    columns["radius"],
                    columns["certified_accuracy"],
                    columns["interval_low"],
                    [
                        0.0 if b else h
                        for b, h in zip(beyond, columns["interval_high"], strict=True)
                    ],
                    columns["guaranteed_low"],
                )
            )
    lines += [
        Line(f"published: {p.label}", p.radii, [a / 100 for a in p.accuracy], markers=True)
        for p in published
    ]
    return lines, even_axis("l2 radius, pixels in [0, 1]", radii[-1])


def p_low_lines(series: Sequence[Series]) -> tuple[list[Line], Axis] | None:
    """Share of images with at least a p_low, on an axis that stretches what is near 1.

    Args:
        series: certificates; those without p_low are left out. Images without a result count as
            below.

    Returns:
        The lines and the axis, or None where no series has p_low.
    """
    votes = [s for s in series if s.certificates["p_low"].notna().all()]
    if not votes:
        return None
    top = max(float(s.certificates["p_low"].max()) for s in votes)
    ticks = [(_nines(p), f"{p:g}") for p in P_LOW_TICKS]
    high = max(_nines(min(top, 1 - 1e-12)) * 1.05, _nines(0.99))
    kept = tuple(t for t in ticks if t[0] <= high)
    axis = Axis(
        "p_low, lower bound on the probability of the class", 0.0, high, ((0.0, "0"), *kept)
    )
    lines = []
    for one in votes:
        for sigma, rows in one.by_sigma():
            values = np.array([_nines(min(p, 1 - 1e-12)) for p in rows["p_low"]])
            images = (one.asked or {}).get(sigma, len(values))
            lines.append(_at_least(line_name(series, one, sigma), values, high, images))
    return lines, axis


def cost_lines(series: Sequence[Series], column: str, label: str) -> tuple[list[Line], Axis] | None:
    """Share of the finished images that took at least so much, and the axis with that label.

    The column is "nfe" or "votes" (selection included); series that do not know it are left out.
    None where none knows it, or all images took the same.
    """
    known = []
    for one in series:
        for sigma, rows in one.by_sigma():
            values = rows["nfe"] if column == "nfe" else rows["n"] + rows["n0_used"]
            if values.notna().all():
                known.append((one, sigma, values))
    if all(values.nunique() == 1 for *_, values in known):
        return None
    high = max(float(values.max()) for *_, values in known)
    axis = even_axis(label, high)
    names = [line_name(series, one, sigma) for one, sigma, _ in known]
    return [
        _at_least(name, values.to_numpy(dtype=float), axis.high, len(values))
        for name, (*_, values) in zip(names, known, strict=True)
    ], axis


def line_name(series: Sequence[Series], one: Series, sigma: float) -> str:
    """What a legend calls one sigma of one of some series."""
    shown = "no smoothing" if sigma == 0 else f"σ = {sigma:g}"
    return shown if len(series) == 1 else f"{one.name}, {shown}"


def _at_least(name: str, values: np.ndarray, high: float, images: int) -> Line:
    distinct = np.unique(values)
    above = np.searchsorted(np.sort(values), distinct, side="left")
    shares = (len(values) - above) / images
    # A step keeps its value until the next point: at x the share still counts the images at x.
    x = [0.0, *distinct.tolist(), high]
    y = [*shares.tolist(), 0.0, 0.0]
    return Line(name, x, y)


def _nines(p: float) -> float:
    """-log10(1 - p): 1 for 0.9, 2 for 0.99."""
    return -math.log10(1.0 - p)
