"""Handwritten digits, 1 x 8 x 8, which come with scikit-learn."""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.pixels import frozen
from diffcert_ray.datasets.reader import Request, Split
from diffcert_ray.datasets.selection import by_hash

TEST_IMAGES: Final = 360


def read_digits(request: Request) -> Split:
    """The digits, split "test", "train" or "all"; image_id is the row in scikit-learn's array.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; the copy
    in scikit-learn (1797 images, 16 grey levels above 0). The split is ours: it has none.
    """
    from sklearn.datasets import load_digits

    request.check_split("train", "test", "all")
    published = load_digits()
    labels = published.target.astype(np.int64)
    test = _test_rows(labels)
    everything = np.arange(len(labels), dtype=np.int64)
    rows = {"all": everything, "test": test, "train": np.setdiff1d(everything, test)}[request.split]
    pixels = (published.images[rows, None] / 16).astype(np.float32)
    chosen = labels[rows]
    return Split(
        ids=rows,
        labels=chosen.__getitem__,
        pixels=lambda positions: frozen(pixels[positions]),
        class_names=tuple(str(digit) for digit in range(10)),
        fingerprint=_fingerprint(request.split, rows, chosen, pixels),
    )


def _fingerprint(
    split: str, ids: NDArray[np.int64], labels: NDArray[np.int64], pixels: NDArray[np.float32]
) -> str:
    digest = hashlib.sha256(f"digits {split} {pixels.shape}".encode())
    for array, kind in ((ids, "<i8"), (labels, "<i8"), (pixels, "<f4")):
        digest.update(array.astype(kind).tobytes())
    return digest.hexdigest()


def _test_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows held out for testing, in ascending order: as many of each class as is its share."""
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * TEST_IMAGES, len(labels))
    short = TEST_IMAGES - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:short]] += 1
    held_out = []
    for digit, quota in enumerate(quotas):
        rows = np.flatnonzero(labels == digit)
        held_out.append(rows[by_hash("digits split", rows)[:quota]])
    return np.sort(np.concatenate(held_out)).astype(np.int64)
