"""What the starts of a run asked for: images and sigmas, so that those without a result are seen.

run.toml is of the first start, and an image that was given up may have left no unit: nothing else
in a run's folder says that a later start asked for it. Each note names those before it, so that one
that is gone is missed, and its own name is made from what it says, so that an edit is seen.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location

FOLDER = "asked"
# What was asked for, and everything that the note says; notes of earlier versions have one hash.
NOTE_NAME = re.compile(rf"^{FOLDER}/([0-9a-f]{{16}})(?:-([0-9a-f]{{16}}))?\.json$")


def store_asked(location: Location, sigmas: Iterable[float], image_ids: Iterable[int]) -> None:
    """Note once what a start asks for: also the images that its other drivers work on.

    Equal starts share a note.
    """
    ids = np.unique(np.fromiter(image_ids, np.int64))
    first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 2) != 1)
    ends = [*first[1:].tolist(), len(ids)]
    ranges = [[int(ids[a]), int(ids[b - 1]) + 1] for a, b in zip(first.tolist(), ends, strict=True)]
    asked: dict[str, Any] = {"sigmas": sorted(map(float, sigmas)), "image_ids": ranges}
    earlier = {match[1] for name in location.list(FOLDER) if (match := NOTE_NAME.match(name))}
    own = _hash(_json(asked))
    if own in earlier:
        return
    data = _json(asked | {"after": sorted(earlier)})
    with contextlib.suppress(FileExistsError):  # another driver of the same start was faster
        location.create(f"{FOLDER}/{own}-{_hash(data)}.json", data)


def read_asked(location: Location) -> dict[float, set[int]]:
    """The images that all starts asked for at each sigma; empty where no start noted any.

    Raises:
        StoreError: a note is damaged, was changed, or is gone.
    """
    images: dict[float, set[int]] = {}
    held: set[str] = set()
    named: dict[str, str] = {}
    for name in location.list(FOLDER):
        try:
            asked, after = _read(name, location.read(name))
            ids = {i for start, stop in asked["image_ids"] for i in range(start, stop)}
            sigmas = [float(sigma) for sigma in asked["sigmas"]]
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise StoreError(
                f"{location.address}/{name} does not say which images were asked for ({error}): "
                "restore it from a copy, or delete it and start the run again as it was"
            ) from error
        held.add(_hash(_json(asked)))
        named.update(dict.fromkeys(after, name))
        for sigma in sigmas:
            images.setdefault(sigma, set()).update(ids)
    if gone := sorted(set(named) - held):
        raise StoreError(
            f"{location.address}/{FOLDER}/{gone[0]}-*.json is gone, which {named[gone[0]]} names: "
            "it said which images an earlier start asked for. Restore it from a copy, or start "
            "the run again as it was then"
        )
    return images


def _read(name: str, data: bytes) -> tuple[dict[str, Any], list[str]]:
    """What a note asks for, and the notes before it; ValueError where its name says otherwise."""
    note = json.loads(data)
    asked = {key: note[key] for key in ("sigmas", "image_ids")}
    match = NOTE_NAME.match(name)
    if match is None or match[1] != _hash(_json(asked)) or match[2] not in (None, _hash(data)):
        raise ValueError("its name is not that of what it says: it was changed or renamed")
    if match[2] is None and "after" in note:
        raise ValueError("it was renamed")
    return asked, list(note.get("after", ()))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
