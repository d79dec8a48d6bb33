"""A page in light or dark colours that pictures are drawn on, and how it becomes an SVG.

Everything is placed by hand on a page 700 units wide (1 unit is 0.72 pt), y downwards. Text becomes
paths, since a page that shows an SVG as an image gives it no fonts to rely on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.patheffects import Normal, Stroke

WIDTH = 700
SMALL, NORMAL, TITLE = 11.5, 12.5, 17.0  # pt; on a phone about half


@dataclass(frozen=True)
class Theme:
    """Colours of a page; winner and dropped are told apart by every kind of eye (Okabe, Ito)."""

    name: str
    page: str
    ink: str
    muted: str
    faint: str
    box: str
    winner: str
    dropped: str


THEMES = (
    Theme("light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#f3f6f9", "#0072b2", "#bf5200"),
    Theme("dark", "#0d1117", "#f0f6fc", "#a3abb4", "#3d444d", "#161d26", "#56b4e9", "#e69f00"),
)


@dataclass(frozen=True)
class Canvas:
    """A page of one theme."""

    figure: Figure
    axes: Axes
    theme: Theme

    @staticmethod
    def of(theme: Theme, height: float) -> "Canvas":
        """An empty page."""
        figure = Figure(figsize=(WIDTH / 100, height / 100), facecolor=theme.page)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        return Canvas(figure, axes, theme)

    def text(self, x: float, y: float, said: str, *, halo: bool = False, **kind: Any) -> None:
        """Text from x to the right, its middle at y; a halo keeps it apart from lines below it."""
        style = {"fontsize": NORMAL, "color": self.theme.ink, "va": "center"}
        behind = [Stroke(linewidth=4, foreground=self.theme.page), Normal()] if halo else None
        self.axes.text(x, y, said, path_effects=behind, **style | kind)

    def title(self, said: str, below: str = "") -> None:
        """What the picture says, and a line under it."""
        self.text(20, 28, said, fontsize=TITLE, weight="bold")
        self.text(20, 56, below, color=self.theme.muted)

    def box(self, x: float, y: float, width: float, height: float, **kind: Any) -> None:
        """A rectangle with round corners."""
        style = {"facecolor": self.theme.box, "edgecolor": self.theme.faint, "linewidth": 0.8}
        shape = "round,pad=0,rounding_size=6"
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, shape, **style | kind))

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A rectangle without an edge."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, linewidth=0))

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """A ball seen from the front."""
        self.axes.add_patch(Circle((x, y), radius, facecolor=colour, alpha=0.16, linewidth=0))
        self.axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=colour, linewidth=1.6))

    def line(self, x: Any, y: Any, colour: str, **kind: Any) -> None:
        """A line through points."""
        self.axes.plot(x, y, color=colour, **{"linewidth": 1.6, "solid_capstyle": "round"} | kind)

    def crosses(self, x: Any, y: Any, colour: str) -> None:
        """A mark at each point."""
        self.axes.plot(x, y, color=colour, linestyle="", marker="X", markersize=8)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], **kind: Any) -> None:
        """A straight arrow."""
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": self.theme.ink}
        self.axes.add_patch(
            FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, linewidth=1.3, **style | kind)
        )

    def pixels(self, x: float, y: float, size: float, image: np.ndarray) -> None:
        """A grey image [H, W] in [0, 1] (beyond it: clipped) as squares, which stay sharp."""
        side, lap = size / len(image), 0.4  # without overlap, seams shine through
        grey = np.clip(image, 0.0, 1.0).round(3)
        for (row, column), value in np.ndenumerate(grey):
            left, top = x + side * column, y + side * row
            width, height = min(side + lap, x + size - left), min(side + lap, y + size - top)
            self.bar(left, top, width, height, str(value))
        edge = Rectangle((x, y), size, size, fill=False, edgecolor=self.theme.muted, linewidth=1)
        self.axes.add_patch(edge)


@dataclass(frozen=True)
class Drawing:
    """A picture: the name of its files, the text that stands in for it, and how it is drawn."""

    name: str
    alt: str
    draw: Callable[[Theme], Figure]


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write NAME-light.svg and NAME-dark.svg; the same drawing gives the same bytes."""
    about = {"Title": drawing.alt, "Date": None, "Creator": None}
    written = []
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "diffcert"}):
        for theme in THEMES:
            written.append(folder / f"{drawing.name}-{theme.name}.svg")
            drawing.draw(theme).savefig(written[-1], metadata=about)
    return written
