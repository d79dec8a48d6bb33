"""Whether stored certificates may be believed: asked before any of them is reported."""

from typing import TYPE_CHECKING

import pandas as pd

from diffcert_ray.datasets import Dataset
from diffcert_ray.datasets.dataset import labels_of
from diffcert_ray.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from diffcert_ray.run.stored import Run


def check_labels(certificates: pd.DataFrame, data: Dataset) -> None:
    """Refuse certificates whose true class is not the dataset's (StoreError)."""
    known = pd.Series(labels_of(data))
    label = certificates["image_id"].map(known)
    wrong = certificates[label.notna() & (label != certificates["label"])]
    if len(wrong):
        row = wrong.iloc[0]
        raise StoreError(
            f"{len(wrong)} certificates have another label than the dataset, first image "
            f"{row['image_id']}: stored {row['label']}, the dataset has "
            f"{known[row['image_id']]}. Restore the parts under certificates/ from a copy, or "
            "delete them and run certify again with --recompute-damaged"
        )


def check_certifiable(run: "Run", certificates: pd.DataFrame) -> None:
    """Refuse certificates of another run, and those whose counts their bound does not hold for.

    Raises:
        ConfigError: another method, bound, alpha, n0 or other votes; fixed-n bounds on stopped or
            extended counts; ``two-class`` on votes that only said whether they are their target.
    """
    config, kind = run.config, run.kind
    own = {
        **kind.own(config),
        "alpha": (config.votes.alpha,),
        "method": (config.method.name,),
        "votes_id": (run.document.votes_id,),
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
    kind.check_counts(config, run.store, certificates)
