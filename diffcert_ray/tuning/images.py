"""The images that a rule is tuned on: none that is certified, and three parts without a common one.

An image counts by its pixels: what has the same ones is one image, wherever it lies.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.config.loading import read_as
from diffcert_ray.config.selectors import SELECTORS, the_selector
from diffcert_ray.config.tables import Config, DatasetConfig
from diffcert_ray.datasets import Dataset, check_images
from diffcert_ray.errors import ConfigError

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]

CONFIRMING, SCREENING = 0.35, 0.08
"""Shares of the images that votes are cast on; the head is trained on the rest."""
MOST_CONFIRMING, MOST_SCREENING, MOST_HEAD = 600, 150, 50_000
SHOWN_IDS = 5


@dataclass(frozen=True)
class Parts:
    """Image ids of three parts, int64, in an order that follows from their pixels.

    Attributes:
        head: a head is trained on them; none where there is no head.
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


def tuning_dataset(config: Config, given: Sequence[str]) -> DatasetConfig:
    """The [dataset] of a configuration with other images.

    Args:
        config: whose images are certified.
        given: "key=value" of [dataset] that say which images to tune on.

    Raises:
        ConfigError: nothing is given, so that they would be the certified ones, or no such key.
    """
    if not given:
        raise ConfigError(
            "tuning needs images that are not certified: say which, as in --images split=train, "
            "--images path=FOLDER or --images ids=[0,1,2]"
        )
    tables = config.dataset.model_dump(exclude_unset=True)
    kept = {k: v for k, v in tables.items() if k not in SELECTORS and k != "seed"}
    dataset = read_as(DatasetConfig, kept, given)
    the_selector(dataset.model_dump(exclude_none=True))
    return dataset


def pixel_hashes(data: Dataset) -> dict[int, str]:
    """``Dataset.image_sha`` of every image that can be read."""
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


def uncertified(shas: Mapping[int, str], certified: Iterable[str]) -> dict[int, str]:
    """The images whose pixels are not certified; the others are left out with a warning.

    Args:
        shas: hash of the pixels by image id.
        certified: hashes of the certified images.

    Raises:
        ConfigError: all are certified.
    """
    theirs = set(certified)
    left = {i: sha for i, sha in shas.items() if sha not in theirs}
    if not left:
        raise ConfigError(
            f"all {len(shas)} images to tune on are certified by this configuration, by their "
            "pixels: a rule that has seen them would flatter them; give others, as in --images "
            "split=train"
        )
    if len(left) < len(shas):
        logger.warning(
            "%d of the %d images to tune on are certified by this configuration, by their pixels, "
            "and left out",
            len(shas) - len(left),
            len(shas),
        )
    return left


def parts_of(
    shas: Mapping[int, str],
    *,
    head: bool,
    confirming: int | None = None,
    screening: int | None = None,
) -> Parts:
    """Split images in the order of a hash of their pixels; of equal images one is taken.

    Args:
        shas: hash of the pixels by image id.
        head: whether a head is to be trained.
        confirming: images of this part; by default a share of them.
        screening: the same.

    Raises:
        ConfigError: too few images.
    """
    distinct: dict[str, int] = {}
    for image_id, sha in sorted(shas.items()):
        distinct.setdefault(sha, image_id)
    order = sorted(distinct, key=lambda sha: hashlib.sha256(f"tuning {sha}".encode()).digest())
    ids = np.array([distinct[sha] for sha in order], np.int64)
    shares = (CONFIRMING, SCREENING) if head else (0.75, 0.25)
    first = _count(confirming, shares[0], len(ids), MOST_CONFIRMING)
    second = _count(screening, shares[1], len(ids), MOST_SCREENING)
    rest = ids[first + second :][: MOST_HEAD if head else 0]
    parts = Parts(rest, ids[first : first + second], ids[:first])
    needed = [parts.screening, parts.confirming, *([parts.head] if head else [])]
    if min(map(len, needed)) < 2:
        raise ConfigError(
            f"{len(ids)} images to tune on give {len(parts.head)} for the head, "
            f"{len(parts.screening)} for screening and {len(parts.confirming)} for confirming: "
            "each part needs 2 at least; give more images, or smaller parts (--confirming, "
            "--screening)"
        )
    return parts


def _count(asked: int | None, share: float, images: int, most: int) -> int:
    return min(round(share * images), most) if asked is None else asked
