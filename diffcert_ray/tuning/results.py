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
from diffcert_ray.tuning.candidates import SHORTLIST_KEYS, Setting
from diffcert_ray.tuning.choice import CONFIDENCE, Bounded, Measured

COLUMNS = (
    "sigma",
    "setting",
    "rule",
    *SHORTLIST_KEYS,
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
class Choice:
    """Settings that one was chosen among, at one sigma or for all.

    Attributes:
        sigmas: that the setting is for, pixel units.
        found: what was compared, the cheapest first.
        taken: the one.
        reached: whether its bounds are above the target.
        target: the agreement asked for.
        file: name of its configuration.
    """

    sigmas: tuple[float, ...]
    found: tuple[Bounded, ...]
    taken: Bounded
    reached: bool
    target: float
    file: str

    def facts(self) -> dict[str, Any]:
        """What was chosen, for machines."""
        return {
            "sigmas": list(self.sigmas),
            "setting": self.taken.setting.said(),
            "sift": self.taken.setting.sift.model_dump(exclude_unset=True),
            "nfe_per_vote": self.taken.nfe,
            "agreement": self.taken.agreement,
            "lower_bound": self.taken.bound,
            "reached": self.reached,
            "file": self.file,
        }


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        screened: settings on the screening images, at each sigma.
        full: the votes in full on the confirming images, by sigma.
        choices: one for each sigma, and one for all where there are several.
    """

    screened: tuple[Measured, ...]
    full: tuple[Measured, ...]
    choices: tuple[Choice, ...]


def csv_of(results: Results) -> bytes:
    """Every setting that was measured, as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for one in results.full:
        writer.writerow(_row(one, "confirming"))
    for choice in results.choices:
        for found in choice.found:
            for position, one in enumerate(found.measured):
                low, high = found.interval[position]
                bounds = {
                    "interval_low": f"{low:.6f}",
                    "interval_high": f"{high:.6f}",
                    "lower_bound": f"{found.lower[position]:.6f}",
                    "chosen": choice.file if found is choice.taken else "",
                }
                part = "confirming" if len(choice.sigmas) == 1 else "confirming, all sigmas"
                writer.writerow(_row(one, part) | bounds)
    for one in results.screened:
        writer.writerow(_row(one, "screening"))
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


def table_of(choice: Choice, full: Measured) -> TextTable:
    """The settings that one was chosen among.

    Args:
        choice: at one sigma, or for all.
        full: the votes in full at (one of) the sigmas.
    """
    rows, bold = [_full_row(full)], set()
    for found in sorted(choice.found, key=lambda b: -b.nfe):
        if found is choice.taken:
            bold = {(len(rows), column) for column in range(6)}
        low = min(ends[0] for ends in found.interval)
        high = min(ends[1] for ends in found.interval)
        right = [m.right for m in found.measured if m.right is not None]
        rows.append(
            (
                ("> " if found is choice.taken else "") + _said(found.setting),
                f"{found.nfe:.2f}",
                f"{100 * found.agreement:.2f} %",
                f"{100 * low:.2f}-{100 * high:.2f}",
                f"≥ {100 * found.bound:.2f}",
                f"{100 * sum(right) / len(right):.1f} %" if right else "",
            )
        )
    sigmas = ", ".join(f"{s:g}" for s in choice.sigmas)
    several = " at the sigma where it is least" if len(choice.sigmas) > 1 else ""
    one = choice.found[0].measured[0]
    votes = f"{len(one.agreeing):,} images x {one.votes} votes"
    notes = (
        f"agreement{several}: votes equal to the vote by {full.setting.sift.rule} on the same "
        f"noise, {votes}; at least (≥) and intervals hold for all these settings at once, with "
        f"{100 * CONFIDENCE:g} % confidence over images; right: votes for the label.",
    )
    return TextTable(
        title=f"Settings at sigma {sigmas}",
        header=("setting", "NFE/vote", "agreement", "interval, %", "at least, %", "right"),
        rows=tuple(rows),
        notes=notes,
        label="tuning",
        bold=frozenset(bold),
    )


def _full_row(full: Measured) -> tuple[str, ...]:
    right = "" if full.right is None else f"{100 * full.right:.1f} %"
    return (f"in full ({full.setting.said()})", f"{full.nfe:.1f}", "100 %", "", "", right)


def _said(setting: Setting) -> str:
    own = "as configured: " if setting.name == "as configured" else ""
    return own + setting.said()


def configuration_of(config: Config, choice: Choice, sift: SiftConfig, about: Sequence[str]) -> str:
    """The configuration with the chosen [sift], as TOML.

    Args:
        config: that was tuned, storage options included, which are left out.
        choice: whose sigmas it is for.
        sift: the chosen table, with the head's address and hash.
        about: lines of a comment over it.
    """
    tables = config.model_dump(mode="json", exclude_unset=True)
    tables.get("execution", {}).pop("storage_options", None)
    tables["sift"] = sift.model_dump(mode="json", exclude_unset=True)
    tables.setdefault("votes", {})["sigmas"] = list(choice.sigmas)
    text = "".join(f"# {line}\n" if line else "#\n" for line in about)
    text += "\n" + tomli_w.dumps(_without_none(tables))
    refuse_secrets(text.encode(), config.execution.storage_options)
    return text


def _without_none(tables: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent key is a default."""
    kept = {k: _without_none(v) if isinstance(v, dict) else v for k, v in tables.items()}
    return {k: v for k, v in kept.items() if v is not None and v != {}}
