"""The curve of a training's losses as an SVG file of its own."""

from collections.abc import Sequence

from diffcert_ray.report.charts import Line, even_axis, line_chart

_STYLE = (
    "<style>svg{--c0:#2563ad;background:#fff}text{font:12px sans-serif;fill:#333}"
    ".grid{stroke:#ddd}.step{fill:none;stroke:currentColor;stroke-width:1.5}</style>"
)
_SETTLED = 50
"""The first part of the rows, one in so many, may leave the picture at its top."""


def loss_picture(steps: Sequence[float], losses: Sequence[float]) -> str:
    """An SVG file: mean loss against steps, ascending, both as many and at least one."""
    top = max(losses[len(losses) // _SETTLED :])
    x, y = even_axis("steps", steps[-1]), even_axis("loss", top)
    line = Line("loss", steps, [min(loss, top) for loss in losses])
    chart = line_chart([line], x, y, "loss against steps of the training")
    opened, rest = chart.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg">{_STYLE}{rest}\n'
