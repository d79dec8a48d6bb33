"""Notes of damaged or foreign files that readers leave out, since their rows were computed again.

Each is a file of its own, written once. A note silences only what is wrong with a file: one that
names a whole file of this run is refused, so that no note can hide good rows.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.origin import Origin, checksum
from diffcert_ray.storage.parts import Damage
from diffcert_ray.storage.sealed_json import seal, unseal

FOLDER = "superseded"
NOTE_VERSION = 1


@dataclass(frozen=True)
class Superseded:
    """What the notes of a run say.

    Args:
        notes: name of a file that is left out -> name of the note that says so.
        unreadable: notes that cannot be believed; what they silenced is reported again.
        by_kind: of the names, those of files with units of a numerics kind that no note named.
    """

    notes: dict[str, str]
    unreadable: tuple[str, ...] = ()
    by_kind: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self.notes

    def refuse_whole(self, location: Location, names: Iterable[str]) -> None:
        """Refuse notes about files that turned out whole and of this run (StoreError).

        A file is also whole once its numerics kind is noted: it is read, and its note says nothing.
        """
        for name in names:
            if name in self.notes and name not in self.by_kind:
                raise StoreError(
                    f"{location.address}/{self.notes[name]} says that {name} is damaged and was "
                    "superseded, but it is whole (restored from a copy?): delete that note to have "
                    "the file read again"
                )

    def hint(self) -> str:
        """What a message about damage adds where notes cannot be read."""
        if not self.unreadable:
            return ""
        return f" Notes of what was superseded are damaged too: {', '.join(self.unreadable[:3])}."


def read_superseded(location: Location, origin: Origin) -> Superseded:
    """The notes of a run; to be read before its files are listed.

    A note is written after what was computed again, so that who sees it sees these rows too.
    """
    notes: dict[str, str] = {}
    unreadable, by_kind = [], set()
    for file in location.list(FOLDER):
        try:
            note = unseal(location.read(file))
            if why := origin.why_other(note["votes_id"], str(note["method_version"])):
                raise ValueError(why)
            notes[str(note["name"])] = file
            if note.get("kind"):
                by_kind.add(str(note["name"]))
        except (ValueError, KeyError, FileNotFoundError):
            unreadable.append(file)
    return Superseded(notes, tuple(unreadable), frozenset(by_kind))


def store_superseded(
    location: Location, origin: Origin, damaged: Iterable[Damage], writer: str
) -> None:
    """Note that files are left out for good: the rows that this run needs of them are stored again.

    Args:
        location: the run's folder.
        origin: of the run.
        damaged: the files.
        writer: whose parts hold what was computed again.
    """
    for damage in damaged:
        note = {
            "version": NOTE_VERSION,
            "votes_id": origin.votes_id,
            "method_version": origin.method_version,
            "name": damage.name,
            "reason": damage.reason,
            "superseded_by": f"part-{writer}-*",
        }
        if damage.kind:
            note["kind"] = damage.kind
        data = seal(note)
        with contextlib.suppress(FileExistsError):  # this very note
            location.create(f"{FOLDER}/{writer}-{checksum(data)}.json", data)
