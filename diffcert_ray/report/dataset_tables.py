"""The dataset figures of ``metrics`` as tables of text, rounded in the safe direction."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diffcert_ray.certificates.metrics import (
    abstention_rate,
    acr,
    best_sigma_per_radius,
    certified_accuracy,
)
from diffcert_ray.certificates.radius import BOUNDS, round_radius_down
from diffcert_ray.config.tables import PLAIN_BOUNDS
from diffcert_ray.report.series import Series
from diffcert_ray.report.text_table import TextTable
from diffcert_ray.report.unfinished import (
    LOWER_BOUNDS,
    MARK,
    of_finished,
    unfinished,
)

Asked = Mapping[float, int] | None
"""Images asked for at each sigma; None: those that have a certificate."""

Reach = Mapping[float, float] | None
"""The largest radius that the votes can certify at each sigma; None where that is not known."""
BY_CONSTRUCTION = "†"
RHO = 0.001
"""Failure probability of the guaranteed figure, over the noise of all images."""
P_LOW_EDGES = (0.5, 0.7, 0.9, 0.99, 0.999)

GUARANTEE = (
    "With probability at least 1 - alpha over the noise, for each image and sigma, the smoothed "
    "classifier returns the predicted class everywhere in the open l2 ball of the radius "
    "around the "
    "image, in [0,1] pixel space."
)
PLAIN_GUARANTEE = (
    "With probability at least 1 - alpha over the noise draws, for each image, the plain diffusion "
    "classifier with exact expectations, its input projected on [0,1]^D and its denoiser's output "
    "clipped to it, returns the predicted class everywhere in the open l2 ball of the radius "
    "around the image, in [0,1] pixel space. No smoothing, no votes (sigma is 0). This holds in "
    "real arithmetic only: what rounding does to losses and noise draws is not taken off."
)
IN_REAL_ARITHMETIC = "in real arithmetic only"
"""Said in the titles of tables of certificates without votes: none of them covers rounding."""
INTERVAL_NOTE = (
    "In brackets: exact 95 % binomial interval for the population that the images are a random "
    "sample of."
)
GUARANTEED_NOTE = (
    f"After ≥: guaranteed for these very images. With probability at least 1 - {RHO:g} over the "
    "noise, for each sigma, their true certified accuracy is at least this at all radii together "
    "(each certificate may fail with probability alpha; the binomial quantile of such failures is "
    "taken off)."
)
BEYOND_NOTE = (
    f"{BY_CONSTRUCTION} by construction: so many votes certify no radius as large, whatever the "
    "classifier does."
)
CUT_OFF_NOTE = (
    "The bound sequential stops at the largest radius asked for, so radii, ACR and p_low are cut "
    "off there: not comparable with a fixed number of votes."
)


def guarantee(bound: str) -> str:
    """What a certificate by this bound says."""
    return PLAIN_GUARANTEE if bound in PLAIN_BOUNDS else GUARANTEE


def dataset_tables(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    title: str,
    asked: Asked = None,
    reach: Reach = None,
) -> list[TextTable]:
    """All figures of a dataset, as far as its certificates (one bound and alpha) support them.

    Returns:
        Tables with the labels accuracy, images, p_low (bounds from votes only) and best_sigma (two
        sigmas or more).

    Raises:
        ValueError: rows that must not be compared with each other.
    """
    accuracy = accuracy_text(certificates, radii, title, asked, reach)
    tables = [accuracy, images_text(certificates, asked)]
    if certificates["bound"].iloc[0] in BOUNDS and certificates["p_low"].notna().all():
        tables.append(p_low_text(certificates, asked))
    if certificates["sigma"].nunique() > 1:
        tables.append(best_sigma_text(certificates, radii, asked))
    return tables


def accuracy_text(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    title: str,
    asked: Asked = None,
    reach: Reach = None,
) -> TextTable:
    """Certified accuracy with both intervals: a row for each sigma, radii across.

    Beyond the reach of the votes 0 % is by construction: marked, without interval.
    """
    radii = sorted(radii)
    table = certified_accuracy(certificates, radii, rho=RHO, asked=asked)
    rows = []
    for sigma, block in table.groupby("sigma"):
        cells = block.to_dict("records")
        most = (reach or {}).get(float(str(sigma)))
        shown = [_accuracy_cell(cell, most) for cell in cells]
        rows.append((f"{sigma:g}", _images(cells[0]), *shown))
    marks = any(cell.endswith(BY_CONSTRUCTION) for row in rows for cell in row)
    return TextTable(
        marked(f"Certified accuracy, {title}", certificates, asked),
        ("sigma", "images", *(f"r = {r:g}" for r in radii)),
        tuple(rows),
        (
            *([LOWER_BOUNDS] if unfinished(certificates, asked) else []),
            *of_finished(certificates, radii, asked),
            INTERVAL_NOTE,
            GUARANTEED_NOTE,
            *([BEYOND_NOTE] if marks else []),
        ),
        "accuracy",
    )


def _selection_note(certificates: pd.DataFrame) -> list[str]:
    """How many votes chose a class, where that is not the same number for every image."""
    read = certificates[certificates["nfe"] > 0]
    if not (read["n0_used"] < read["n0"]).any():
        return []
    used = read.groupby("sigma")["n0_used"].mean()
    means = ", ".join(f"{mean:.1f} at sigma {sigma:g}" for sigma, mean in used.items())
    most = max(read["n0"])
    return [f"Selection votes, means per image: {means} (at most {most:.0f})."]


def images_text(certificates: pd.DataFrame, asked: Asked = None) -> TextTable:
    """ACR, abstentions, wrong classes and cost: a row for each sigma."""
    averages = acr(certificates, asked=asked)
    rates = abstention_rate(certificates, asked=asked).drop(columns=["n_images", "n_missing"])
    figures = averages.merge(rates, on="sigma").to_dict("records")
    rows = []
    for share, (sigma, part) in zip(figures, certificates.groupby("sigma"), strict=True):
        votes, nfe, all_of_them = part["n"] + part["n0_used"], part["nfe"], share["n_images"]
        interval = interval_text(share["interval_low"], share["interval_high"])
        rows.append(
            (
                f"{sigma:g}",
                round_radius_down(float(share["acr"]), 3),
                f"{100 * share['abstention_rate']:.1f} %\n({interval})",
                f"{100 * float((~part['correct'] & ~part['abstained']).sum()) / all_of_them:.1f} %",
                _mean(votes, ",.0f"),
                _mean(nfe, ",.0f"),
                _text(
                    float(nfe.sum(skipna=False)) / max(float(votes.sum(skipna=False)), 1.0), ".1f"
                ),
                _mean(part["seconds"], ",.2f"),
            )
        )
    header = ("sigma", "ACR", "abstain", "wrong", "votes", "NFE", "NFE/vote", "worker s")
    notes = ["Votes, NFE and worker seconds are means per image, selection included."]
    if unfinished(certificates, asked):
        notes = [
            "Abstentions and wrong classes are those among the finished images, as shares of all "
            "that were asked for. Votes, NFE and worker seconds are means per finished image, "
            "selection included.",
            LOWER_BOUNDS,
        ]
    notes += _selection_note(certificates)
    notes += [CUT_OFF_NOTE] if averages["cut_off"].any() else []
    title = marked("Radius, abstentions, cost", certificates, asked)
    return TextTable(title, header, tuple(rows), tuple(notes), "images")


def p_low_text(certificates: pd.DataFrame, asked: Asked = None) -> TextTable:
    """Where the lower bounds on the class probability lie: a row for each sigma."""
    rows = []
    for sigma, part in certificates.groupby("sigma"):
        missing = (asked or {}).get(float(str(sigma)), len(part)) - len(part)
        values = np.append(part["p_low"].to_numpy(dtype=float), np.zeros(missing))
        shares = [f"{100 * float((values >= p).mean()):.1f} %" for p in P_LOW_EDGES]
        median = _down(float(np.quantile(values, 0.5, method="lower")), 4)
        rows.append((f"{sigma:g}", *shares, f"{median:.4f}"))
    header = ("sigma", *(f"≥ {p:g}" for p in P_LOW_EDGES), "median")
    notes = (
        "Share of images whose p_low, the lower confidence bound on the probability of the "
        "predicted class, right or wrong, is at least this; below 0.5 nothing is certified.",
        *([LOWER_BOUNDS] if unfinished(certificates, asked) else []),
    )
    title = marked("Distribution of p_low", certificates, asked)
    return TextTable(title, header, tuple(rows), notes, "p_low")


def best_sigma_text(
    certificates: pd.DataFrame, radii: Sequence[float], asked: Asked = None
) -> TextTable:
    """The sigma with the highest certified accuracy at each radius, marked as a selection.

    Where a sigma lacks images the table has no rows, and says why.
    """
    title = "Best sigma per radius: a selection"
    sigmas = certificates["sigma"].nunique()
    same = (certificates.groupby("image_id")["sigma"].nunique() == sigmas).all()
    if not same or unfinished(certificates, asked):
        reason = "Left out: the sigmas do not have all images; finish the run first."
        return TextTable(title, (), (), (reason,), "best_sigma")
    best = best_sigma_per_radius(certificates, sorted(radii), rho=RHO)
    alpha = float(best["alpha_per_image"].iloc[0])
    note = (
        f"Chosen after seeing the results of {sigmas} sigmas: each radius has a classifier "
        "of its own, and an image's certificates at all sigmas hold together with probability "
        f"1 - {alpha:g} only. Interval and guaranteed figure allow for the choice (errors split "
        f"by {sigmas}). Name a sigma before you look to avoid this."
    )
    cells = best.to_dict("records")
    rows = (
        ("sigma", *(f"{row['sigma']:g}" if row["certified_accuracy"] else "-" for row in cells)),
        ("certified", *(_accuracy_cell(row) for row in cells)),
    )
    header = ("", *(f"r = {row['radius']:g}" for row in cells))
    return TextTable(title, header, rows, (note,), "best_sigma")


def comparison_text(series: Sequence[Series], radii: Sequence[float]) -> TextTable:
    """Certified accuracy of several series side by side, as Cohen et al. print it.

    A row for each series and sigma; the best cells of each radius are bold.
    """
    radii = sorted(radii)
    shares = []
    for s in series:
        for sigma, certificates in s.by_sigma():
            of_sigma = certified_accuracy(certificates, radii, asked=s.asked)
            first = of_sigma.to_dict("records")[0]
            name = f"{s.name} ({MARK}, {_images(first)})" if first["n_missing"] else s.name
            name = _qualified(name, certificates)
            shares.append((name, sigma, of_sigma["certified_accuracy"].tolist()))
    best = [max(cells[c] for *_, cells in shares) for c in range(len(radii))]
    rows = tuple((f"{n}, σ = {sigma:g}", *(f"{c:.2f}" for c in v)) for n, sigma, v in shares)
    bold = frozenset(
        (i, c + 1)
        for i, (*_, cells) in enumerate(shares)
        for c, cell in enumerate(cells)
        if cell == best[c] > 0
    )
    notes = ["Bold: the best of each radius, a selection made after seeing the results."]
    notes += [LOWER_BOUNDS] if any(s.unfinished for s in series) else []
    header = ("", *(f"r = {r:g}" for r in radii))
    title = "Certified accuracy side by side"
    return TextTable(title, header, rows, tuple(notes), "comparison", bold)


def wrong_text(series: Series, class_names: Sequence[str] = (), at_most: int = 12) -> TextTable:
    """The most frequent confusions: certificates that name another class than the label."""
    rows = series.certificates
    wrong = rows[~rows["correct"] & ~rows["abstained"]]
    counts = wrong.groupby(["sigma", "label", "predicted"])["radius"].agg(["size", "max"])
    top = counts.reset_index().sort_values(
        ["size", "sigma", "label", "predicted"], ascending=[False, True, True, True]
    )
    names = dict(enumerate(class_names))
    cells = tuple(
        (
            f"{row['sigma']:g}",
            names.get(int(row["label"]), f"{row['label']:g}"),
            names.get(int(row["predicted"]), f"{row['predicted']:g}"),
            f"{row['size']:g}",
            round_radius_down(float(row["max"]), 3),
        )
        for row in top.head(at_most).to_dict("records")
    )
    left = len(top) - len(cells)
    note = (
        f"{len(wrong)} of {len(rows)} certificates name another class than the label (robustly "
        "wrong); abstentions are not among them." + (f" {left} rarer pairs left out." * (left > 0))
    )
    header = ("sigma", "label", "certified class", "images", "largest radius")
    title = _qualified(f"Wrong classes, {series.name}", rows)
    return TextTable(title, header, cells, (note,), "wrong")


def marked(title: str, certificates: pd.DataFrame, asked: Asked) -> str:
    """A title that says of unfinished runs that they are, and of real arithmetic that it is."""
    title = _qualified(title, certificates)
    return f"{MARK}. {title}" if unfinished(certificates, asked) else title


def _qualified(title: str, certificates: pd.DataFrame) -> str:
    """A title that says of certificates without votes that they do not cover rounding."""
    plain = certificates["bound"].isin(PLAIN_BOUNDS).any()
    return f"{title} ({IN_REAL_ARITHMETIC})" if plain else title


def _images(row: dict[Any, Any]) -> str:
    """How many images a figure is about, of a row of ``certified_accuracy``."""
    missing, images = row["n_missing"], row["n_images"]
    return f"{images - missing} of {images}" if missing else str(images)


def _mean(values: pd.Series, form: str) -> str:
    return _text(float(values.mean()), form)


def _text(value: float, form: str) -> str:
    """A figure, or "-" where it is not known (a log has no votes)."""
    return "-" if math.isnan(value) else format(value, form)


def beyond_reach(radius: float, reach: float | None) -> bool:
    """Whether votes that certify at most ``reach`` (0: nothing at all) cannot reach a radius."""
    return reach is not None and (radius > reach or reach <= 0)


def _accuracy_cell(row: dict[Any, Any], reach: float | None = None) -> str:
    if row["certified_accuracy"] == 0 and beyond_reach(row["radius"], reach):
        return f"0 %{BY_CONSTRUCTION}"
    interval = interval_text(row["interval_low"], row["interval_high"])
    guaranteed = _down(100 * row["guaranteed_low"], 1)
    return f"{100 * row['certified_accuracy']:.1f} %\n({interval})\n≥ {guaranteed:.1f}"


def interval_text(low: float, high: float) -> str:
    """Per cent, rounded outwards."""
    return f"{_down(100 * low, 1):.1f}-{-_down(-100 * high, 1):.1f}"


def _down(value: float, decimals: int) -> float:
    """Rounded towards minus infinity; a float that is a decimal up to its last bits stays it."""
    scale = 10**decimals
    return math.floor(value * scale + 1e-9) / scale
