"""CIFAR-10 and CIFAR-100: the binary version and the Python version.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", and the format
notes of its distribution: binary records are one label byte (CIFAR-100: coarse, then fine), then
3072 bytes, red, green and blue plane; the Python version holds the same rows in pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.pickled_arrays import read_pickle
from diffcert_ray.datasets.pixel_scale import check_published
from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError

PIXELS: Final = 3 * 32 * 32
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Layout:
    """File names of one of the two datasets, and what a label is called in them."""

    classes: int
    binary_folder: str
    binary: dict[str, tuple[str, ...]]
    binary_names: str
    label_bytes: int
    python_folder: str
    python: dict[str, tuple[str, ...]]
    meta: str
    names_key: str
    labels_key: str


_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
_LAYOUTS: Final = {
    "cifar10": _Layout(
        classes=10,
        binary_folder="cifar-10-batches-bin",
        binary={"train": tuple(f"{b}.bin" for b in _BATCHES), "test": ("test_batch.bin",)},
        binary_names="batches.meta.txt",
        label_bytes=1,
        python_folder="cifar-10-batches-py",
        python={"train": _BATCHES, "test": ("test_batch",)},
        meta="batches.meta",
        names_key="label_names",
        labels_key="labels",
    ),
    "cifar100": _Layout(
        classes=100,
        binary_folder="cifar-100-binary",
        binary={"train": ("train.bin",), "test": ("test.bin",)},
        binary_names="fine_label_names.txt",
        label_bytes=2,
        python_folder="cifar-100-python",
        python={"train": ("train",), "test": ("test",)},
        meta="meta",
        names_key="fine_label_names",
        labels_key="fine_labels",
    ),
}


def read_cifar(request: Request) -> Split:
    """CIFAR-10 or CIFAR-100; image_id is the row in the split, batch after batch.

    The path is the folder of either version, or the folder that this one was unpacked in. Both
    versions give the same split, in memory as bytes.
    """
    request.check_split("test", "train")
    layout, files = _LAYOUTS[request.name], request.files()
    folder, is_binary = _version(layout, request.split, files)
    parts = layout.binary[request.split] if is_binary else layout.python[request.split]
    read = _read_binary if is_binary else _read_python
    batches = [read(layout, files, f"{folder}{part}") for part in parts]
    values = np.concatenate([values for values, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    names = (_binary_names if is_binary else _python_names)(layout, files, folder)
    return split_of_bytes(request, values, labels, names)


def _version(layout: _Layout, split: str, files: DataFiles) -> tuple[str, bool]:
    """The folder prefix that the split's files are in, and whether they are the binary version."""
    for names, folder, is_binary in (
        (layout.binary, layout.binary_folder, True),
        (layout.python, layout.python_folder, False),
    ):
        for prefix in ("", f"{folder}/"):
            if files.exists(f"{prefix}{names[split][0]}"):
                return prefix, is_binary
    raise DatasetError(
        f"dataset.path {files.address!r} has neither {layout.binary[split][0]} (binary version) "
        f"nor {layout.python[split][0]} (Python version): give the unpacked folder "
        f"{layout.binary_folder} or {layout.python_folder}, or the one that it is in"
    )


def _read_binary(layout: _Layout, files: DataFiles, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    data = np.frombuffer(files.read(name), dtype=np.uint8)
    record = layout.label_bytes + PIXELS
    if len(data) == 0 or len(data) % record:
        raise DatasetError(
            f"{files.address}/{name} has {len(data)} bytes, which is no multiple of {record}, the "
            "size of a record: it is cut short or of another dataset; fetch it again"
        )
    rows = data.reshape(-1, record)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    return rows[:, layout.label_bytes :], _checked(layout, labels, f"{files.address}/{name}")


def _read_python(layout: _Layout, files: DataFiles, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    where = f"{files.address}/{name}"
    content = _mapping(files, name)
    values, labels = content.get("data"), content.get(layout.labels_key)
    if isinstance(values, np.ndarray):
        check_published(values, where)
    if not (
        isinstance(values, np.ndarray)
        and values.ndim == 2
        and values.shape[1] == PIXELS
        and isinstance(labels, list)
        and len(labels) == len(values)
        and all(type(label) is int for label in labels)
    ):
        raise DatasetError(
            f"{where} does not hold 'data' (bytes [N, {PIXELS}]) and {layout.labels_key!r} (N "
            "whole numbers): it is not the Python version of this dataset"
        )
    return values, _checked(layout, np.array(labels, dtype=np.int64), where)


def _checked(layout: _Layout, labels: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels >= layout.classes))
    if len(wrong):
        raise DatasetError(
            f"{where}: row {wrong[0]} has label {labels[wrong[0]]}, but there are "
            f"{layout.classes} classes: the file is damaged or of another dataset; fetch it again"
        )
    return labels


def _binary_names(layout: _Layout, files: DataFiles, folder: str) -> tuple[str, ...]:
    name = f"{folder}{layout.binary_names}"
    if not files.exists(name):
        return tuple(str(k) for k in range(layout.classes))
    lines = files.read(name).decode("utf-8", "replace").split()
    return _all_names(layout, lines, f"{files.address}/{name}")


def _python_names(layout: _Layout, files: DataFiles, folder: str) -> tuple[str, ...]:
    name = f"{folder}{layout.meta}"
    if not files.exists(name):
        return tuple(str(k) for k in range(layout.classes))
    stored = _mapping(files, name).get(layout.names_key)
    names = stored if isinstance(stored, list) else []
    return _all_names(layout, [_text(n) for n in names], f"{files.address}/{name}")


def _all_names(layout: _Layout, names: list[str], where: str) -> tuple[str, ...]:
    if len(names) != layout.classes:
        raise DatasetError(
            f"{where} names {len(names)} classes, not {layout.classes}: fetch it again, or remove "
            "it (classes are then called by their numbers)"
        )
    return tuple(names)


def _mapping(files: DataFiles, name: str) -> dict[str, Any]:
    """The dictionary in a pickle; its keys are bytes or text, by the Python that wrote it."""
    content = read_pickle(files.read(name), f"{files.address}/{name}")
    if not isinstance(content, dict):
        raise DatasetError(f"{files.address}/{name} holds no dictionary: it is no CIFAR file")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
