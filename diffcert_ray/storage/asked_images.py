"""What the starts of a run asked for: images and sigmas, so that those without a result are seen.

run.toml is of the first start, and an image that was given up may have left no unit: nothing else
in a run's folder says that a later start asked for it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable

import numpy as np

from diffcert_ray.errors import StoreError
from diffcert_ray.storage.location import Location

FOLDER = "asked"


def store_asked(location: Location, sigmas: Iterable[float], image_ids: Iterable[int]) -> None:
    """Note once what a start asks for: also the images that its other drivers work on.

    The file's name is a hash, so that equal starts share it.
    """
    ids = np.unique(np.fromiter(image_ids, np.int64))
    first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 2) != 1)
    ends = [*first[1:].tolist(), len(ids)]
    ranges = [[int(ids[a]), int(ids[b - 1]) + 1] for a, b in zip(first.tolist(), ends, strict=True)]
    asked = {"sigmas": sorted(map(float, sigmas)), "image_ids": ranges}
    data = json.dumps(asked, separators=(",", ":")).encode()
    name = f"{FOLDER}/{hashlib.sha256(data).hexdigest()[:16]}.json"
    if not location.exists(name):
        with contextlib.suppress(FileExistsError):  # another driver of the same start was faster
            location.create(name, data)


def read_asked(location: Location) -> dict[float, set[int]]:
    """The images that all starts asked for at each sigma; empty where no start noted any."""
    images: dict[float, set[int]] = {}
    for name in location.list(FOLDER):
        try:
            asked = json.loads(location.read(name))
            ids = {i for start, stop in asked["image_ids"] for i in range(start, stop)}
            sigmas = [float(sigma) for sigma in asked["sigmas"]]
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise StoreError(
                f"{location.address}/{name} does not say which images were asked for ({error}): "
                "restore it from a copy, or delete it and start the run again as it was"
            ) from error
        for sigma in sigmas:
            images.setdefault(sigma, set()).update(ids)
    return images
