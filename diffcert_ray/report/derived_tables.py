"""Certified accuracy in l-infinity and l1, derived from the l2 radii and marked as that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.certificates.norms import derived_radius
from diffcert_ray.report.dataset_tables import RHO, accuracy_text
from diffcert_ray.report.text_table import TextTable

NAMES: Mapping[str, str] = {"linf": "l-infinity", "l1": "l1"}
_LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of 255, as l-infinity radii are usually given
_WHY: Mapping[str, str] = {
    "linf": "the open l2 ball of radius R holds the open l-infinity ball of radius R / sqrt(D), "
    "D = {dimensions} numbers in an image",
    "l1": "the open l2 ball of radius R holds the open l1 ball of the same radius",
}

Asked = Mapping[float, int] | None


def derived_certificates(certificates: pd.DataFrame, norm: str, dimensions: int) -> pd.DataFrame:
    """The same rows with the radius in another norm that follows from the l2 radius."""
    radii = [derived_radius(float(r), norm, dimensions) for r in certificates["radius"]]
    return certificates.assign(radius=np.array(radii, dtype=float))


def derived_radii(
    radii: Sequence[float], certificates: pd.DataFrame, norm: str, dimensions: int
) -> list[float]:
    """Radii for a table: what follows from the asked ones and, for linf, usual grey levels."""
    found = {derived_radius(r, norm, dimensions) for r in radii}
    if norm == "linf":
        largest = max(derived_certificates(certificates, norm, dimensions)["radius"].max(), *found)
        found |= {level / 255 for level in _LEVELS if level / 255 <= largest}
    return sorted(found)


def derived_text(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    title: str,
    norm: str,
    dimensions: int,
    asked: Asked = None,
) -> TextTable:
    """Certified accuracy in another norm: a row for each sigma, derived radii across."""
    derived = derived_certificates(certificates, norm, dimensions)
    at = derived_radii(radii, certificates, norm, dimensions)
    plain = accuracy_text(derived, at, f"{NAMES[norm]}, derived from l2: {title}", asked)
    heads = [_head(r) if norm == "linf" else f"r = {r:g}" for r in at]
    note = (
        f"Derived, not certified by itself: {_WHY[norm].format(dimensions=dimensions)}. Nothing "
        "more follows from an l2 radius; methods made for this norm certify more."
    )
    return TextTable(
        plain.title,
        (*plain.header[:2], *heads),
        plain.rows,
        (note, *plain.notes),
        f"accuracy_{norm}_derived",
    )


def derived_rows(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    norm: str,
    dimensions: int,
    asked: Asked = None,
) -> pd.DataFrame:
    """The same for machines: the rows of ``certified_accuracy`` with the norm, and "derived"."""
    at = derived_radii(radii, certificates, norm, dimensions)
    derived = derived_certificates(certificates, norm, dimensions)
    rows = certified_accuracy(derived, at, rho=RHO, asked=asked)
    return rows.assign(norm=norm, origin="derived from l2", dimensions=dimensions)


def _head(radius: float) -> str:
    """An l-infinity radius, also in grey levels; never above its true value."""
    return f"r = {_cut(radius, 5)} ({_cut(radius * 255, 2)}/255)"


def _cut(value: float, decimals: int) -> str:
    scale = 10**decimals
    return f"{int(value * scale + 1e-6) / scale:g}"
