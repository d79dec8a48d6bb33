"""Which images of a split are taken: first, every k-th, explicit ids, a seeded sample."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.config.selectors import the_selector


def positions(where: str, ids: NDArray[np.int64], chosen: Mapping[str, Any]) -> NDArray[np.int64]:
    """Positions within a split, int64 [n], that the one selector in a specification takes.

    Args:
        where: dataset and split, for messages.
        ids: int64 [N], the split's image ids.
        chosen: the specification; at most one of SELECTORS is in it, and ``seed`` with ``sample``.

    Raises:
        ValueError: two selectors, more images than there are, or unknown ids.
    """
    selector = the_selector(chosen)
    if "seed" in chosen and selector != "sample":
        raise ValueError("dataset.seed is only for dataset.sample: remove it, or give sample")
    everything = np.arange(len(ids))
    if selector is None:
        return everything
    if selector == "ids":
        return _positions_of_ids(where, ids, chosen["ids"])
    number = _positive(selector, chosen[selector])
    if selector == "every":
        return everything[::number]
    if number > len(ids):
        raise ValueError(
            f"dataset.{selector} is {number} but {where} has {len(ids)} images: ask for at most "
            f"{len(ids)}"
        )
    if selector == "first":
        return everything[:number]
    return by_hash(f"sample {int(chosen.get('seed', 0))}", ids)[:number]


def by_hash(salt: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in an order that looks random and depends on nothing but salt and ids.

    A library's generator may change its stream between versions; sha256 may not.
    """
    digests = [hashlib.sha256(f"{salt} {image_id}".encode()).digest() for image_id in ids]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def _positions_of_ids(
    where: str, ids: NDArray[np.int64], asked: Sequence[int]
) -> NDArray[np.int64]:
    if len(asked) == 0 or len(set(asked)) != len(asked):
        raise ValueError(f"dataset.ids has {len(asked)} entries: give at least one, and none twice")
    position_of = {int(image_id): position for position, image_id in enumerate(ids)}
    missing = [image_id for image_id in asked if image_id not in position_of]
    if missing:
        raise ValueError(
            f"dataset.ids: {missing[0]} is not in {where} ({len(ids)} images, ids {ids.min()} to "
            f"{ids.max()}): take ids of that split"
        )
    return np.array([position_of[image_id] for image_id in asked], dtype=np.int64)


def _positive(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"dataset.{key} is {value!r}: it must be an integer of at least 1")
    return int(value)
