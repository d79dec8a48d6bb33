"""Refuse certificates of another run, and those whose counts their bound does not hold for."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.errors import ConfigError


def check_own(certificates: pd.DataFrame, config: Config, votes_id: str) -> None:
    """Refuse certificates that this run cannot have made.

    Args:
        certificates: stored certificates, all columns.
        config: the run's.
        votes_id: identity of the run's votes.

    Raises:
        ConfigError: one is by another method, bound, alpha, n0 or of other votes.
    """
    plain = config.without_votes  # which bounds the same losses by both
    own: Mapping[str, Collection[Any]] = {
        "bound": ("lipschitz", "local") if plain else (config.votes.bound,),
        "alpha": (config.votes.alpha,),
        "n0": (0,) if plain else (config.votes.n0,),
        "method": (config.method.name,),
        "votes_id": (votes_id,),
    }
    for name, values in own.items():
        foreign = certificates[~certificates[name].isin(values)]
        if len(foreign):
            row, expected = foreign.iloc[0], " or ".join(map(str, values))
            raise ConfigError(
                f"{len(foreign)} certificates are not this run's, first of image {row['image_id']} "
                f"at sigma {row['sigma']:g}: {name} {row[name]}, the run has {expected}. Remove "
                "the parts under certificates/ that hold them; `certify` makes the run's own again"
            )


def check_fixed_n(certificates: pd.DataFrame, bound: str, n: int) -> None:
    """Refuse fixed-n certificates of counts that were stopped early or extended after a look.

    Args:
        certificates: stored certificates of votes, at least the columns image_id, bound, n.
        bound: what the run was started with.
        n: the estimation votes that the run was started with.

    Raises:
        ConfigError: ``clopper-pearson`` or ``two-class`` at another n than the run's, or in a
            run that was started with ``sequential``.
    """
    fixed = certificates["bound"].isin(["clopper-pearson", "two-class"])
    used = certificates.loc[fixed & (certificates["n"] > 0)]
    wrong = used[used["n"] != n] if bound != "sequential" else used
    if len(wrong):
        row = wrong.iloc[0]
        raise ConfigError(
            f"image {row['image_id']} has a {row['bound']} certificate from {row['n']} votes, "
            f"but the run was started with {bound} and n = {n}: a fixed-n bound holds at the n "
            "fixed before the first vote only; counts that were stopped or extended may be "
            'certified by "sequential" only'
        )


def check_complete_votes(certificates: pd.DataFrame, units: pd.DataFrame) -> None:
    """Refuse ``two-class`` certificates where votes only said whether they are their target.

    Args:
        certificates: stored certificates, at least the column bound.
        units: the stored units, at least the columns stream and target.

    Raises:
        ConfigError: both are there.
    """
    targeted = (units["stream"] == "estimate") & (units["target"] != ALL_CLASSES)
    if (certificates["bound"] == "two-class").any() and targeted.any():
        raise ConfigError(
            f"{int(targeted.sum())} units hold votes that only said whether they are their "
            'target, and "two-class" needs complete votes: certify with "clopper-pearson" or '
            '"sequential", or run again with votes.estimate = "complete"'
        )
