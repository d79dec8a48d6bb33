"""Stored certificates that the counted units do not give: found, and superseded by new rows.

Drivers of different numerics kinds on the same images store other counts of the same units. One of
the deliveries counts, whoever certified from the other; its certificates are replaced here. Where
the selection votes that count choose another class than those that the other driver saw, the votes
for its own certificate may not be there yet, or are of another number: then it is withdrawn.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.run.kind import Kind
from diffcert_ray.run.resume import Certified
from diffcert_ray.run.verification import COMPARED, same_value
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore

logger = logging.getLogger(__name__)

READINGS = 4  # other drivers may store meanwhile; each of them looks too, after its last part


@dataclass
class Disagreement:
    """What is wrong with stored certificates."""

    superseding: list[CertificateRow] = field(default_factory=list)  # what counts instead
    lacking: Certified = field(default_factory=set)  # those whose votes are not all there


def disagreement(
    kind: Kind,
    config: Config,
    plan: Any,
    votes_id: str,
    store: RunStore,
    held: Any,
    data: Dataset,
) -> Disagreement:
    """Compare the stored certificates of a plan's images with what the counted units give.

    Args:
        kind: of the run.
        config: of the run.
        plan: of the images to look at.
        votes_id: of the run.
        store: the run's folder.
        held: what the store holds, read after all that may have been written.
        data: the plan's images.
    """
    stored = _of_plan(store.certificates().to_pandas(), plan, votes_id)
    if kind.borne_out(config, held, stored):
        return Disagreement()
    keys = set(_keys(stored))
    # Sequential: several n of an image may be stored, each of them a certificate.
    nth = stored.groupby(["sigma", "image_id", "bound"]).cumcount()
    found = Disagreement()
    costs = not kind.spends_beyond(config)
    for _, once in stored.groupby(nth):
        sure = kind.given(config, _narrowed(plan, once), votes_id, held, data, once)
        given = {(row.sigma, row.image_id, row.bound): row for row in sure}
        for key, kept in zip(_keys(once), once.to_dict("records"), strict=True):
            sigma, image_id, bound, n = key
            row = given.get((sigma, image_id, bound))
            if row is None:
                found.lacking.add((sigma, image_id, n))
            elif _differs(kept, row, costs) and (row.n == n or (*key[:3], row.n) not in keys):
                found.superseding.append(row)
            if row is None or row.n != n:  # no row of this n will come in its place
                found.superseding.append(_withdrawn(kept))
    return found


def supersede(store: RunStore, rows: list[CertificateRow]) -> None:
    """Store certificates that count instead of those that are there."""
    first = rows[0]
    logger.warning(
        "%d certificates in %s are not what the counted units give (first image %d at sigma %g), "
        "as when drivers of different numerics kinds work on the same images: superseded by what "
        "the units give, or withdrawn until they are there",
        len(rows),
        store.address,
        first.image_id,
        first.sigma,
    )
    with store.superseding_writer() as writer:
        writer.add_certificates(rows)


def agree(
    kind: Kind, config: Config, plan: Any, votes_id: str, store: RunStore, data: Dataset
) -> Certified:
    """Make the stored certificates of a plan's images those that the stored units give.

    Returns:
        (sigma, image_id, n) of certificates that only new votes can replace.
    """
    lacking: Certified = set()
    for _ in range(READINGS):
        held = kind.held(store, plan)
        found = disagreement(kind, config, plan, votes_id, store, held, data)
        lacking |= found.lacking
        if not found.superseding:
            break
        supersede(store, found.superseding)
    return lacking


def _of_plan(table: pd.DataFrame, plan: Any, votes_id: str) -> pd.DataFrame:
    """The certificates of a plan's images, but not the rows of images that could not be read."""
    own = (table["votes_id"] == votes_id) & (table["nfe"] > 0)
    own &= (table["alpha"] == plan.alpha) & (table["n0"] == plan.n0)
    own &= table["sigma"].isin(plan.sigmas)
    return table[own & table["image_id"].isin(plan.image_ids)]


def _narrowed(plan: Any, certificates: pd.DataFrame) -> Any:
    """The plan of the images that have certificates."""
    return replace(plan, image_ids=np.unique(certificates["image_id"].to_numpy(np.int64)))


def _keys(certificates: pd.DataFrame) -> Iterator[tuple[float, int, str, int]]:
    columns = (certificates[c].tolist() for c in ("sigma", "image_id", "bound", "n"))
    return zip(*columns, strict=True)


def _withdrawn(kept: Mapping[Any, Any]) -> CertificateRow:
    """The row that says that a stored certificate is none any more."""
    return CertificateRow(
        **{str(name): value for name, value in kept.items()} | {"withdrawn": True}
    )


def _differs(kept: Mapping[Any, Any], row: CertificateRow, costs: bool) -> bool:
    # Units beyond those that decide may have come later: then costs are not compared.
    names = (*COMPARED, "nfe") if costs else COMPARED
    return any(not same_value(kept[name], getattr(row, name), exact=True) for name in names)
