"""The record of a compaction: which files hold its rows, and which parts they replace."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.parts import StoredFile

FOLDER = "compact"
MANIFEST_NAME = re.compile(rf"^{FOLDER}/(\d{{6,}})\.json$")
MANIFEST_VERSION = 2  # 1 knew no losses
FOLDERS = ("units", "losses", "certificates")


def by_folder() -> dict[str, tuple[Any, ...]]:
    """Nothing yet, for each folder of rows."""
    return {folder: () for folder in FOLDERS}


@dataclass(frozen=True)
class Manifest:
    """One generation. Generation 0 is a run that was never compacted.

    Args:
        generation: its number, counted up by each compaction.
        differing: units of which other kinds delivered other counts.
    """

    generation: int = 0
    files: Mapping[str, tuple[StoredFile, ...]] = field(default_factory=by_folder)
    """Compacted files in the order in which they count; also those of earlier generations."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=by_folder)
    """All parts that the files replace, also those of earlier generations."""
    given_up: Mapping[str, tuple[str, ...]] = field(default_factory=by_folder)
    """Those of the sources that were damaged and left out."""
    differing: int = 0

    def to_json(self) -> bytes:
        """The manifest as stored."""
        document: dict[str, Any] = {
            "version": MANIFEST_VERSION,
            "generation": self.generation,
            "differing": self.differing,
        }
        for folder in FOLDERS:
            document[folder] = {
                "files": [asdict(file) for file in self.files[folder]],
                "sources": list(self.sources[folder]),
                "given_up": list(self.given_up[folder]),
            }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """The manifest from its stored bytes; ValueError, KeyError or TypeError if it is none."""
        document = json.loads(data)
        if document["version"] > MANIFEST_VERSION:
            raise StoreError(
                f"compaction manifest of version {document['version']}, this program knows "
                f"{MANIFEST_VERSION}: upgrade diffcert_ray to continue this run"
            )
        nothing: dict[str, list[Any]] = {"files": [], "sources": [], "given_up": []}
        rows = {folder: document.get(folder, nothing) for folder in FOLDERS}
        return cls(
            generation=int(document["generation"]),
            files={f: tuple(StoredFile(**file) for file in rows[f]["files"]) for f in FOLDERS},
            sources={f: tuple(rows[f]["sources"]) for f in FOLDERS},
            given_up={f: tuple(rows[f]["given_up"]) for f in FOLDERS},
            differing=int(document["differing"]),
        )


@dataclass(frozen=True)
class Manifests:
    """The manifests of a run, numbered from 1 without branches."""

    location: Location

    def name(self, generation: int) -> str:
        """The file name of a generation's manifest."""
        return f"{FOLDER}/{generation:06d}.json"

    def generations(self) -> list[int]:
        """The numbers of the published generations, ascending."""
        matches = map(MANIFEST_NAME.match, self.location.list(FOLDER))
        return sorted(int(match[1]) for match in matches if match)

    def newest(self, skip_damaged: bool = False) -> Manifest:
        """The manifest that readers use, the newest; generation 0 if there is none.

        A damaged one is refused, or with skip_damaged the one before it is taken.
        """
        for generation in reversed(self.generations()):
            name = self.name(generation)
            try:
                return Manifest.from_json(self.location.read(name))
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                if not skip_damaged:
                    raise StoreError(
                        f"compaction manifest {self.location.address}/{name} is damaged "
                        f"({error}): restore it from a copy, or run again with "
                        'on_damaged="recompute" (--recompute-damaged)'
                    ) from error
        return Manifest()
