"""Certified accuracy against radius as picture files, PNG and SVG."""

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from diffcert_ray.report.charts import Axis, Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE_WIDTH = 80  # characters that fit over the picture


def curve_pictures(lines: Sequence[Line], radii: Axis, title: str) -> dict[str, bytes]:
    """Draw what ``accuracy_lines`` gives as curve.png and curve.svg; equal lines, equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for line in lines:
        if line.markers:
            axes.plot(line.x, line.y, "o--", label=line.name, linewidth=1, markersize=4)
            continue
        (drawn,) = axes.plot(line.x, line.y, drawstyle="steps-post", label=line.name)
        colour = drawn.get_color()
        if len(line.low):
            axes.fill_between(
                line.x, line.low, line.high, step="post", alpha=0.15, color=colour, linewidth=0
            )
        if len(line.guaranteed):
            axes.plot(
                line.x, line.guaranteed, ":", drawstyle="steps-post", color=colour, linewidth=1
            )
    axes.set_xlabel(radii.label)
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, radii.high)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    wrapped = [part for line in title.split("\n") for part in wrap(line, TITLE_WIDTH)]
    axes.set_title("\n".join(wrapped), fontsize=10)
    return saved_pictures(figure, "curve")


def saved_pictures(figure: "Figure", name: str) -> dict[str, bytes]:
    """A figure as NAME.png and NAME.svg; equal figures, equal bytes."""
    from matplotlib import rc_context

    # The layout is found once; it takes longer than the drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Text stays text, ids are repeatable and no date is stored: equal figures give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffcert"}):
        return {
            f"{name}.png": _saved(figure, "png", None),
            f"{name}.svg": _saved(figure, "svg", {"Date": None}),
        }


def _saved(figure: "Figure", kind: str, about: dict[str, Any] | None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=about)
    return buffer.getvalue()
