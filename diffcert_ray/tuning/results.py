"""What a tuning leaves: the table, its CSV, and the configuration that `certify` takes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.report.text_table import TextTable
from diffcert_ray.storage.store import refuse_secrets
from diffcert_ray.tuning.candidates import ALL_KEYS, AS_CONFIGURED, Setting
from diffcert_ray.tuning.choice import CONFIDENCE, Choice, Measured, mean_nfe

COLUMNS = (
    "sigma",
    "setting",
    "rule",
    *ALL_KEYS,
    "part",
    "images",
    "votes",
    "nfe_per_vote",
    "agreement",
    "interval_low",
    "interval_high",
    "lower_bound",
    "right",
    "chosen",
)


@dataclass(frozen=True)
class Gap:
    """The chosen setting on certified images, which nothing was chosen by.

    Attributes:
        sigma: pixel units.
        there: on certified images.
        interval: of the agreement there, 95 %.
        difference: agreement there less that on the confirming images, with its interval, 95 %.
    """

    sigma: float
    there: Measured
    interval: tuple[float, float]
    difference: tuple[float, float, float]

    def said(self) -> str:
        """One line."""
        low, high = self.interval
        less, least, most = (100 * d for d in self.difference)
        return (
            f"sigma {self.sigma:g}, {len(self.there.agreeing)} certified images: agreement "
            f"{100 * self.there.agreement:.2f} % ({100 * low:.2f}-{100 * high:.2f}), "
            f"{self.there.nfe:.2f} NFE/vote; {less:+.2f} points ({least:+.2f} to {most:+.2f}) "
            "from the tuning images"
        )

    def facts(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "sigma": self.sigma,
            "images": len(self.there.agreeing),
            "agreement": self.there.agreement,
            "interval": list(self.interval),
            "nfe_per_vote": self.there.nfe,
            "difference": list(self.difference),
        }


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        screened: a setting at each sigma on the screening images, for each setting.
        full: the votes in full on the confirming images, at each sigma.
        choice: among the settings that were compared on the confirming images.
        gaps: at each sigma, if asked for.
    """

    screened: tuple[tuple[Measured, ...], ...]
    full: tuple[Measured, ...]
    choice: Choice
    gaps: tuple[Gap, ...] = ()


def csv_of(results: Results) -> bytes:
    """Every setting that was measured, as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for one in results.full:
        writer.writerow(_row(one, "confirming"))
    for compared in results.choice.compared:
        for position, one in enumerate(compared.measured):
            low, high = compared.interval[position]
            bounds = {
                "interval_low": f"{low:.6f}",
                "interval_high": f"{high:.6f}",
                "lower_bound": f"{compared.lower[position]:.6f}",
                "chosen": "yes" if compared is results.choice.taken else "",
            }
            writer.writerow(_row(one, "confirming") | bounds)
    for group in results.screened:
        for one in group:
            writer.writerow(_row(one, "screening"))
    for gap in results.gaps:
        low, high = gap.interval
        ends = {"interval_low": f"{low:.6f}", "interval_high": f"{high:.6f}"}
        writer.writerow(_row(gap.there, "certified") | ends)
    return text.getvalue().encode()


def _row(one: Measured, part: str) -> dict[str, Any]:
    sift = one.setting.sift.model_dump()
    return {
        "sigma": one.sigma,
        "setting": one.setting.name,
        "rule": one.setting.sift.rule,
        **{key: sift[key] for key in one.setting.keys},
        "part": part,
        "images": len(one.agreeing),
        "votes": len(one.agreeing) * one.votes,
        "nfe_per_vote": f"{one.nfe:.4f}",
        "agreement": f"{one.agreement:.6f}",
        "right": "" if one.right is None else f"{one.right:.6f}",
    }


def table_of(results: Results) -> TextTable:
    """The settings that one was chosen among, and the votes in full."""
    choice, rows, bold = results.choice, [_full_row(results.full)], set()
    for compared in sorted(choice.compared, key=lambda c: -c.nfe):
        taken = compared is choice.taken
        if taken:
            bold = {(len(rows), column) for column in range(6)}
        low = min(ends[0] for ends in compared.interval)
        high = min(ends[1] for ends in compared.interval)
        rows.append(
            (
                ("> " if taken else "") + _said(compared.setting),
                f"{compared.nfe:.2f}",
                f"{100 * compared.agreement:.2f} %",
                f"{100 * low:.2f}-{100 * high:.2f}",
                f"{100 * compared.bound:.2f}",
                _right(compared.measured),
            )
        )
    one = choice.compared[0].measured[0]
    several = ", at the sigma where it is least" if len(results.full) > 1 else ""
    rule = results.full[0].setting.sift.rule
    against = f"the vote by {rule}" if rule == "exact" else "a race of all classes"
    notes = (
        f"agreement{several}: votes equal to {against} on the same noise, {len(one.agreeing):,} "
        f"images x {one.votes} votes; at least, and intervals: for all these settings at once, "
        f"with {100 * CONFIDENCE:g} % confidence over images; right: votes for the label.",
    )
    sigmas = ", ".join(f"{m.sigma:g}" for m in results.full)
    return TextTable(
        title=f"Settings at sigma {sigmas}",
        header=("setting", "NFE/vote", "agreement", "interval, %", "at least, %", "right"),
        rows=tuple(rows),
        notes=notes,
        label="tuning",
        bold=frozenset(bold),
    )


def _full_row(full: Sequence[Measured]) -> tuple[str, ...]:
    said = f"in full ({full[0].setting.said()})"
    return (said, f"{mean_nfe(full):.1f}", "100 %", "", "", _right(full))


def _right(group: Sequence[Measured]) -> str:
    right = [m.right for m in group if m.right is not None]
    return f"{100 * sum(right) / len(right):.1f} %" if right else ""


def _said(setting: Setting) -> str:
    own = f"{AS_CONFIGURED}: " if setting.name == AS_CONFIGURED else ""
    return own + setting.said()


def configuration_of(config: Config, sift: SiftConfig, about: Sequence[str]) -> str:
    """The configuration with the chosen [sift], as TOML.

    Args:
        config: that was tuned, storage options included, which are left out.
        sift: the chosen table, with the head's address and hash.
        about: lines of a comment over it.
    """
    tables = config.model_dump(mode="json", exclude_unset=True)
    tables.get("execution", {}).pop("storage_options", None)
    tables["sift"] = sift.model_dump(mode="json", exclude_unset=True)
    text = "".join(f"# {line}\n" if line else "#\n" for line in about)
    text += "\n" + tomli_w.dumps(_without_none(tables))
    refuse_secrets(text.encode(), config.execution.storage_options)
    return text


def _without_none(tables: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent key is a default."""
    kept = {k: _without_none(v) if isinstance(v, dict) else v for k, v in tables.items()}
    return {k: v for k, v in kept.items() if v is not None and v != {}}
