"""Refuse certificates from counts that their bound does not hold for."""

import pandas as pd

from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.errors import ConfigError


def check_fixed_n(certificates: pd.DataFrame, bound: str, n: int) -> None:
    """Refuse fixed-n certificates of counts that were stopped early or extended after a look.

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
    """Refuse ``two-class`` where votes only said whether they are their target (ConfigError)."""
    targeted = (units["stream"] == "estimate") & (units["target"] != ALL_CLASSES)
    if (certificates["bound"] == "two-class").any() and targeted.any():
        raise ConfigError(
            f"{int(targeted.sum())} units hold votes that only said whether they are their "
            'target, and "two-class" needs complete votes: certify with "clopper-pearson" or '
            '"sequential", or run again with votes.estimate = "complete"'
        )
