"""Evaluations of a vote against agreement, as picture files: a panel for each sigma."""

from typing import TYPE_CHECKING

from diffcert_ray.report.curve import saved_pictures
from diffcert_ray.tuning.choice import Compared, front
from diffcert_ray.tuning.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SHOWN = 0.05  # of agreement below the target
GREY, BLUE, ORANGE = "#8a939b", "#0b6aa2", "#c4581c"


def pareto_pictures(results: Results, title: str) -> dict[str, bytes]:
    """Draw pareto.png and pareto.svg; equal results, equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 + 3.8 * len(results.full)), dpi=150, layout="constrained")
    panels = figure.subplots(len(results.full), 1, squeeze=False)[:, 0]
    for position, axes in enumerate(panels):
        _panel(axes, results, position)
    figure.suptitle(title, fontsize=10)
    return saved_pictures(figure, "pareto")


def _panel(axes: "Axes", results: Results, position: int) -> None:
    """What was measured at one sigma, by its position."""
    choice, full = results.choice, results.full[position]
    names = {c.setting.name for c in choice.compared}
    others = [g[position] for g in results.screened if g[0].setting.name not in names]
    axes.plot(
        [m.nfe for m in others],
        [100 * m.agreement for m in others],
        "o",
        color=GREY,
        markersize=3,
        alpha=0.7,
        label="looked through, on fewer images",
    )
    line = front([(c.measured[position],) for c in choice.compared])
    axes.plot(
        [m.nfe for (m,) in line], [100 * m.agreement for (m,) in line], color=BLUE, linewidth=1.2
    )
    for compared in choice.compared:
        _with_interval(axes, compared, position, taken=compared is choice.taken)
    axes.plot([], [], "o-", color=BLUE, markersize=4.5, label="compared, intervals hold at once")
    axes.axhline(100 * choice.target, color=GREY, linewidth=1, linestyle=":")
    shown = [*others, *(c.measured[position] for c in choice.compared)]
    axes.set_xscale("log")
    ticks = _ticks(min(m.nfe for m in shown), max(m.nfe for m in shown))
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    bottom = min(choice.target, *(c.interval[position][0] for c in choice.compared))
    axes.set_ylim(100 * max(bottom - 0.004, choice.target - LEAST_SHOWN), 100.1)
    axes.set_xlabel("evaluations per vote (NFE)")
    axes.set_ylabel("votes equal to the full vote, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"σ = {full.sigma:g}; the full vote takes {full.nfe:,.0f} NFE", fontsize=9)


def _with_interval(axes: "Axes", compared: Compared, position: int, *, taken: bool) -> None:
    one, (low, high) = compared.measured[position], compared.interval[position]
    axes.errorbar(
        [one.nfe],
        [100 * one.agreement],
        yerr=[[100 * (one.agreement - low)], [100 * (high - one.agreement)]],
        fmt="D" if taken else "o",
        color=ORANGE if taken else BLUE,
        markersize=6 if taken else 4.5,
        linewidth=1.2,
        capsize=2.5,
        zorder=3,
        label=f"chosen: {one.setting.said()}" if taken else None,
    )


def _ticks(low: float, high: float) -> list[float]:
    """1, 1.5, 2, 3, 5, 7 times powers of ten, some of them within and next to a range."""
    steps = [m * 10.0**p for p in range(7) for m in (1, 1.5, 2, 3, 5, 7)]
    inside = [s for s in steps if low / 1.5 <= s <= high * 1.5]
    return inside[:: 1 + len(inside) // 9]
