"""Tables and curves of finished certificates, as files in the run's folder and as data frames."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from diffcert_ray.certificates import round_radius_down
from diffcert_ray.config import PLAIN_BOUNDS
from diffcert_ray.metrics import acr, certified_accuracy

GUARANTEE = (
    "With probability at least 1 - alpha over the noise, for each image and sigma, the smoothed "
    "classifier returns the predicted class everywhere in the open l2 ball of the radius "
    "around the "
    "image, in [0,1] pixel space."
)


PLAIN_GUARANTEE = (
    "With probability at least 1 - alpha over the noise draws, for each image, the plain diffusion "
    "classifier with exact expectations, its input projected on [0,1]^D and its denoiser's output "
    "clipped to it, returns the predicted class everywhere in the open l2 ball of the radius "
    "around the image, in [0,1] pixel space. No smoothing, no votes (sigma is 0)."
)


def guarantee(bound: str) -> str:
    """What a certificate by this bound says."""
    return PLAIN_GUARANTEE if bound in PLAIN_BOUNDS else GUARANTEE


def accuracy_table(certificates: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Certified accuracy at each sigma and radius, with intervals.

    Args:
        certificates: rows of a run, one bound and alpha.
        radii: pixel units.

    Returns:
        The columns of ``metrics.certified_accuracy``.
    """
    return certified_accuracy(certificates, radii)


def accuracy_cells(table: pd.DataFrame) -> dict[float, list[str]]:
    """The table as text: sigma -> number of images, then a cell for each radius, ascending.

    A cell is the certified accuracy with its 95 % interval for the population of images, in per
    cent.
    """
    cells: dict[float, list[str]] = {}
    for row in table.sort_values(["sigma", "radius"]).to_dict("records"):
        cells.setdefault(float(row["sigma"]), [str(row["n_images"])]).append(_cell(row))
    return cells


def _cell(row: dict[Any, Any]) -> str:
    low, high = 100 * row["interval_low"], 100 * row["interval_high"]
    return f"{100 * row['certified_accuracy']:.1f} % ({low:.0f}-{high:.0f})"


def accuracy_markdown(table: pd.DataFrame) -> str:
    """The table of certified accuracies as Markdown, one row a sigma, radii across."""
    radii = sorted(table["radius"].unique())
    lines = [
        "| sigma | images | " + " | ".join(f"r = {r:g}" for r in radii) + " |",
        "|---" * (len(radii) + 2) + "|",
    ]
    lines += [f"| {s:g} | " + " | ".join(row) + " |" for s, row in accuracy_cells(table).items()]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class SigmaSummary:
    """One sigma of a run in a few figures.

    Args:
        sigma: smoothing noise, pixel units; 0 for certificates without votes.
        images: certified images.
        acr: average certified radius, rounded down to three decimals.
        abstained: share of images.
        wrong: share of images whose certificate names another class.
        votes_per_image: mean, selection included (draws, for certificates without votes).
        nfe_per_image: mean evaluations of the denoiser.
        nfe_per_vote: mean.
        seconds_per_image: mean worker time.
    """

    sigma: float
    images: int
    acr: str
    abstained: float
    wrong: float
    votes_per_image: float
    nfe_per_image: float
    nfe_per_vote: float
    seconds_per_image: float

    def __str__(self) -> str:
        return (
            f"sigma {self.sigma:g}: ACR {self.acr}, {100 * self.abstained:.1f} % abstain, "
            f"{100 * self.wrong:.1f} % wrong; {self.votes_per_image:,.0f} votes and "
            f"{self.nfe_per_image:,.0f} NFE per image, {self.nfe_per_vote:.1f} NFE per vote, "
            f"{self.seconds_per_image:.2f} worker seconds per image"
        )


def summary(certificates: pd.DataFrame) -> list[SigmaSummary]:
    """A run in a few figures, one entry a sigma."""
    averages = dict(acr(certificates)[["sigma", "acr"]].itertuples(index=False, name=None))
    found = []
    for sigma in sorted(averages):
        part = certificates[certificates["sigma"] == sigma]
        votes = float((part["n"] + part["n0"]).mean())
        nfe = float(part["nfe"].mean())
        found.append(
            SigmaSummary(
                sigma=sigma,
                images=len(part),
                acr=round_radius_down(averages[sigma], 3),
                abstained=float(part["abstained"].mean()),
                wrong=float((~part["correct"] & ~part["abstained"]).mean()),
                votes_per_image=votes,
                nfe_per_image=nfe,
                nfe_per_vote=nfe / max(votes, 1.0),
                seconds_per_image=float(part["seconds"].mean()),
            )
        )
    return found


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
        certificates: rows of a run, one bound.
        radii: of the table, pixel units.
        title: over the curve.

    Returns:
        table.csv, table.md and curve.png.
    """
    table = accuracy_table(certificates, radii)
    bound = str(certificates["bound"].iloc[0])
    text = f"# {title}\n\n{accuracy_markdown(table)}\n{guarantee(bound)}\n"
    return {
        "table.csv": table.to_csv(index=False).encode(),
        "table.md": text.encode(),
        "curve.png": curve_png(certificates, title),
    }
