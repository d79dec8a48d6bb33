"""Certified accuracy against radius as a picture."""

import io

import pandas as pd

from diffcert_ray.metrics import certified_accuracy


def curve_png(certificates: pd.DataFrame, title: str) -> bytes:
    """Certified accuracy against radius as a PNG: a step curve and interval for each sigma."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for sigma, part in certificates.groupby("sigma"):
        reached = part.loc[part["correct"], "radius"]
        stop = float(reached.max()) if len(reached) else 0.0
        radii = [i * (stop * 1.05 + 1e-9) / 300 for i in range(301)]
        table = certified_accuracy(part, radii)
        line = axes.plot(
            table["radius"],
            table["certified_accuracy"],
            drawstyle="steps-post",
            label=f"σ = {sigma:g}",
        )
        axes.fill_between(
            table["radius"],
            table["interval_low"],
            table["interval_high"],
            step="post",
            alpha=0.15,
            color=line[0].get_color(),
            linewidth=0,
        )
    axes.set_xlabel("l2 radius (pixels in [0, 1])")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
