"""A stored run, opened to be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from diffcert_ray.config.tables import Config
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.kind import Kind, kind_of
from diffcert_ray.run.loop import Outcome
from diffcert_ray.storage.asked_images import read_asked
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA
from diffcert_ray.storage.store import RunStore


@dataclass(frozen=True)
class Run:
    """A stored run.

    Args:
        address: its folder or object prefix.
        store: reads it.
        document: its run.toml.
        outcome: how this process's work on it ended, or None if it was only opened.
    """

    address: str
    store: RunStore
    document: RunDocument
    outcome: Outcome | None = None

    @property
    def config(self) -> Config:
        """The configuration that the run was started with, and the storage options given now."""
        return self.document.config

    @property
    def kind(self) -> Kind:
        """What is counted, stored and certified in this kind of run."""
        return kind_of(self.config)

    def units(self) -> pd.DataFrame:
        """The stored units, each once: counts of votes, which all else is made of."""
        return self.store.units().to_pandas()

    def certificates(self) -> pd.DataFrame:
        """The stored certificates: one row for each image, sigma and bound.

        Where a ``sequential`` run was continued with a larger n, the row that used most votes
        counts.
        """
        table = self.store.certificates().to_pandas()
        key = ["sigma", "image_id", "bound", "alpha", "n0"]
        return table.sort_values([*key, "n"]).drop_duplicates(key, keep="last", ignore_index=True)

    def asked(self) -> dict[float, int]:
        """How many images all starts of the run asked for at each sigma, with a result or not.

        Figures of a run that is not finished need it: which images have a certificate depends on
        their votes (with ``sequential``, clear ones stop first), so that figures of those alone
        say too much. In a run folder without notes of what was asked, units tell what was begun.
        """
        noted = read_asked(self.store.location)
        rows = [self.store.certificates().select(["sigma", "image_id"]).to_pandas()]
        rows += [] if noted else [self.kind.begun(self.store)]
        for sigma, ids in pd.concat(rows).groupby("sigma")["image_id"]:
            noted.setdefault(float(str(sigma)), set()).update(ids.unique().tolist())
        first = self.kind.sigmas(self.config)
        # All of the first start's count, also where the note of its images is missing.
        least = int(self.document.dataset.get("images", 0))
        return {
            sigma: max(len(noted.get(sigma, ())), least if sigma in first else 0)
            for sigma in sorted(first | set(noted))
        }

    def table(self, name: Literal["certificates", "units"] = "certificates") -> pa.Table:
        """What ``certificates`` or ``units`` gives, as an Arrow table.

        Args:
            name: which of them.

        Returns:
            The table; each field's metadata tell its unit of measure or meaning.
        """
        if name == "units":
            return self.store.units()
        rows = self.certificates()
        return pa.Table.from_pandas(rows, schema=CERTIFICATE_SCHEMA, preserve_index=False)


def open_run(address: str | Path, storage_options: Mapping[str, Any] | None = None) -> Run:
    """Open a run that exists, to read it.

    Args:
        address: a local folder or an fsspec address such as ``s3://bucket/prefix``.
        storage_options: what fsspec's filesystem takes, for a run and a dataset that are not local;
            never stored.

    Returns:
        The run.

    Raises:
        StoreError: there is no run, or it cannot be read.
        ConfigError: its run.toml is of another version.
    """
    folder, options = str(address), dict(storage_options or {})
    store = RunStore.open(folder, options if "://" in folder else None)
    document = RunDocument.from_bytes(store.run_document()).with_storage_options(options)
    return Run(folder, store, document)
