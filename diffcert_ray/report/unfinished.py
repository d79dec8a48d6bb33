"""Unfinished runs: what a report says where images that were asked for have no result yet."""

from collections.abc import Mapping, Sequence

import pandas as pd

from diffcert_ray.certificates.metrics import certified_accuracy

MARK = "INCOMPLETE"
LOWER_BOUNDS = (
    "Until the run is finished its figures are lower bounds: an image without a result counts as "
    "not certified, in the figure after ≥ too, with radius and p_low 0. Brackets reach up to where "
    "all of these are certified."
)


def unfinished(certificates: pd.DataFrame, asked: Mapping[float, int] | None) -> dict[float, int]:
    """How many images have a result, at each sigma that lacks some."""
    have = certificates["sigma"].value_counts()
    finished = {sigma: int(have.get(sigma, 0)) for sigma in sorted(asked or {})}
    return {sigma: done for sigma, done in finished.items() if done < (asked or {})[sigma]}


def unfinished_line(
    certificates: pd.DataFrame,
    asked: Mapping[float, int] | None,
    others: str = "count as not certified",
) -> str:
    """The line that every output of an unfinished run begins with, or "" for a finished one.

    It ends with what becomes of the others, the images without a result.
    """
    finished = unfinished(certificates, asked)
    if not finished or asked is None:
        return ""
    parts = [
        f"{done:,} of {asked[sigma]:,} images" + (f" at sigma {sigma:g}" if sigma > 0 else "")
        for sigma, done in finished.items()
    ]
    return f"{MARK}: {', '.join(parts)} finished; the others {others}."


def of_finished(
    certificates: pd.DataFrame, radii: Sequence[float], asked: Mapping[float, int] | None
) -> list[str]:
    """A line for each unfinished sigma: the shares among the finished images alone, if they say it.

    For people who look at a long run half-way. With a fixed number of votes images finish about in
    the order of the dataset, whatever their votes; with ``sequential`` clear ones finish first, so
    that their share says nothing about the others.
    """
    finished = unfinished(certificates, asked)
    if not finished:
        return []
    if (certificates["bound"] == "sequential").any():
        return [
            "No share of the finished images alone is shown: with the bound sequential clear "
            "images finish first."
        ]
    shares = certified_accuracy(certificates, radii)
    lines = []
    for sigma, block in shares[shares["sigma"].isin(list(finished))].groupby("sigma"):
        values = zip(block["radius"], block["certified_accuracy"], strict=True)
        cells = ", ".join(f"{100 * share:.1f} % at r = {radius:g}" for radius, share in values)
        where = f" at sigma {sigma:g}" if float(str(sigma)) > 0 else ""
        lines.append(
            f"Progress, no result: of the {finished[float(str(sigma))]:,} finished images alone"
            f"{where}, {cells} (images finish about in the dataset's order, which need not be a "
            "random one)."
        )
    return lines
