"""Line charts as inline SVG that follows the page's colours, light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE = (760.0, 330.0)
NARROW = (460.0, 270.0)
"""Sizes of a chart, in units of its text."""
LEFT, RIGHT, TOP, BOTTOM = 56.0, 24.0, 12.0, 46.0
COLOURS = 8
"""Colours that the page's style defines, --c0 to --c7; further lines repeat them, dashed."""


@dataclass(frozen=True)
class Axis:
    """One axis of a chart, linear from low to high, with ticks (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """One line of a chart, a step to the right after each point, or markers alone.

    Args:
        name: what the legend calls it.
        x: ascending.
        y: as many.
        low: lower end of a band around it, or ().
        high: upper end of the band, or ().
        guaranteed: a second, dotted line that belongs to it, or ().
        markers: draw points instead of steps (published figures).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    guaranteed: Sequence[float] = ()
    markers: bool = False


def even_axis(label: str, high: float, *, ticks: int = 6, per_cent: bool = False) -> Axis:
    """An axis from 0 to high (1 where that is 0) with about so many ticks at round numbers."""
    high = high or 1.0
    step = _round_step(high / ticks)
    values = [step * i for i in range(int(high / step * (1 + 1e-9)) + 1)]
    texts = [f"{100 * v:g} %" if per_cent else f"{v:,.10g}" for v in values]
    return Axis(label, 0.0, high, tuple(zip(values, texts, strict=True)))


@dataclass(frozen=True)
class _Frame:
    """Where the axes lie in a chart."""

    x: Axis
    y: Axis
    width: float
    height: float

    def at(self, value: float) -> float:
        """Where a value of the horizontal axis is."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return round(LEFT + (self.width - LEFT - RIGHT) * share, 1)

    def up(self, value: float) -> float:
        """Where a value of the vertical axis is."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return round(self.height - BOTTOM - (self.height - TOP - BOTTOM) * share, 1)


def line_chart(
    lines: Sequence[Line], x: Axis, y: Axis, title: str, size: tuple[float, float] = WIDE
) -> str:
    """A chart as an SVG element; the title is for readers that do not see it.

    Each line is a group with class "line" and data-line = its position.
    """
    frame = _Frame(x, y, *size)
    parts = [
        f'<svg class="chart" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" '
        f'aria-label="{escape(title)}">',
        *_axes(frame),
        *(_line(i, line, frame) for i, line in enumerate(lines)),
        "</svg>",
    ]
    return "\n".join(parts)


def _round_step(least: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** _floor_log10(least)
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _axes(frame: _Frame) -> list[str]:
    x, y = frame.x, frame.y
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    parts = ['<g class="axes">']
    for value, text in y.ticks:
        at = frame.up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = frame.at(value)
        parts.append(f'<path class="grid" d="M{at} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
    parts.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{frame.height - 6}" '
        f'text-anchor="middle">{escape(x.label)}</text>'
    )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="label" x="13" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 13 {middle})">{escape(y.label)}</text></g>'
    )
    return parts


def _line(position: int, line: Line, frame: _Frame) -> str:
    colour = f"--c{position % COLOURS}"
    again = ' stroke-dasharray="7 3"' if position >= COLOURS else ""
    parts = [f'<g class="line" data-line="{position}" style="color:var({colour})">']
    parts.append(f"<title>{escape(line.name)}</title>")
    if len(line.low):
        back = _steps(line.x, line.low, frame, backwards=True)
        parts.append(f'<path class="band" d="{_steps(line.x, line.high, frame)}{back}Z"/>')
    if len(line.guaranteed):
        parts.append(f'<path class="guaranteed" d="{_steps(line.x, line.guaranteed, frame)}"/>')
    if line.markers:
        points = [(frame.at(a), frame.up(b)) for a, b in zip(line.x, line.y, strict=True)]
        path = "L".join(f"{a} {b}" for a, b in points)
        parts.append(f'<path class="published" d="M{path}"/>')
        parts += [f'<circle cx="{a}" cy="{b}" r="3.6"/>' for a, b in points]
    else:
        parts.append(f'<path class="step"{again} d="{_steps(line.x, line.y, frame)}"/>')
    return "".join([*parts, "</g>"])


def _steps(
    xs: Sequence[float], ys: Sequence[float], frame: _Frame, *, backwards: bool = False
) -> str:
    """A path that keeps each value until the next point; level points in between are left out."""
    corners: list[tuple[float, float]] = []
    for value, height in zip(xs, ys, strict=True):
        at, up = frame.at(value), frame.up(height)
        if corners and corners[-1][1] != up:
            corners.append((at, corners[-1][1]))
        if not corners or corners[-1][1] != up:
            corners.append((at, up))
    corners.append((frame.at(xs[-1]), corners[-1][1]))
    if backwards:
        corners.reverse()
    path = "L".join(f"{a:g} {b:g}" for a, b in corners)
    return f"{'L' if backwards else 'M'}{path}"
