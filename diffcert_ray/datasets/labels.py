"""Label maps: from a dataset's classes to the numbers that a network calls them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.errors import DatasetError

Ints = NDArray[np.int64]
LabelMap = Sequence[int] | Mapping[str, int] | str


def class_numbers(
    label_map: LabelMap, class_names: Sequence[str], first_label: int = 0
) -> tuple[Ints, tuple[str, ...]]:
    """What a label map makes of every class of a dataset.

    Args:
        label_map: a list whose entry i is the network's class of the dataset's i-th class; a
            mapping from class name, or label as stored, to the network's class; or the path of a
            text file of lines "WORDNET_ID LABEL NAME" (ImageNet's map_clsloc.txt), for networks
            whose classes are the sorted WordNet ids.
        class_names: the dataset's K classes.
        first_label: what the files call the first class.

    Returns:
        int64 [K], the network's class of each; and names by the network's class.
    """
    if isinstance(label_map, str):
        target, names = _sorted_wordnet_ids(label_map, len(class_names), first_label)
    else:
        target = _explicit(label_map, class_names, first_label)
        names = dict(zip(target.tolist(), class_names, strict=True))
    if target.min() < 0 or len(set(target.tolist())) < len(target):
        values, counts = np.unique(target, return_counts=True)
        bad = values[(counts > 1) | (values < 0)][0]
        raise DatasetError(
            f"dataset.label_map gives class {bad} "
            f"{'to two classes' if bad >= 0 else 'which is negative'}: "
            "every class of the dataset needs a number of its own, from 0"
        )
    count = max(len(class_names), int(target.max()) + 1)
    return target, tuple(names.get(k, str(k)) for k in range(count))


def _explicit(
    label_map: Sequence[int] | Mapping[str, int], class_names: Sequence[str], first_label: int
) -> Ints:
    if not isinstance(label_map, Mapping):
        if len(label_map) != len(class_names):
            raise DatasetError(
                f"dataset.label_map has {len(label_map)} entries, the dataset {len(class_names)} "
                "classes: give one entry for each"
            )
        return np.array([_whole(value) for value in label_map], dtype=np.int64)
    given = {str(key): _whole(value) for key, value in label_map.items()}
    labels = [str(i + first_label) for i in range(len(class_names))]
    by_name = any(name in given for name in class_names)
    keys = list(class_names) if by_name else labels
    missing = [key for key in keys if key not in given]
    unknown = sorted(set(given) - set(keys))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no class"
        raise DatasetError(
            f"dataset.label_map {what}: give each class once, by name ({class_names[0]!r}, ...) or "
            f"by its label as stored ({labels[0]} to {labels[-1]})"
        )
    return np.array([given[key] for key in keys], dtype=np.int64)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DatasetError(f"dataset.label_map has {value!r}: classes are whole numbers from 0")
    return int(value)


def _sorted_wordnet_ids(path: str, classes: int, first_label: int) -> tuple[Ints, dict[int, str]]:
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"dataset.label_map {path!r} cannot be read ({error}): give the path of a "
            "map_clsloc.txt, a list, or a mapping"
        ) from None
    rows = [line.split() for line in lines if line.strip()]
    if any(len(row) < 2 or not row[1].isdigit() for row in rows):
        raise DatasetError(f"dataset.label_map {path!r} is no table of WORDNET_ID LABEL NAME lines")
    rank = {wordnet_id: k for k, wordnet_id in enumerate(sorted({row[0] for row in rows}))}
    numbers = {int(row[1]) - first_label: rank[row[0]] for row in rows}
    if sorted(numbers) != list(range(classes)) or len(rank) != len(rows):
        raise DatasetError(
            f"dataset.label_map {path!r} has {len(rows)} lines, {len(rank)} WordNet ids and "
            f"{len(numbers)} labels: it needs each label from {first_label} to "
            f"{classes - 1 + first_label} once"
        )
    names = {rank[row[0]]: row[2] if len(row) > 2 else row[0] for row in rows}
    return np.array([numbers[k] for k in range(classes)], dtype=np.int64), names
