"""Which numerics kinds a run has met: noted before any unit of theirs is stored.

A kind is what a loaded network returns for a probe batch: no document can name it beforehand, and
workers of other kinds may join a run at any time. The driver that meets one notes it, in a file of
its own; units of a kind that no note names are none of this run's.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffcert_ray.storage.location import Location
from diffcert_ray.storage.origin import Origin
from diffcert_ray.storage.parts import Damage, ReadPart
from diffcert_ray.storage.sealed_json import seal, unseal

FOLDER = "kinds"
NOTE_VERSION = 1
KIND = re.compile(r"[\w.-]*")
JOINT = "+"  # between the kinds of workers that cast votes of one unit
NUMERICS = "numerics"


@dataclass(frozen=True)
class Noted:
    """What the notes of a run say.

    Args:
        about: kind -> what is said of it; of several notes, the first by name.
        unreadable: notes that cannot be believed: they name nothing.
    """

    about: Mapping[str, Mapping[str, Any]]
    unreadable: tuple[str, ...] = ()

    def __contains__(self, numerics: str) -> bool:
        return all(kind in self.about for kind in numerics.split(JOINT))


def note_kind(
    location: Location, origin: Origin, writer: str, kind: str, about: Mapping[str, Any]
) -> None:
    """Note a kind, unless a note names it already.

    Two drivers that meet it at the same time leave two notes. A note has its writer in its name, so
    that a damaged one is in nobody's way.

    Args:
        location: the run's folder.
        origin: of the run.
        writer: name of the driver's writer.
        kind: of one worker's networks.
        about: what is known of it.

    Raises:
        ValueError: no kind has such a name.
        StoreError: the folder cannot be read or written.
    """
    if not KIND.fullmatch(kind):
        raise ValueError(f"numerics kind {kind!r}: use letters, digits, '-', '_' and '.'")
    if kind in read_kinds(location, origin):
        return
    note = {
        "version": NOTE_VERSION,
        "votes_id": origin.votes_id,
        "method_version": origin.method_version,
        NUMERICS: kind,
        "writer": writer,
        "about": dict(about),
    }
    with contextlib.suppress(FileExistsError):  # put before, and the answer was lost
        location.create(_name(kind, writer), seal(note))


def read_kinds(location: Location, origin: Origin) -> Noted:
    """The notes of a run; to be read after the files whose kinds are looked up."""
    about: dict[str, Mapping[str, Any]] = {}
    unreadable = []
    for file in location.list(FOLDER):
        try:
            note = unseal(location.read(file))
            if why := origin.why_other(note["votes_id"], str(note["method_version"])):
                raise ValueError(why)
            if file != _name(note[NUMERICS], note["writer"]):
                raise ValueError("it was renamed")
            about.setdefault(note[NUMERICS], note["about"])
        except (ValueError, KeyError, FileNotFoundError):
            unreadable.append(file)
    return Noted(about, tuple(unreadable))


class KindCheck:
    """Looks up the kinds of units that were read, and the notes only when that is needed.

    A note is older than any unit of its kind: one that is read after the units is complete.
    """

    def __init__(self, location: Location, origin: Origin) -> None:
        self._location, self._origin = location, origin
        self._noted = Noted({})

    def sorted_out(self, parts: Sequence[ReadPart]) -> tuple[list[ReadPart], list[Damage]]:
        """The files whose units are all of noted kinds, and what is wrong with the others."""
        if not self._origin.notes_kinds:
            return list(parts), []
        kinds = {part.name: _kinds(part.table) for part in parts}
        if any(kind not in self._noted for of_part in kinds.values() for kind in of_part):
            self._noted = read_kinds(self._location, self._origin)
        unnamed = {
            name: sorted(kind for kind in of_part if kind not in self._noted)
            for name, of_part in kinds.items()
        }
        return (
            [part for part in parts if not unnamed[part.name]],
            [self._damage(part, unnamed[part.name][0]) for part in parts if unnamed[part.name]],
        )

    def _damage(self, part: ReadPart, kind: str) -> Damage:
        row = part.table.slice(pc.index(part.table[NUMERICS].cast(pa.string()), kind).as_py(), 1)
        unit = row.to_pylist()[0]
        where = f"image {unit['image_id']}"
        where += (
            f" at sigma {unit['sigma']:g}, {unit['stream']} votes" if "sigma" in unit else ", draws"
        )
        why = (
            f"the unit of {where} {unit['start']}:{unit['stop']} is of numerics kind {kind}, which "
            f"no note in {FOLDER}/ names"
        )
        if self._noted.unreadable:
            why += f"; of the notes, {self._noted.unreadable[0]} cannot be believed"
        return Damage(part.name, why, kind=kind)


def _kinds(table: pa.Table) -> set[str]:
    """The distinct kinds in a table of units or losses, whose strings are dictionaries."""
    if NUMERICS not in table.column_names:
        return set()
    return {
        kind
        for chunk in table[NUMERICS].chunks
        for kind in chunk.dictionary.take(pc.unique(chunk.indices)).to_pylist()
    }


def _name(kind: str, writer: str) -> str:
    return f"{FOLDER}/{kind}-{writer}.json"
