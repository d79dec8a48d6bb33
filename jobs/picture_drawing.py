"""The promise and the idea, drawn from the figures of a run."""

from dataclasses import dataclass
from functools import partial
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from picture_canvas import SMALL, TITLE, Canvas, Drawing, Theme

from diffcert_ray.certificates.radius import round_radius_down


@dataclass(frozen=True)
class Copy:
    """A noisy copy of the image: its vote's number, pixels [H, W] and the class it votes for."""

    vote: int
    pixels: np.ndarray
    answer: int


@dataclass(frozen=True)
class Promise:
    """One certificate: image [H, W], noisy copies, votes for each class [K], figures."""

    image: np.ndarray
    copies: tuple[Copy, ...]
    counts: np.ndarray
    answer: int
    p_low: float
    radius: float
    alpha: float
    sigma: float

    @property
    def words(self) -> str:
        """What the certificate says."""
        sure = f"{100 * (1 - self.alpha):g}"
        return f"With probability at least {sure} %, no change inside this ball changes the answer"


@dataclass(frozen=True)
class Race:
    """One vote, as a race between its classes.

    Attributes:
        terms: weighted losses of every class at every level, in the order of visits [E, K].
        levels: noise level of each visit [E].
        taken: visits of each class before it dropped out, int64 [K].
        answer: the class that won.
        evaluations: spent on this vote.
        full: of a vote that drops no class.
        usual: evaluations of the image's votes, their median.
        mean: and on average.
    """

    terms: np.ndarray
    levels: np.ndarray
    taken: np.ndarray
    answer: int
    evaluations: int
    full: int
    usual: float
    mean: float

    @property
    def times(self) -> np.ndarray:
        """Summed losses as multiples of the winner's after 1, 2, ... visits [E, K]."""
        sums = np.cumsum(self.terms, axis=0)
        return sums / sums[:, [self.answer]]

    @property
    def losers(self) -> np.ndarray:
        """Which classes did not win, bool [K]."""
        return np.arange(len(self.taken)) != self.answer


# ---- the promise ---------------------------------------------------------------------------------


def promise_drawing(promise: Promise) -> Drawing:
    """One image, its noisy copies, the votes, and the ball that they promise."""
    radius, answer = round_radius_down(promise.radius, 3), promise.answer
    alt = (
        f"An image of a {answer}; four noisy copies of it, each with the class it votes for; bars "
        f"of {promise.counts.sum():,} votes, {promise.counts[answer]:,} of them for {answer}, of "
        f"which p_low = {round_radius_down(promise.p_low, 3)} is guaranteed; and a ball of radius "
        f"{radius} around the image. {promise.words}."
    )
    return Drawing("promise", alt, partial(_promise, promise))


def _promise(promise: Promise, theme: Theme) -> Figure:
    canvas = Canvas.of(theme, 600)
    canvas.title("The promise: small changes, same answer")
    _copies(canvas, promise)
    _bars(canvas, promise)
    _ball(canvas, promise)
    return canvas.figure


def _step(canvas: Canvas, x: float, y: float, number: int, said: str) -> None:
    canvas.text(x, y, str(number), weight="bold", color=canvas.theme.winner)
    canvas.text(x + 18, y, said, weight="bold")


def _copies(canvas: Canvas, promise: Promise) -> None:
    theme = canvas.theme
    _step(canvas, 20, 72, 1, "An image")
    canvas.pixels(20, 92, 104, promise.image)
    canvas.arrow((136, 144), (206, 144))
    canvas.text(171, 122, "noise", ha="center", color=theme.muted)
    canvas.text(171, 166, f"σ = {promise.sigma:g}", ha="center", color=theme.muted)
    _step(canvas, 218, 72, 2, f"{promise.counts.sum():,} noisy copies of it, a vote each")
    for index, copy in enumerate(promise.copies):
        x = 218 + 118 * index
        canvas.pixels(x, 92, 104, copy.pixels)
        canvas.text(x + 84, 211, f"vote {copy.vote + 1}:", ha="right", color=theme.muted)
        colour = theme.winner if copy.answer == promise.answer else theme.dropped
        canvas.text(x + 90, 211, str(copy.answer), weight="bold", color=colour)


def _bars(canvas: Canvas, promise: Promise) -> None:
    theme, votes = canvas.theme, int(promise.counts.sum())
    left, top, row, full = 40, 278, 22, 254
    _step(canvas, 20, 252, 3, f"The majority is the answer: {promise.answer}")
    for label, count in enumerate(promise.counts.tolist()):
        y, end = top + row * label, left + full * count / votes
        won = label == promise.answer
        weight = "bold" if won else "normal"
        canvas.text(left - 8, y + row / 2, str(label), ha="right", weight=weight)
        canvas.bar(left, y + 3, end - left, row - 6, theme.winner if won else theme.dropped)
        colour = theme.ink if count else theme.muted
        canvas.text(end + 7, y + row / 2, f"{count:,}", color=colour, weight=weight)
    bottom = top + row * len(promise.counts)
    at, start = left + full * promise.p_low, top + row * promise.answer
    canvas.line([at, at], [start - 3, bottom + 12], theme.ink, linestyle=(0, (2.5, 1.5)))
    low = round_radius_down(promise.p_low, 3)
    canvas.text(at + 4, bottom + 26, f"p_low = {low}", ha="right", weight="bold")
    below = f"of all copies, at least so many say {promise.answer}"
    canvas.text(20, bottom + 50, below, color=theme.muted)


def _ball(canvas: Canvas, promise: Promise) -> None:
    theme, x, y, size = canvas.theme, 474, 370, 86
    left, right, top, bottom = 370, 680, 272, 468
    _step(canvas, left, 252, 4, f"In the ball it stays {promise.answer}")
    canvas.box(left, top, right - left, bottom - top)
    down = np.linspace(top + 1, bottom - 1, 40)
    across = 586 + 0.003 * (down - y) ** 2
    outside = [*zip(across, down, strict=True), (right, bottom - 1), (right, top + 1)]
    canvas.axes.add_patch(Polygon(outside, facecolor=theme.dropped, alpha=0.22, linewidth=0))
    canvas.line(across, down, theme.dropped)
    for index, said in enumerate(("another", "answer")):
        canvas.text(638, y - 11 + 22 * index, said, ha="center", color=theme.dropped)
    canvas.disc(x, y, size, theme.winner)
    canvas.pixels(x - 26, y - 26, 52, promise.image)
    canvas.arrow((x + 26, y), (x + size, y), color=theme.winner)
    radius = round_radius_down(promise.radius, 3)
    canvas.text(x, y + 48, f"r = {radius}", ha="center", weight="bold", color=theme.winner)
    canvas.text(x, y - 48, f"still {promise.answer}", ha="center", color=theme.winner)
    for index, said in enumerate(wrap(promise.words + ".", 38)):
        canvas.text(left, 490 + 22 * index, said)
    note = "(r: l2 norm of a change, pixels in [0, 1])"
    canvas.text(left, 562, note, fontsize=10.5, color=theme.muted)


# ---- the idea ------------------------------------------------------------------------------------


def idea_drawing(race: Race) -> Drawing:
    """Ten classes over the noise levels, all but one of which drop out."""
    stops, dropped = np.unique(race.taken[race.losers], return_counts=True)
    out = ", ".join(f"{n} after {stop}" for stop, n in zip(stops, dropped, strict=True))
    alt = (
        f"One vote as a race of {len(race.taken)} classes over noise levels: the summed loss of "
        f"each class as a multiple of that of the winner, {race.answer}. The others drop out where "
        f"they trail clearly ({out} levels), so the vote takes {race.evaluations} evaluations in "
        f"place of {race.full:,}."
    )
    return Drawing("idea", alt, partial(_idea, race))


def _idea(race: Race, theme: Theme) -> Figure:
    canvas = Canvas.of(theme, 708)
    canvas.title(
        f"The idea: {race.evaluations} evaluations in place of {race.full:,}",
        f"One vote, a race of {len(race.taken)} classes: a class that trails clearly drops out",
    )
    _race(canvas, race)
    _cells(canvas, race)
    return canvas.figure


def _race(canvas: Canvas, race: Race) -> None:
    theme, last, times = canvas.theme, int(race.taken.max()), race.times
    left, right, top, bottom = 64, 646, 124, 420
    highest = max(times[:n, k].max() for k, n in enumerate(race.taken))
    x = np.linspace(left, right, last + 1)

    def y(multiple: np.ndarray) -> np.ndarray:
        return bottom - (bottom - top) * np.log(multiple) / np.log(highest)

    canvas.text(20, 94, "↑ loss so far, as a multiple of the winner's", color=theme.muted)
    for multiple in range(1, int(highest) + 1):
        canvas.line([left, right], [y(multiple)] * 2, theme.faint, linewidth=0.8)
        canvas.text(left - 10, y(multiple), f"{multiple} ×", ha="right", color=theme.muted)
    canvas.text(left, bottom + 22, "noise:", color=theme.muted, ha="center")
    for visit, at in enumerate(x[1:]):
        canvas.line([at, at], [bottom - 4, bottom + 4], theme.muted, linewidth=1)
        canvas.text(at, bottom + 22, f"{race.levels[visit]:.2f}", ha="center", color=theme.muted)
    order = "levels in the order in which the vote visits them →"
    canvas.text(right, bottom + 46, order, ha="right", color=theme.muted)
    for label in np.flatnonzero(race.losers):
        n = int(race.taken[label])
        height = y(times[:n, label])
        canvas.line(x[:2], [bottom, height[0]], theme.dropped, linewidth=1, linestyle=":")
        canvas.line(x[1 : n + 1], height, theme.dropped)
    canvas.line(x, [bottom] * len(x), theme.winner, linewidth=3.5)
    winner = {"color": theme.winner, "weight": "bold", "fontsize": TITLE}
    canvas.text(right + 14, bottom, str(race.answer), **winner)
    for stop in np.unique(race.taken[race.losers]):
        labels = np.flatnonzero(race.losers & (race.taken == stop))
        height = y(times[stop - 1, labels])
        canvas.crosses(np.full(len(labels), x[stop]), height, theme.dropped)
        for label, middle in zip(labels, _spread(height, 18), strict=True):
            canvas.text(
                x[stop] + 14, middle, str(label), color=theme.dropped, weight="bold", halo=True
            )


def _spread(heights: np.ndarray, apart: float) -> np.ndarray:
    """The same heights, moved as little as needed to stand so far apart."""
    order = np.argsort(heights)
    placed = heights[order].astype(float)
    for _ in range(200):
        short = np.maximum(apart - np.diff(placed), 0.0) / 2
        placed[:-1] -= short
        placed[1:] += short
    return placed[np.argsort(order)]


def _cells(canvas: Canvas, race: Race) -> None:
    theme = canvas.theme
    levels, classes = race.terms.shape
    left, top, right, height = 44, 524, 680, 15
    width = (right - left) / levels
    cells = f"Each cell is one evaluation: {classes} classes × {levels} levels"
    canvas.text(20, 502, cells, weight="bold")
    for row, label in enumerate(np.lexsort([np.arange(classes), -race.taken, race.losers])):
        y, colour = top + row * height, theme.dropped if race.losers[label] else theme.winner
        canvas.text(left - 10, y + 6.5, str(label), ha="right", color=colour, fontsize=10)
        canvas.bar(left, y, right - left, height - 2, theme.faint)
        canvas.bar(left, y, int(race.taken[label]) * width, height - 2, colour)
    for at in left + width * np.arange(1, levels):
        canvas.line([at, at], [top, top + classes * height], theme.page, linewidth=0.7)
    taken = int(race.taken.sum())
    extra = race.evaluations - taken
    said = f"{taken} cells" + (f" + {extra} to denoise the image" if extra else "")
    usual = f"this image's votes take {race.usual:g} (median), {race.mean:.0f} (mean)"
    canvas.text(20, 690, f"{said}; {usual}", fontsize=SMALL, color=theme.muted)
