"""The images that a rule is tuned on: none that is certified, and three parts without a common one.

An image counts by its pixels: what has the same ones is one image, wherever it lies.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.config.selectors import SELECTORS
from diffcert_ray.config.tables import Config, DatasetConfig
from diffcert_ray.datasets import Dataset, check_images, load_dataset
from diffcert_ray.datasets.pixels import Pixels
from diffcert_ray.errors import ConfigError

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]

CONFIRMING, SCREENING = 0.35, 0.10
"""Shares of the images that votes are cast on; the head is trained on the rest."""
MOST_CONFIRMING, MOST_SCREENING, MOST_HEAD = 500, 150, 50_000
SHOWN_IDS = 5


@dataclass(frozen=True)
class Parts:
    """Image ids of three parts, int64, in an order that follows from their pixels.

    Attributes:
        head: a head is trained on them.
        screening: its temperature is fitted on them, and settings are looked through.
        confirming: the settings left over are compared on them: nothing before knows them.
    """

    head: Ints
    screening: Ints
    confirming: Ints

    @property
    def voting(self) -> Ints:
        """Images that votes are cast on, the screening ones first."""
        return np.concatenate([self.screening, self.confirming])


@dataclass(frozen=True)
class PickedPixels:
    """Some images of others, by position."""

    pixels: Pixels
    positions: Ints

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.positions), *self.pixels.shape[1:])

    def __getitem__(self, position: int, /) -> np.ndarray:
        return np.asarray(self.pixels[int(self.positions[position])])


def tuning_dataset(config: Config, given: dict[str, object]) -> DatasetConfig:
    """The [dataset] of a configuration with other images.

    Args:
        config: whose images are certified.
        given: keys of [dataset] that say which images to tune on.

    Raises:
        ConfigError: nothing is given, so that they would be the certified ones.
    """
    if not given:
        raise ConfigError(
            "tuning needs images that are not certified: say which, as in --images split=train, "
            "--images path=FOLDER or --images ids=[0,1,2]"
        )
    cleared = dict.fromkeys((*SELECTORS, "seed"))
    tables = config.dataset.model_dump(exclude_unset=True) | cleared | given
    return DatasetConfig.model_validate({k: v for k, v in tables.items() if v is not None})


def pixel_hashes(data: Dataset) -> dict[int, str]:
    """``Dataset.image_sha`` of every image that can be read, each read once."""
    checked = check_images(data, data.ids.tolist())
    if checked.corrupt:
        shown = ", ".join(map(str, sorted(checked.corrupt)[:SHOWN_IDS]))
        logger.warning(
            "%d images of %s %s cannot be read and are left out (image_id %s)",
            len(checked.corrupt),
            data.name,
            data.split,
            shown,
        )
    read = [i for i in data.ids.tolist() if i not in checked.corrupt]
    return {i: checked.shas.get(i) or data.image_sha(i) for i in read}


def uncertified(
    shas: dict[int, str], certified: Iterable[str], *, leave_out: bool = False
) -> dict[int, str]:
    """Images that are not certified.

    Args:
        shas: hash of the pixels by image id.
        certified: hashes of the certified images.
        leave_out: leave certified ones out, in place of refusing them.

    Raises:
        ConfigError: some are certified, or all.
    """
    theirs = set(certified)
    shared = [i for i, sha in shas.items() if sha in theirs]
    if len(shared) == len(shas) or (shared and not leave_out):
        shown = ", ".join(map(str, shared[:SHOWN_IDS])) + ("..." if shared[SHOWN_IDS:] else "")
        raise ConfigError(
            f"{len(shared)} of the {len(shas)} images to tune on are certified by this "
            f"configuration, by their pixels (image_id {shown}): a rule that has seen them would "
            "flatter them; give other images (--images split=train), or --leave-out-certified"
        )
    if shared:
        logger.warning("%d images to tune on are certified, and left out", len(shared))
    return {i: sha for i, sha in shas.items() if sha not in theirs}


def parts_of(
    shas: dict[int, str],
    *,
    seen: Iterable[str] | None = None,
    confirming: int | None = None,
    screening: int | None = None,
    head: int = MOST_HEAD,
) -> Parts:
    """Split images by the hash of their pixels; of equal images one is taken.

    Args:
        shas: hash of the pixels by image id.
        seen: hashes of the images that a head which exists already has seen: they are left out, and
            the part ``head`` is empty. None: a head is to be trained.
        confirming: images of this part; by default a share of them.
        screening: the same.
        head: at most so many.

    Raises:
        ConfigError: too few images.
    """
    distinct: dict[str, int] = {}
    for image_id, sha in sorted(shas.items()):
        distinct.setdefault(sha, image_id)
    known = set(seen or ())
    fresh = {sha: image_id for sha, image_id in distinct.items() if sha not in known}
    order = sorted(fresh, key=lambda sha: hashlib.sha256(f"tuning {sha}".encode()).digest())
    ids = np.array([fresh[sha] for sha in order], np.int64)
    if seen is None:
        shares = CONFIRMING, SCREENING
    else:
        shares = CONFIRMING / (CONFIRMING + SCREENING), SCREENING / (CONFIRMING + SCREENING)
    first = _count(confirming, shares[0], len(ids), MOST_CONFIRMING)
    second = _count(screening, shares[1], len(ids), MOST_SCREENING)
    parts = Parts(ids[first + second :][:head], ids[first : first + second], ids[:first])
    if seen is not None:
        parts = replace(parts, head=ids[:0])
    needed = [parts.screening, parts.confirming, *([parts.head] if seen is None else [])]
    if min(map(len, needed)) < 2:
        raise ConfigError(
            f"{len(ids)} images to tune on give {len(parts.head)} for the head, "
            f"{len(parts.screening)} for screening and {len(parts.confirming)} for confirming: "
            "each part needs 2 at least; give more images, or smaller parts"
        )
    return parts


def _count(asked: int | None, share: float, images: int, most: int) -> int:
    return min(round(share * images), most) if asked is None else min(asked, images)


def certified_dataset(config: Config, dataset: Dataset | None = None) -> Dataset:
    """The images that a configuration certifies."""
    if dataset is not None:
        return dataset
    return load_dataset(config.dataset, config.execution.storage_options)


def part_of(data: Dataset, image_ids: Sequence[int]) -> Dataset:
    """Some images of a dataset, in the order of ``image_ids``."""
    where = {image_id: position for position, image_id in enumerate(data.ids.tolist())}
    positions = np.array([where[i] for i in image_ids], np.int64)
    return replace(
        data,
        ids=data.ids[positions],
        labels=data.labels[positions],
        pixels=PickedPixels(data.pixels, positions),
    )
