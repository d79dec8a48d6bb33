"""Datasets: which images there are, their stable ids, pixels and labels.

Shape letters: N images, C H W image.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SELECTORS = ("first", "every", "ids", "sample")
_KEYS = ("name", "split", *_SELECTORS, "seed")
_DIGITS_TEST_IMAGES: Final = 360


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one split, or a chosen part of it, in memory.

    Attributes:
        name: what `load_dataset` knows it by.
        split: which part of the published data it was chosen from.
        ids: stable image ids, int64 [N]; their order is the order of positions.
        labels: class of each, int64 [N], 0 <= label < num_classes.
        pixels: float32 [N, C, H, W] in [0, 1].
        class_names: one name per class.
        fingerprint: sha256 over the pixels, labels, ids and name of the whole split, in hex; the
            same for every part of it.
    """

    name: str
    split: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    pixels: NDArray[np.float32]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return (channels, height, width)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, image_id: int) -> int:
        """Where an image stands in `ids`.

        Args:
            image_id: its stable id.

        Returns:
            The position, 0 <= position < N.

        Raises:
            ValueError: no such image in this part of the dataset.
        """
        found = np.flatnonzero(self.ids == image_id)
        if found.size == 0:
            raise ValueError(
                f"image_id {image_id} is not among the {len(self)} chosen images of {self.name} "
                f"{self.split}: take one from `ids`"
            )
        return int(found[0])

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image's pixels.

        Args:
            image_id: its stable id.

        Returns:
            float32 [C, H, W] in [0, 1].

        Raises:
            ValueError: no such image in this part of the dataset.
        """
        pixels: NDArray[np.float32] = self.pixels[self.position(image_id)]
        return pixels

    def image_sha(self, image_id: int) -> str:
        """The first 16 hex digits of the sha256 of one image's pixels (little-endian float32).

        Args:
            image_id: its stable id.

        Returns:
            16 hex digits, kept with results so that another image under this id is noticed.

        Raises:
            ValueError: no such image in this part of the dataset.
        """
        return hashlib.sha256(self.image(image_id).astype("<f4").tobytes()).hexdigest()[:16]


def load_dataset(spec: object) -> Dataset:
    """Load a dataset, or the part of it that a specification chooses.

    Args:
        spec: the dataset's name, or a mapping (or dataclass, or pydantic model) with `name`,
            `split` ("test", "train" or "all"; default "test") and at most one of: `first` = N;
            `every` = k (positions 0, k, 2k, ...); `ids` = list of image ids, in that order;
            `sample` = N with `seed` (default 0), which draws N images without replacement, in an
            order such that a larger N only adds images at the end.

    Returns:
        The chosen images.

    Raises:
        ValueError: unknown key, name or split; more images asked for than there are.
    """
    chosen = _as_mapping(spec)
    unknown = [key for key in chosen if key not in _KEYS]
    if unknown:
        raise ValueError(f"dataset.{unknown[0]} is not known{_nearest(unknown[0], _KEYS)}")
    name = chosen.get("name")
    if name not in _LOADERS:
        raise ValueError(f"dataset.name {name!r} is not known{_nearest(str(name), _LOADERS)}")
    whole = _LOADERS[str(name)](str(chosen.get("split", "test")))
    positions = _positions(whole, chosen)
    return dataclasses.replace(
        whole,
        ids=_frozen(whole.ids[positions]),
        labels=_frozen(whole.labels[positions]),
        pixels=_frozen(whole.pixels[positions]),
    )


def _as_mapping(spec: object) -> dict[str, Any]:
    """The specification's keys that are set."""
    if isinstance(spec, str):
        return {"name": spec}
    if isinstance(spec, Mapping):
        found = dict(spec)
    elif dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        found = dataclasses.asdict(spec)
    elif hasattr(spec, "model_dump"):
        found = spec.model_dump()
    else:
        raise ValueError(
            f"a dataset is given by its name or by a mapping, not by {type(spec).__name__}"
        )
    return {key: value for key, value in found.items() if value is not None}


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    return f"{hint} known are {', '.join(known)}"


def _positions(whole: Dataset, chosen: Mapping[str, Any]) -> NDArray[np.int64]:
    """Positions within the split that the one selector in `chosen` takes."""
    selectors = [key for key in _SELECTORS if key in chosen]
    if len(selectors) > 1:
        raise ValueError(f"dataset has {' and '.join(selectors)}: give one of them")
    if "seed" in chosen and selectors != ["sample"]:
        raise ValueError("dataset.seed is only for dataset.sample: remove it, or give sample")
    everything = np.arange(len(whole))
    if not selectors:
        return everything
    selector = selectors[0]
    if selector == "ids":
        return _positions_of_ids(whole, chosen["ids"])
    number = _positive(selector, chosen[selector])
    if selector == "every":
        return everything[::number]
    if number > len(whole):
        raise ValueError(
            f"dataset.{selector} is {number} but {whole.name} {whole.split} has {len(whole)} "
            f"images: ask for at most {len(whole)}"
        )
    if selector == "first":
        return everything[:number]
    return _by_hash(f"sample {int(chosen.get('seed', 0))}", whole.ids)[:number]


def _positions_of_ids(whole: Dataset, ids: Sequence[int]) -> NDArray[np.int64]:
    if len(ids) == 0 or len(set(ids)) != len(ids):
        raise ValueError(f"dataset.ids has {len(ids)} entries: give at least one, and none twice")
    where = {int(image_id): position for position, image_id in enumerate(whole.ids)}
    missing = [image_id for image_id in ids if image_id not in where]
    if missing:
        raise ValueError(
            f"dataset.ids: {missing[0]} is not in {whole.name} {whole.split} ({len(whole)} "
            f"images, ids {whole.ids.min()} to {whole.ids.max()}): take ids of that split"
        )
    return np.array([where[image_id] for image_id in ids], dtype=np.int64)


def _positive(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"dataset.{key} is {value!r}: it must be an integer of at least 1")
    return int(value)


def _by_hash(salt: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in an order that looks random and depends on nothing but salt and ids.

    A library's generator may change its stream between versions; sha256 may not.
    """
    digests = [hashlib.sha256(f"{salt} {image_id}".encode()).digest() for image_id in ids]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def _fingerprint(
    name: str, split: str, ids: NDArray[np.int64], labels: NDArray[np.int64],
    pixels: NDArray[np.float32],
) -> str:  # fmt: skip
    digest = hashlib.sha256(f"{name} {split} {pixels.shape}".encode())
    for array, kind in ((ids, "<i8"), (labels, "<i8"), (pixels, "<f4")):
        digest.update(array.astype(kind).tobytes())
    return digest.hexdigest()


def _load_digits(split: str) -> Dataset:
    """Handwritten digits, 1 x 8 x 8, from scikit-learn; image_id is the row in its array.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; the copy
    in scikit-learn (1797 images, 16 grey levels above 0). The split is ours: it has none.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test", "all"):
        raise ValueError(f"dataset.split {split!r} is not known: use 'train', 'test' or 'all'")
    published = load_digits()
    labels = published.target.astype(np.int64)
    test = _digits_test_rows(labels)
    everything = np.arange(len(labels), dtype=np.int64)
    rows = {"all": everything, "test": test, "train": np.setdiff1d(everything, test)}[split]
    pixels = (published.images[rows, None] / 16).astype(np.float32)
    return Dataset(
        name="digits",
        split=split,
        ids=rows,
        labels=labels[rows],
        pixels=pixels,
        class_names=tuple(str(digit) for digit in range(10)),
        fingerprint=_fingerprint("digits", split, rows, labels[rows], pixels),
    )


def _digits_test_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows held out for testing, in ascending order: as many of each class as is its share."""
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * _DIGITS_TEST_IMAGES, len(labels))
    short = _DIGITS_TEST_IMAGES - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:short]] += 1
    held_out = []
    for digit, quota in enumerate(quotas):
        rows = np.flatnonzero(labels == digit)
        held_out.append(rows[_by_hash("digits split", rows)[:quota]])
    return np.sort(np.concatenate(held_out)).astype(np.int64)


_LOADERS: Final[dict[str, Callable[[str], Dataset]]] = {"digits": _load_digits}
