"""Parquet with a column of images, local or on an object store, read by row group when asked.

What is read at once: the footer of every file, the label of every chosen image, and all ids where
there is an id column. Pixels come one row group at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.parquet_files import RowGroups, open_row_groups
from diffcert_ray.datasets.parquet_images import (
    ImageLeaves,
    ReadAs,
    content_pixels,
    encoded_pixels,
    file_of_path,
    image_leaves,
)
from diffcert_ray.datasets.parquet_labels import read_labels
from diffcert_ray.datasets.pixels import UndecodableError, first_shape
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.datasets.stray_files import is_beside_a_table, is_stray_image
from diffcert_ray.errors import DatasetError, nearest

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


class ParquetPixels:
    """Images that are read by row group when asked for.

    Args:
        groups: where they are.
        leaves: the columns that hold them, for each file.
        rows: int64 [N], the row of each position in the split.
        read_as: how they are read; without a shape they are as the first readable image is.
    """

    def __init__(
        self, groups: RowGroups, leaves: tuple[ImageLeaves, ...], rows: Ints, read_as: ReadAs
    ) -> None:
        self.groups = groups
        self._leaves, self._rows, self._read_as = leaves, rows, read_as

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self._rows), *(self._read_as.image_shape or first_shape(self, len(self))))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int, /) -> NDArray[Any]:
        row = int(self._rows[position])
        group, offset = self.groups.locate(row)
        leaves = self._leaves[self._file(row)]
        content, path = leaves.of(self.groups.read(group, leaves.columns), offset)
        try:
            if is_stray_image(path):
                raise UndecodableError(
                    "a program left it behind, and it is no image of the dataset: remove its row"
                )
            if content is not None:
                return content_pixels(content, self._read_as)
            return self._of_path(row, path, alone=leaves.content is None)
        except UndecodableError as error:
            named = f" ({path!r})" if path else ""
            raise UndecodableError(f"{self.groups.place(row)}{named}: {error}") from None

    def _of_path(self, row: int, path: str, *, alone: bool) -> NDArray[Any]:
        """The image in the file that a row names.

        Args:
            row: in the split.
            path: that it gives.
            alone: whether all images are given so; else a file that is missing is the image's
                fault, and not the disk's.
        """
        if not path:
            raise UndecodableError("there are no bytes in its row")
        files, own = self.groups.files, self.groups.file_names[self._file(row)]
        if own == files.address:  # a single file: what lies beside it
            files = DataFiles(os.path.dirname(own) or ".", files.storage_options)
            own = os.path.basename(own)
        name = file_of_path(path, files, os.path.dirname(own))
        if not alone and not files.exists(name):
            raise UndecodableError("there are no bytes in its row, and no such file")
        return encoded_pixels(files.read(name), self._read_as)

    def _file(self, row: int) -> int:
        return int(self.groups.files_of(np.array([row]))[0])


def read_parquet(request: Request) -> Split:
    """Parquet files with a column of images; image_id is the row in the split, or the id column's.

    A split is every file whose name starts with it ("test-00000-of-00001.parquet") or that is in a
    folder of its name, in the order of their names; "all" is every file. Hidden files are none of
    it. An image is a PNG or JPEG (bytes, the Hugging Face struct of bytes and path, or the path of
    a file below dataset.path) or nested lists of numbers. The fingerprint rests on the files'
    names, sizes and footers (which hold row counts, offsets and statistics), so that no pixels
    need be read for it. The path is a .parquet file, or a folder or fsspec address of such files.

    Raises:
        DatasetError: no such files or columns, or columns of another type.
        OSError: the store cannot be read.
    """
    files = request.files()
    groups, notes = _row_groups(request, files)
    columns = groups.schema.names
    image = _column(request.image_column, IMAGE_COLUMNS, "image_column", columns)
    label = _column(request.label_column, LABEL_COLUMNS, "label_column", columns)
    used = {image, label, *([request.id_column] if request.id_column in columns else ())}
    notes += groups.differing_columns(used)
    leaves = tuple(image_leaves(schema.field(image)) for schema in groups.schemas)
    labels = read_labels(groups, label, request.class_order)
    ids = _ids(request, groups)[labels.kept]
    digest = hashlib.sha256(f"parquet {request.split} {image} {label}".encode())
    digest.update(f" {request.id_column} {request.image_shape} {groups.identity}".encode())
    digest.update(request.background_identity)
    read_as = ReadAs(request.image_shape, request.background, request.resized)
    if labels.moved:  # classes in another order than the usual one
        digest.update(json.dumps(labels.moved).encode())

    def pixels(positions: Ints) -> ParquetPixels:
        return ParquetPixels(groups, leaves, labels.kept[positions], read_as)

    return Split(
        ids=ids,
        labels=lambda positions: labels.of(labels.kept[positions]),
        pixels=pixels,
        class_names=labels.names,
        fingerprint=digest.hexdigest(),
        notes=(*labels.notes, *notes),
        names_said=labels.said,
        mapping=labels.mapping,
    )


def _row_groups(request: Request, files: DataFiles) -> tuple[RowGroups, list[str]]:
    """The split's files, and notes about those that were left out."""
    everything = files.sizes("")
    if list(everything) == [""]:
        return open_row_groups(files, everything), []
    tables = {name: size for name, size in everything.items() if name.endswith(".parquet")}
    stray = [name for name in tables if is_beside_a_table(name)]
    names = _files_of_split(request, [name for name in tables if name not in stray])
    notes = []
    if stray:
        notes.append(
            f"{len(stray)} .parquet files are hidden, or what programs leave behind, and are not "
            f"read ({', '.join(stray[:3])}{', ...' if len(stray) > 3 else ''})"
        )
    return open_row_groups(files, {name: tables[name] for name in names}), notes


def _files_of_split(request: Request, names: list[str]) -> list[str]:
    if request.split == "all":
        return names
    split = request.split

    def belongs(name: str) -> bool:
        *folders, last = name.split("/")
        of_split = {split, f"{split}.parquet", f"split={split}"}
        return not of_split.isdisjoint(folders) or last.startswith(
            (f"{split}-", f"{split}.", f"{split}_")
        )

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


def _ids(request: Request, groups: RowGroups) -> Ints:
    if request.id_column is None:
        return np.arange(groups.rows, dtype=np.int64)
    column = _column(request.id_column, (), "id_column", groups.schema.names)
    if not pa.types.is_integer(kind := groups.schema.field(column).type):
        raise DatasetError(f"dataset.id_column {column!r} is {kind}: ids are whole numbers from 0")
    stored = groups.values(column)
    if stored.null_count:
        raise DatasetError(f"dataset.id_column {column!r} has empty ids: give every image its own")
    ids: Ints = stored.to_numpy().astype(np.int64)
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise DatasetError(
            f"dataset.id_column {column!r} has id {values[counts > 1][0]} twice: ids must be unique"
        )
    return ids
