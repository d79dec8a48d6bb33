"""Evaluations of a vote against agreement, as picture files: a panel for each sigma."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffcert_ray.report.curve import saved_pictures
from diffcert_ray.tuning.choice import Measured, front
from diffcert_ray.tuning.results import Choice, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SHOWN = 0.05  # of agreement below the target
GREY, BLUE, ORANGE = "#8a939b", "#0b6aa2", "#c4581c"


def pareto_pictures(results: Results, title: str) -> dict[str, bytes]:
    """Draw pareto.png and pareto.svg; equal results, equal bytes."""
    from matplotlib.figure import Figure

    single = [c for c in results.choices if len(c.sigmas) == 1]
    figure = Figure(figsize=(7, 0.4 + 3.8 * len(single)), dpi=150, layout="constrained")
    panels = figure.subplots(len(single), 1, squeeze=False)[:, 0]
    for axes, choice in zip(panels, single, strict=True):
        screened = [m for m in results.screened if m.sigma == choice.sigmas[0]]
        full = next(m for m in results.full if m.sigma == choice.sigmas[0])
        _panel(axes, choice, screened, full)
    figure.suptitle(title, fontsize=10)
    return saved_pictures(figure, "pareto")


def _panel(axes: "Axes", choice: Choice, screened: Sequence[Measured], full: Measured) -> None:
    finalists = {b.setting.name for b in choice.found}
    others = [m for m in screened if m.setting.name not in finalists]
    small: dict[str, Any] = {"color": GREY, "markersize": 3, "alpha": 0.7}
    axes.plot(
        [m.nfe for m in others],
        [100 * m.agreement for m in others],
        "o",
        label="looked through, on fewer images",
        **small,
    )
    ones = [b.measured[0] for b in choice.found]
    line = front(ones)
    axes.plot([m.nfe for m in line], [100 * m.agreement for m in line], color=BLUE, linewidth=1.2)
    for bounded, one in zip(choice.found, ones, strict=True):
        taken = bounded is choice.taken
        low, high = bounded.interval[0]
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
    axes.plot([], [], "o-", color=BLUE, markersize=4.5, label="compared, intervals hold at once")
    axes.axhline(100 * choice.target, color=GREY, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    ticks = _ticks(min(m.nfe for m in [*others, *ones]), max(m.nfe for m in [*others, *ones]))
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    bottom = min(choice.target, *(ends[0] for b in choice.found for ends in b.interval))
    axes.set_ylim(100 * max(bottom - 0.004, choice.target - LEAST_SHOWN), 100.1)
    axes.set_xlabel("evaluations per vote (NFE)")
    axes.set_ylabel("votes equal to the full vote, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title(
        f"σ = {choice.sigmas[0]:g}; the full vote takes {full.nfe:,.0f} NFE", fontsize=9
    )


def _ticks(low: float, high: float) -> list[float]:
    """1, 1.5, 2, 3, 5, 7 times powers of ten, some of them within and next to a range."""
    steps = [m * 10.0**p for p in range(7) for m in (1, 1.5, 2, 3, 5, 7)]
    inside = [s for s in steps if low / 1.5 <= s <= high * 1.5]
    return inside[:: 1 + len(inside) // 9]
