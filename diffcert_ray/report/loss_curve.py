"""The curve of a training's losses as an SVG file of its own."""

import math
from collections.abc import Sequence

from diffcert_ray.report.charts import Line, even_axis, line_chart

_STYLE = (
    "<style>svg{--c0:#2563ad;--c1:#b4531a;background:#fff}text{font:12px sans-serif;fill:#333}"
    ".grid{stroke:#ddd}.step,.published{fill:none;stroke:currentColor;stroke-width:1.5}"
    "circle{fill:currentColor}</style>"
)
_SETTLED = 50
"""The first part of the rows, one in so many, may leave the picture at its top."""


def loss_picture(
    steps: Sequence[float], losses: Sequence[float], held_out: Sequence[float] = ()
) -> str:
    """An SVG file: mean loss against steps, ascending, both as many and at least one.

    Args:
        steps: done at each row.
        losses: as many.
        held_out: as many, NaN where it was not taken, or (): drawn as points.
    """
    top = max(losses[len(losses) // _SETTLED :])
    x, y = even_axis("steps", steps[-1]), even_axis("loss", top)
    lines = [Line("loss", steps, [min(loss, top) for loss in losses])]
    taken = [(s, min(v, top)) for s, v in zip(steps, held_out, strict=False) if not math.isnan(v)]
    if taken:
        at, values = zip(*taken, strict=True)
        lines.append(Line("held-out loss", at, values, markers=True))
    chart = line_chart(lines, x, y, "loss against steps of the training")
    opened, rest = chart.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg">{_STYLE}{rest}\n'
