"""Tables and curves of finished certificates, as files in the run's folder and as data frames."""

import io
from collections.abc import Sequence

import pandas as pd

from diffcert_ray.certificates import round_radius_down
from diffcert_ray.metrics import abstention_rate, acr, certified_accuracy

GUARANTEE = (
    "With probability at least 1 - alpha over the noise, for each image and sigma, the smoothed "
    "classifier returns the predicted class everywhere in the open l2 ball of the radius "
    "around the "
    "image, in [0,1] pixel space."
)


def accuracy_table(certificates: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Certified accuracy at each sigma and radius, with intervals.

    Args:
        certificates: rows of a run, one bound and alpha.
        radii: pixel units.

    Returns:
        The columns of ``metrics.certified_accuracy``.
    """
    return certified_accuracy(certificates, radii)


def accuracy_markdown(table: pd.DataFrame) -> str:
    """The table of certified accuracies as Markdown, one row a sigma, radii across."""
    radii = sorted(table["radius"].unique())
    lines = [
        "| sigma | images | " + " | ".join(f"r = {r:g}" for r in radii) + " |",
        "|---" * (len(radii) + 2) + "|",
    ]
    for sigma, rows in table.groupby("sigma"):
        cells = [_cell(rows[rows["radius"] == r].iloc[0]) for r in radii]
        lines.append(f"| {sigma:g} | {int(rows['n_images'].iloc[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    low, high = 100 * row["interval_low"], 100 * row["interval_high"]
    return f"{100 * row['certified_accuracy']:.1f} % ({low:.0f}-{high:.0f})"


def summary(certificates: pd.DataFrame) -> pd.DataFrame:
    """One row a sigma: ACR (rounded down), abstentions, votes and evaluations per image."""
    rows = []
    averages = acr(certificates).set_index("sigma")
    abstained = abstention_rate(certificates).set_index("sigma")
    for sigma, part in certificates.groupby("sigma"):
        rows.append(
            {
                "sigma": sigma,
                "images": len(part),
                "acr": round_radius_down(float(averages.loc[sigma, "acr"]), 3),
                "abstained": float(abstained.loc[sigma, "abstention_rate"]),
                "wrong": float((~part["correct"] & ~part["abstained"]).mean()),
                "votes_per_image": float((part["n"] + part["n0"]).mean()),
                "nfe_per_image": float(part["nfe"].mean()),
                "nfe_per_vote": float(part["nfe"].sum() / (part["n"] + part["n0"]).sum()),
                "seconds_per_image": float(part["seconds"].mean()),
            }
        )
    return pd.DataFrame(rows)


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


def report_files(
    certificates: pd.DataFrame, radii: Sequence[float], title: str
) -> dict[str, bytes]:
    """The report of one run: name -> bytes of each file.

    Args:
        certificates: rows of a run.
        radii: of the table, pixel units.
        title: over the curve.

    Returns:
        table.csv, table.md and curve.png.
    """
    table = accuracy_table(certificates, radii)
    text = f"# {title}\n\n{accuracy_markdown(table)}\n{GUARANTEE}\n"
    return {
        "table.csv": table.to_csv(index=False).encode(),
        "table.md": text.encode(),
        "curve.png": curve_png(certificates, title),
    }
