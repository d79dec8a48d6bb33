"""The certificates of a run as they are stored, and everything about them that cannot be right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffcert_ray.errors import StoreError
from diffcert_ray.run.contradictions import REMEDY, Contradiction, refuse, row_contradictions
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.kind import kind_of
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA
from diffcert_ray.storage.store import RunStore


@dataclass(frozen=True, eq=False)
class Examined:
    """What was read of certificates/, and what was found."""

    rows: pd.DataFrame  # all that are stored, repeats included
    counting: npt.NDArray[np.int64]  # positions of those that count, sorted by key; none withdrawn
    source: Callable[[int], str]  # position -> name of its file
    contradictions: list[Contradiction]
    odd: list[str]  # sentences about units that the run cannot have stored
    begun: Mapping[float, set[int]]  # sigma -> images that have a stored unit

    @property
    def certified(self) -> dict[float, set[int]]:
        """Sigma -> images that have a stored certificate."""
        groups = self.rows.iloc[self.counting].groupby("sigma")["image_id"]
        return {float(str(sigma)): set(ids.tolist()) for sigma, ids in groups}

    @property
    def certificates(self) -> pd.DataFrame:
        """One row for each image, sigma and bound: where n grew, that of most votes."""
        rows = self.rows.iloc[self.counting]
        key = ["sigma", "image_id", "bound", "alpha", "n0"]
        return rows.sort_values([*key, "n"]).drop_duplicates(key, keep="last", ignore_index=True)

    def refuse(self, address: str) -> None:
        """Refuse the run if anything was found (StoreError)."""
        refuse(self.rows, self.contradictions, self.source, address)
        if self.odd:
            raise StoreError(f"{self.odd[0]}. Find its part under units/ or compact/. {REMEDY}")


def examine(
    store: RunStore, document: RunDocument, check: Callable[[pd.DataFrame], None]
) -> Examined:
    """Read the certificates of a run, and compare them with what their counts give."""
    # Certificates first: what they rest on was stored before them.
    stored = store.read_rows("certificates", CERTIFICATE_SCHEMA.names)
    counting = stored.standing().rows
    rows = stored.table.to_pandas()
    check(rows.iloc[counting])
    classes = int(document.dataset["num_classes"])
    found = list(row_contradictions(rows, classes))
    config, dimensions = document.config, document.dimensions
    units = kind_of(config).examine(config, store, rows, counting, classes, dimensions)
    found += units.contradictions
    return Examined(rows, counting, stored.source, found, units.odd, units.begun)
