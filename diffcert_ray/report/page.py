"""The page of a report: one HTML file that needs no network and no other file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffcert_ray.report.charts import COLOURS, NARROW, WIDE, Axis, Line, line_chart
from diffcert_ray.report.dataset_tables import (
    comparison_text,
    guarantee,
    wrong_text,
)
from diffcert_ray.report.first_screen import series_tables
from diffcert_ray.report.gallery import Gallery
from diffcert_ray.report.lines import (
    ACCURACY_AXIS,
    SHARE_AXIS,
    accuracy_lines,
    cost_lines,
    line_name,
    p_low_lines,
)
from diffcert_ray.report.published import PublishedRow, published_text
from diffcert_ray.report.series import Series, unfinished_lines
from diffcert_ray.report.text_table import TextTable, without_repeats
from diffcert_ray.report.unfinished import MARK

MATRIX_CLASSES = 20  # more are listed, not drawn as a matrix


@dataclass(frozen=True)
class Chart:
    """A chart and its legend: (name, colour, whether it is published) of each line."""

    svg: Markup
    legend: tuple[tuple[str, str, bool], ...]
    title: str
    explanation: str


@dataclass(frozen=True)
class Confusion:
    """How often each class was certified for each label.

    Args:
        title: series and sigma.
        names: of the classes.
        counts: images, [label][class].
        most: the largest count off the diagonal.
    """

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    most: int


def render_page(
    series: Sequence[Series], published: Sequence[PublishedRow], gallery: Gallery, *, version: str
) -> str:
    """The page as HTML; nothing in it depends on when or where it was made."""
    environment = Environment(
        loader=PackageLoader("diffcert_ray.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded_json
    class_names = tuple(gallery.data.get("classes", ()))
    radii = sorted({r for one in series for r in one.radii})
    return environment.get_template("report.html").render(
        title=" · ".join(one.name for one in series),
        series=series,
        unfinished=unfinished_lines(series),
        guarantees=list(dict.fromkeys(guarantee(one.bound) for one in series)),
        accuracy=_accuracy_chart(series, published),
        charts=_charts(series),
        tables=_tables(series),
        comparison=comparison_text(series, radii) if len(series) > 1 else None,
        published=published_text(published) if published else None,
        wrong=[wrong_text(one, class_names, 6) for one in series],
        confusions=[matrix for one in series for matrix in confusions(one, class_names)],
        gallery=gallery,
        version=version,
    )


def _tables(series: Sequence[Series]) -> list[list[TextTable]]:
    """The figures of each series, each note once."""
    each = [series_tables(one) for one in series]
    flat = iter(without_repeats([table for tables in each for table in tables]))
    return [[next(flat) for _ in tables] for tables in each]


def embedded_json(value: Any) -> Markup:
    """A value as JSON that may stand inside a script element: no "<" in it can end that."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def confusions(one: Series, class_names: Sequence[str]) -> list[Confusion]:
    """Matrices of label against certified class, one for each sigma with a wrong certificate.

    None where there are too many classes; numbers where their names are not known.
    """
    rows = one.certificates
    classes = int(max(rows["label"].max(), rows["predicted"].max(), len(class_names) - 1)) + 1
    if classes > MATRIX_CLASSES:
        return []
    names = tuple(class_names) or tuple(str(c) for c in range(classes))
    matrices = []
    for sigma, part in one.by_sigma():
        kept = part[~part["abstained"]]
        counts = [[0] * classes for _ in range(classes)]
        for label, predicted in zip(kept["label"], kept["predicted"], strict=True):
            counts[int(label)][int(predicted)] += 1
        most = max((c for i, r in enumerate(counts) for j, c in enumerate(r) if i != j), default=0)
        if most:
            title = line_name([one, one], one, sigma)
            matrices.append(Confusion(title, names, tuple(map(tuple, counts)), most))
    return matrices


def _accuracy_chart(series: Sequence[Series], published: Sequence[PublishedRow]) -> Chart:
    lines, axis = accuracy_lines(series, published)
    explanation = (
        "Solid: share of images with the right class and at least this certified radius. Band: "
        "exact 95 % binomial interval for the population of images. Dotted: guaranteed for these "
        "very images, with the failure probability of every certificate taken off."
    )
    title = "Certified accuracy against radius"
    if unfinished_lines(series):
        title = f"{MARK}. {title}"
        explanation += (
            " Images without a result count as not certified, solid and dotted; the band reaches "
            "up to where all of them are certified."
        )
    return _chart(lines, axis, ACCURACY_AXIS, title, explanation)


def _charts(series: Sequence[Series]) -> list[Chart]:
    charts = []
    lacking = unfinished_lines(series)
    done = "finished images" if lacking else "images"
    below = " Images without a result count as below." if lacking else ""
    for lines, title, explanation in (
        (
            p_low_lines(series),
            "Distribution of p_low",
            "Share of images whose lower bound on the probability of the predicted class is at "
            "least this, right or wrong. The axis stretches what is near 1; below 0.5 nothing is "
            f"certified.{below}",
        ),
        (
            cost_lines(series, "votes", "votes per image, selection included"),
            "Votes per image",
            f"Share of {done} that took at least so many votes.",
        ),
        (
            cost_lines(series, "nfe", "NFE per image: evaluations of the denoiser"),
            "Evaluations per image",
            f"Share of {done} that took at least so many evaluations of the denoiser (NFE).",
        ),
    ):
        if lines is not None:
            charts.append(_chart(*lines, SHARE_AXIS, title, explanation, NARROW))
    return charts


def _chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    title: str,
    explanation: str,
    size: tuple[float, float] = WIDE,
) -> Chart:
    legend = tuple((line.name, f"c{i % COLOURS}", line.markers) for i, line in enumerate(lines))
    return Chart(Markup(line_chart(lines, x, y, title, size)), legend, title, explanation)
