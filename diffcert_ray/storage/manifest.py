"""The record of a compaction: which files hold its rows, and which parts they replace."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import Damage, StoredFile
from diffcert_ray.storage.sealed_json import seal, unseal
from diffcert_ray.storage.superseded import Superseded

FOLDER = "compact"
MANIFEST_NAME = re.compile(rf"^{FOLDER}/(\d{{6,}})\.json$")
MANIFEST_VERSION = 3  # 1 knew no losses, 2 neither its own checksum nor its run
SEALED_VERSION = 3
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
    passed_over: tuple[Damage, ...] = field(default=(), compare=False)
    """Later manifests that were damaged; not stored."""

    def to_json(self, origin: Origin) -> bytes:
        """The manifest as stored."""
        document: dict[str, Any] = {
            "version": MANIFEST_VERSION,
            "votes_id": origin.votes_id,
            "method_version": origin.method_version,
            "generation": self.generation,
            "differing": self.differing,
        }
        for folder in FOLDERS:
            document[folder] = {
                "files": [asdict(file) for file in self.files[folder]],
                "sources": list(self.sources[folder]),
                "given_up": list(self.given_up[folder]),
            }
        return seal(document)

    @classmethod
    def from_json(cls, data: bytes, origin: Origin) -> "Manifest":
        """The manifest from its stored bytes.

        Raises:
            ValueError, KeyError, TypeError: it is none, was changed, or is of another run.
            StoreError: it is of a later version of the program.
        """
        document = unseal(data, required=not origin.unmarked)
        if document["version"] >= SEALED_VERSION:
            unseal(data)  # its own word that it was sealed, where a seal was not required
        if document["version"] > MANIFEST_VERSION:
            raise StoreError(
                f"compaction manifest of version {document['version']}, this program knows "
                f"{MANIFEST_VERSION}: upgrade diffcert_ray to continue this run"
            )
        if document["version"] >= SEALED_VERSION or not origin.unmarked:
            why = origin.why_other(document["votes_id"], str(document["method_version"]))
            if why:
                raise ValueError(why)
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
    """The manifests of a run, numbered from 1 without branches.

    A manifest's name is its number alone: of two compactions that publish the same number, the
    first wins. The checksum of its bytes is within it.
    """

    location: Location
    origin: Origin

    def name(self, generation: int) -> str:
        """The file name of a generation's manifest."""
        return f"{FOLDER}/{generation:06d}.json"

    def generations(self) -> list[int]:
        """The numbers of the published generations, ascending."""
        matches = map(MANIFEST_NAME.match, self.location.list(FOLDER))
        return sorted(int(match[1]) for match in matches if match)

    def newest(self, superseded: Superseded, skip_damaged: bool = False) -> Manifest:
        """The manifest that readers use, the newest; generation 0 if there is none.

        A damaged one is refused; with skip_damaged, or where it was superseded, the one before it
        is taken.
        """
        passed_over: list[Damage] = []
        for generation in reversed(self.generations()):
            name = self.name(generation)
            try:
                manifest = self._read(generation)
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                if name in superseded:
                    continue
                if not skip_damaged:
                    raise StoreError(
                        f"compaction manifest {self.location.address}/{name} is damaged "
                        f"({error}): restore it from a copy, or certify again with "
                        'on_damaged="recompute" (--recompute-damaged), which sets it aside.'
                        f"{superseded.hint()}"
                    ) from error
                passed_over.append(Damage(name, str(error)))
            else:
                superseded.refuse_whole(self.location, [name])
                return replace(manifest, passed_over=tuple(passed_over))
        return Manifest(passed_over=tuple(passed_over))

    def _read(self, generation: int) -> Manifest:
        manifest = Manifest.from_json(self.location.read(self.name(generation)), self.origin)
        if manifest.generation != generation:
            raise ValueError(f"it is of generation {manifest.generation}")
        return manifest
