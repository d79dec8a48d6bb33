"""Parquet with a column of images, local or on an object store, read by row group when asked.

What is read at once: the footer of every file, the label of every chosen image, and all ids where
there is an id column. Pixels come one row group at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.datasets.parquet_files import RowGroups, open_row_groups
from diffcert_ray.datasets.parquet_images import cell_pixels, image_leaf
from diffcert_ray.datasets.pixels import first_shape
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.errors import DatasetError, nearest

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


class ParquetPixels:
    """Images that are read by row group when asked for.

    Args:
        groups: where they are.
        column: the leaf that holds them.
        rows: int64 [N], the row of each position in the split.
        image_shape: (C, H, W), or None: as the first readable image is.
    """

    def __init__(
        self, groups: RowGroups, column: str, rows: Ints, image_shape: tuple[int, int, int] | None
    ) -> None:
        self.groups = groups
        self._column, self._rows, self._asked = column, rows, image_shape

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self._rows), *(self._asked or first_shape(self, len(self))))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int, /) -> NDArray[Any]:
        group, offset = self.groups.locate(int(self._rows[position]))
        return cell_pixels(self.groups.read(group, self._column), offset, self._asked)


def read_parquet(request: Request) -> Split:
    """Parquet files with a column of images; image_id is the row in the split, or the id column's.

    A split is every file whose name starts with it ("test-00000-of-00001.parquet") or that is in a
    folder of its name, in the order of their names; "all" is every file. An image is a PNG or JPEG
    (bytes, or the Hugging Face struct of bytes and path, whose path is never opened) or nested
    lists of numbers. The fingerprint rests on the files' names, sizes and footers (which hold row
    counts, offsets and statistics), so that no pixels need be read for it. The path is a .parquet
    file, or a folder or fsspec address of such files.

    Raises:
        DatasetError: no such files or columns, or columns of another type.
        OSError: the store cannot be read.
    """
    files = request.files()
    sizes = files.sizes(".parquet") if not files.address.endswith(".parquet") else files.sizes("")
    names = list(sizes) if list(sizes) == [""] else _files_of_split(request, list(sizes))
    groups = open_row_groups(files, {name: sizes[name] for name in names})
    columns = groups.schema.names
    image = _column(request.image_column, IMAGE_COLUMNS, "image_column", columns)
    label = _column(request.label_column, LABEL_COLUMNS, "label_column", columns)
    leaf = image_leaf(groups.schema.field(image))
    class_names, coded = _classes(groups, label)
    ids = _ids(request, groups)
    digest = hashlib.sha256(f"parquet {request.split} {image} {label}".encode())
    digest.update(f" {request.id_column} {request.image_shape} {groups.identity}".encode())

    def labels(positions: Ints) -> Ints:
        stored = groups.values(label, positions)
        return np.array([coded(value) for value in stored.to_pylist()], dtype=np.int64)

    return Split(
        ids=ids,
        labels=labels,
        pixels=lambda positions: ParquetPixels(groups, leaf, positions, request.image_shape),
        class_names=class_names,
        fingerprint=digest.hexdigest(),
    )


def _files_of_split(request: Request, names: list[str]) -> list[str]:
    if request.split == "all":
        return names
    split = request.split

    def belongs(name: str) -> bool:
        *folders, last = name.split("/")
        return split in folders or last.startswith((f"{split}-", f"{split}.", f"{split}_"))

    chosen = [name for name in names if belongs(name)]
    if not chosen:
        raise DatasetError(
            f"no .parquet file of split {split!r} below dataset.path {request.path!r}: there are "
            f"{', '.join(names[:5]) or 'none'}; set dataset.split to how their names start, or to "
            '"all"'
        )
    return chosen


def _column(asked: str | None, usual: tuple[str, ...], key: str, columns: list[str]) -> str:
    candidates = [asked] if asked else [name for name in usual if name in columns]
    if not candidates or candidates[0] not in columns:
        what = f"dataset.{key} {asked!r} is no column" if asked else f"dataset.{key} is needed"
        raise DatasetError(f"{what}{nearest(asked or usual[0], columns)}")
    return candidates[0]


def _classes(groups: RowGroups, label: str) -> tuple[tuple[str, ...], Any]:
    """Names of the classes, and the function from a stored label to its class.

    Text labels are classes by sorted name, as in an image folder. Whole numbers are classes as they
    are, named by the Hugging Face metadata; without it there are as many as the largest, which the
    footers' statistics know.
    """
    kind = groups.schema.field(label).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        stored = set(groups.values(label).to_pylist())
        if None in stored:
            raise DatasetError(f"column {label!r} has empty labels: give every row its label")
        names = tuple(sorted(stored))
        return names, {name: k for k, name in enumerate(names)}.__getitem__
    if not pa.types.is_integer(kind):
        raise DatasetError(
            f"column {label!r} is {kind}, not whole numbers or text: set dataset.label_column"
        )
    published = _hugging_face_names(groups.schema, label)
    if published is None:
        largest = groups.largest(label)
        published = tuple(str(k) for k in range(largest + 1))
    return published, lambda value: -1 if value is None else value


def _hugging_face_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _ids(request: Request, groups: RowGroups) -> Ints:
    if request.id_column is None:
        return np.arange(groups.rows, dtype=np.int64)
    column = _column(request.id_column, (), "id_column", groups.schema.names)
    if not pa.types.is_integer(kind := groups.schema.field(column).type):
        raise DatasetError(f"dataset.id_column {column!r} is {kind}: ids are whole numbers from 0")
    stored = groups.values(column)
    if stored.null_count:
        raise DatasetError(f"dataset.id_column {column!r} has empty ids: give every image its own")
    ids = stored.to_numpy().astype(np.int64)
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise DatasetError(
            f"dataset.id_column {column!r} has id {values[counts > 1][0]} twice: ids must be unique"
        )
    return ids
