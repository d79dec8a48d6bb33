"""The labels of Parquet files as classes: text, categories, truth values, numbers, ClassLabels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.datasets.class_order import mapping_shown, ordered_classes
from diffcert_ray.datasets.parquet_files import RowGroups
from diffcert_ray.datasets.stray_files import is_stray
from diffcert_ray.errors import DatasetError

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a column says of classes.

    Attributes:
        groups, column: where the labels are.
        names: by class.
        tables: a table for each file from what is stored (a text, or a number from 0) to a class;
            None: the number is the class.
        kept: int64, the rows that are images; others are labelled by a stray folder's name.
        moved: names by class, where another order was chosen than the usual one; else empty.
        notes: sentences about them.
        said: what the names are names of, where files know classes by name only; else "".
        mapping: their numbers in a line, there.
    """

    groups: RowGroups
    column: str
    names: tuple[str, ...]
    tables: tuple[dict[Any, int], ...] | None
    kept: Ints
    moved: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    said: str = ""
    mapping: str = ""

    def of(self, rows: Ints) -> Ints:
        """Classes of rows, int64; -1 where none is stored, or one beyond the names."""
        stored = _plain(self.groups.values(self.column, rows), self.column)
        if self.tables is None:
            return np.array([-1 if v is None else v for v in stored], dtype=np.int64)
        files = self.groups.files_of(rows).tolist()
        found = [
            self.tables[f][v] if v in self.tables[f] else _beyond(v, len(self.names))
            for f, v in zip(files, stored, strict=True)
        ]
        return np.array(found, dtype=np.int64)


def read_labels(groups: RowGroups, column: str, class_order: str | None) -> Labels:
    """Classes of a column.

    Text and categories are classes by sorted name or by number, as in an image folder. Whole
    numbers are classes as they are, named by the Hugging Face metadata, file by file; without it
    there are as many as the largest, which the footers' statistics know. Truth values are 0 and 1.

    Raises:
        DatasetError: a column of another type, or of several; rows without a label; names that
            differ between files; an order that must be said.
    """
    kinds = {_kind(kind) for kind in groups.types(column)}
    where = f"the labels in column {column!r}"
    if kinds == {"text"}:
        return _of_text(groups, column, class_order, where)
    if "text" in kinds or not kinds <= {"whole", "float", "truth"}:
        found = ", ".join(sorted({str(kind) for kind in groups.types(column)}))
        raise DatasetError(
            f"column {column!r} is {found}, not whole numbers or text: set dataset.label_column, "
            "or store one label a row, of the same kind in every file"
        )
    published = [_hugging_face_names(schema, column) for schema in groups.schemas]
    if any(published):
        return _of_published(groups, column, class_order, published)
    if class_order == "name":
        raise DatasetError(
            f'dataset.class_order = "name" means nothing to {where}, which are numbers without '
            "names: remove it, or say by dataset.label_map which class each number is"
        )
    rows = np.arange(groups.rows)
    if kinds == {"truth"}:
        names: tuple[str, ...] = ("False", "True")
    else:
        names = tuple(str(k) for k in range(_largest(groups, column) + 1))
    return Labels(groups, column, names, None, rows)


def _of_text(groups: RowGroups, column: str, class_order: str | None, where: str) -> Labels:
    stored = _plain(groups.values(column), column)
    if None in stored or "" in stored:
        raise DatasetError(f"column {column!r} has empty labels: give every row its label")
    found = set(stored)
    stray = sorted(name for name in found if is_stray(name))
    names, moved = ordered_classes(found - set(stray), class_order, where)
    if not names:
        raise DatasetError(f"{where} name no class: give every row its label")
    table = {name: k for k, name in enumerate(names)}
    kept = np.flatnonzero([name in table for name in stored]).astype(np.int64)
    notes = tuple(_left_out(where, stray, len(stored) - len(kept)))
    tables = tuple(table for _ in groups.schemas)
    told = f"{where}: {mapping_shown(names)}"
    return Labels(groups, column, names, tables, kept, names if moved else (), notes, where, told)


def _of_published(
    groups: RowGroups,
    column: str,
    class_order: str | None,
    published: Sequence[tuple[str, ...] | None],
) -> Labels:
    """Numbers that the Hugging Face metadata of their file names."""
    where = f"the classes in the metadata of column {column!r}"
    first = next(names for names in published if names)
    for file, names in zip(groups.file_names, published, strict=True):
        if names is None or sorted(names) != sorted(first):
            given = "no names" if names is None else f"{len(names)} names"
            theirs = sorted(set(names or ()) ^ set(first))
            raise DatasetError(
                f"{file} has {given} of the classes of column {column!r}, and others than another "
                f"file of the split, which has {len(first)}"
                + (f" ({', '.join(map(repr, theirs[:5]))} in one only)" if names else "")
                + ": a number does not mean the same class in both; write them again with one "
                "list of names, or give dataset.path the files of one dataset only"
            )
    stray = [name for name in first if is_stray(name)]
    plain = tuple(name for name in first if name not in stray)
    if len(set(plain)) < len(plain):  # cannot be told apart by name
        if any(names != first for names in published):
            raise DatasetError(f"{where} have one name twice, and another order in another file")
        return Labels(groups, column, first, None, np.arange(groups.rows))
    names, moved = ordered_classes(plain, class_order, where, as_listed=True)
    number = {name: k for k, name in enumerate(names)}
    tables = tuple(
        {k: number.get(name, -1) for k, name in enumerate(of_file or ())} for of_file in published
    )
    notes = [f"{where}: {mapping_shown(names)}"] if moved or stray else []
    if others := sum(of_file != first for of_file in published):
        notes.append(
            f"{others} of {len(published)} files name their classes in another order than "
            f"{groups.file_names[0]}: their labels are taken by name; {mapping_shown(names)}"
        )
    kept = np.arange(groups.rows)
    if stray:
        stored = _plain(groups.values(column), column)
        files = groups.files_of(kept).tolist()
        keep = [(published[f] or first)[v] not in stray if v is not None and 0 <= v < len(first)
                else True for f, v in zip(files, stored, strict=True)]  # fmt: skip
        kept = kept[np.array(keep, dtype=bool)]
        notes += _left_out(where, stray, groups.rows - len(kept))
    as_stored = not stray and not moved and all(of_file == first for of_file in published)
    return Labels(
        groups,
        column,
        names,
        None if as_stored else tables,
        kept,
        names if moved else (),
        tuple(notes),
    )


def _left_out(where: str, stray: Sequence[str], rows: int) -> list[str]:
    if not stray:
        return []
    return [
        f"{where} have {', '.join(map(repr, stray))}, which programs leave behind and which is no "
        f"class: {rows} rows are left out"
    ]


def _beyond(value: Any, classes: int) -> int:
    """A number that no table knows stays no class: it is refused by its image's id."""
    return -1 if value is None or value < 0 else max(int(value), classes)


def _largest(groups: RowGroups, column: str) -> int:
    if any(pa.types.is_dictionary(kind) for kind in groups.types(column)):
        stored = [v for v in _plain(groups.values(column), column) if v is not None]
        return max(stored, default=-1)
    return int(groups.largest(column))


def _kind(kind: Any) -> str:
    """What labels of an Arrow type are: text, whole, float, truth; or the type's own name."""
    if str(kind) == "string_view":  # of newer Arrow
        return "text"
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    for name, belongs in (
        ("text", (pa.types.is_string, pa.types.is_large_string)),
        ("text", (pa.types.is_binary, pa.types.is_large_binary)),
        ("whole", (pa.types.is_integer,)),
        ("float", (pa.types.is_floating,)),
        ("truth", (pa.types.is_boolean,)),
    ):
        if any(is_kind(kind) for is_kind in belongs):
            return name
    return str(kind)


def _plain(stored: Any, column: str) -> list[Any]:
    """Stored labels as Python's texts, whole numbers and None."""
    values = stored.to_pylist()
    for k, value in enumerate(values):
        if isinstance(value, bytes):
            values[k] = value.decode("utf-8", "replace")
        elif isinstance(value, float):
            if value != value:  # what pandas makes of a row without a label
                values[k] = None
                continue
            if value % 1:
                raise DatasetError(
                    f"column {column!r} has {value}, which is no class: labels are whole numbers "
                    "or text; set dataset.label_column"
                )
            values[k] = int(value)
        elif isinstance(value, bool):
            values[k] = int(value)
    return values


def _hugging_face_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None
