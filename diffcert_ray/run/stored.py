"""A stored run, opened to be read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from diffcert_ray.config.tables import Config
from diffcert_ray.errors import StoreError
from diffcert_ray.run.certifiable import check_certifiable
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.examined import Examined, examine
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
    _known: dict[tuple[str, ...], Examined] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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
        counts. What follows from the counts is recomputed, in milliseconds, before anything is
        returned.

        Raises:
            ConfigError: certificates of another run, or that their bound does not hold for.
            StoreError: certificates that contradict themselves or the stored units, or units that
                the run cannot have stored; the message names the first, its file and the remedy.
        """
        examined = self.examined()
        examined.refuse(self.address)
        return examined.certificates

    def examined(self) -> Examined:
        """The certificates as they are stored, and what is wrong with them; read once."""
        folders = ("certificates", "compact", self.kind.folder)
        names = tuple(name for folder in folders for name in self.store.location.list(folder))
        if names not in self._known:  # parts never change, so that names tell what is stored
            self._known.clear()
            self._known[names] = examine(
                self.store, self.document, lambda rows: check_certifiable(self, rows)
            )
        return self._known[names]

    def asked(self) -> dict[float, int]:
        """How many images all starts of the run asked for at each sigma, with a result or not.

        Figures of a run that is not finished need it: which images have a certificate depends on
        their votes (with ``sequential``, clear ones stop first), so that figures of those alone
        say too much. In a run folder without notes of what was asked, units tell what was begun.

        Raises:
            StoreError: notes of what was asked for were changed or are gone.
        """
        images = self.asked_images()
        # All of the first start's count, also where no note says which they were.
        least = int(self.document.dataset.get("images", 0))
        first = self.kind.sigmas(self.config)
        return {
            sigma: max(len(images.get(sigma, ())), least if sigma in first else 0)
            for sigma in sorted(first | set(images))
        }

    def asked_images(self) -> dict[float, set[int]]:
        """The image_ids behind ``asked``, as far as notes, certificates and units tell."""
        noted = read_asked(self.store.location)
        examined = self.examined()
        found = dict(examined.certified)
        if not noted or self.document.document_id:
            for sigma, ids in examined.begun.items():
                found[sigma] = found.get(sigma, set()) | ids
        if self.document.document_id:
            self._check_asked(noted, found)
        return {s: noted.get(s, set()) | found.get(s, set()) for s in {*noted, *found}}

    def _check_asked(
        self, noted: Mapping[float, set[int]], found: Mapping[float, set[int]]
    ) -> None:
        """Refuse results that no start asked for: the note of the start that did is gone."""
        for sigma, ids in sorted(found.items()):
            if unasked := sorted(ids - noted.get(sigma, set())):
                where = f" at sigma {sigma:g}" if sigma else ""
                raise StoreError(
                    f"{len(unasked)} images of {self.address} have certificates or votes{where} "
                    f"that no note in asked/ asks for, first image {unasked[0]}: a note is gone, "
                    "or they were put there. Restore the note from a copy, or start the run again "
                    "as it was"
                )

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


@dataclass(frozen=True)
class Elsewhere:
    """A run to be opened by another process, which may be on another machine."""

    address: str
    storage_options: Mapping[str, Any]
    dataset_path: str | None = None

    @staticmethod
    def of(run: Run) -> "Elsewhere":
        """The same run; a folder by its whole path."""
        address = run.address if "://" in run.address else os.path.abspath(run.address)
        return Elsewhere(address, run.config.execution.storage_options, run.config.dataset.path)

    def open(self) -> Run:
        """Open it here.

        Raises:
            StoreError: it cannot be reached from here.
        """
        return open_run(self.address, self.storage_options, dataset_path=self.dataset_path)


def open_run(
    address: str | Path,
    storage_options: Mapping[str, Any] | None = None,
    *,
    dataset_path: str | None = None,
) -> Run:
    """Open a run that exists, to read it.

    Args:
        address: a local folder or an fsspec address such as ``s3://bucket/prefix``.
        storage_options: what fsspec's filesystem takes, for a run and a dataset that are not local;
            never stored.
        dataset_path: where the images are, of a run that was made elsewhere; their fingerprint
            tells whether they are the same.

    Returns:
        The run.

    Raises:
        StoreError: there is no run, or it cannot be read.
        ConfigError: its run.toml is of another version.
    """
    folder, options = str(address), dict(storage_options or {})
    store = RunStore.open(folder, options if "://" in folder else None)
    document = RunDocument.from_bytes(store.run_document()).with_storage_options(options)
    if dataset_path is not None:
        document = document.with_dataset_path(dataset_path)
    return Run(folder, store, document)
