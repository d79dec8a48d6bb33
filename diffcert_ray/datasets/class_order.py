"""The order of classes that are known by name only: folders, and labels that are text.

Networks that were trained through torchvision's ImageFolder number classes by sorted name, where
"10" comes before "2"; others number them by what the names say. Where the two differ, nothing in
the images tells which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from diffcert_ray.errors import DatasetError

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_DIGITS = re.compile(r"(\d+)")
SHOWN = 12


def ordered_classes(
    names: Collection[str], class_order: str | None, where: str, *, as_listed: bool = False
) -> tuple[tuple[str, ...], bool]:
    """Names in the order of their classes.

    Args:
        names: all of them, each once.
        class_order: "name", "number", or None where nothing was said.
        where: what they are the names of, for messages.
        as_listed: a file lists them by its classes, and their order there is the usual one.

    Returns:
        Names by class; and whether that is another order than the usual one, which is that of the
        sorted names where there is no list.

    Raises:
        DatasetError: the orders of names and of numbers differ and none was chosen; or the names
            have no order by number.
    """
    by_name = tuple(names) if as_listed else tuple(sorted(names))
    if class_order == "name":
        return by_name, False
    by_number, problem = _by_number(by_name)
    if class_order == "number":
        if problem:
            raise DatasetError(
                f'dataset.class_order is "number", but {where} have none: {problem}; set it to '
                '"name", or name each class\'s number by dataset.label_map'
            )
        return by_number, by_number != by_name
    if by_number == by_name or not _numbered(by_name):
        return by_name, False
    shown = f"{'as listed' if as_listed else 'by name'} {mapping_shown(by_name)}"
    if not problem:
        shown += f"; by number {mapping_shown(by_number)}"
    raise DatasetError(
        f"{where} are named by numbers, and their order as names is another than as numbers: "
        f'{shown}. Set dataset.class_order = "name" for a network that was trained through '
        'torchvision\'s ImageFolder or on sorted names, "number" for one whose class is the number '
        "in the name"
    )


def mapping_shown(names: Sequence[str]) -> str:
    """The classes by their numbers, in a line: ``0 = ant, 1 = bee``; of many the first and last."""
    shown = [f"{k} = {name}" for k, name in enumerate(names)]
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN - 1], "...", shown[-1]]
    return ", ".join(shown)


def check_padding(names: Sequence[str], classes: int | None, where: str) -> None:
    """Refuse names that are numbers of classes, but of others than those that they would get.

    Args:
        names: by class.
        classes: how many the network has, None where that is the number of names.
        where: what they are the names of.

    Raises:
        DatasetError: the network has more classes, and the names say which of them these are.
    """
    if classes is None or classes <= len(names) or not all(name.isdecimal() for name in names):
        return
    numbers = [int(name) for name in names]
    if numbers != list(range(len(names))):
        given = ", ".join(f'"{name}" = {int(name)}' for name in names[:3])
        raise DatasetError(
            f"dataset.num_classes is {classes}, {where} are {len(names)}, from {names[0]} to "
            f"{names[-1]}: they would be the network's classes 0 to {len(names) - 1}; say which "
            f"they are by dataset.label_map, as in {{{given}{', ...' if len(names) > 3 else ''}}}"
        )


def _numbered(names: Sequence[str]) -> bool:
    """Whether numbers tell the names apart: they are numbers, or follow one and the same text."""
    if sum(_NUMBER.fullmatch(name) is not None for name in names) > 1:
        return True
    starts = {_DIGITS.split(name, maxsplit=1)[0] for name in names}
    return len(names) > 1 and len(starts) == 1 and all(_DIGITS.search(name) for name in names)


def _by_number(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Names by their numbers; and why they have no such order, or ""."""
    plain = [name for name in names if _NUMBER.fullmatch(name)]
    if len(plain) == len(names):
        numbers: dict[Any, str] = {}
        for name in names:
            if (first := numbers.setdefault(float(name), name)) != name:
                return tuple(names), f"{first!r} and {name!r} are one number"
        return tuple(numbers[number] for number in sorted(numbers)), ""
    without = [name for name in names if not _DIGITS.search(name)]
    if without:  # those first that have a number, so that a difference between these is seen
        others = [name for name in names if name not in plain]
        ordered = (*sorted(plain, key=float), *others)
        same = [n for n in ordered if n in plain] == [n for n in names if n in plain]
        return tuple(names) if same else ordered, f"there is none in {without[0]!r}"
    keys: dict[Any, str] = {}
    for name in names:
        if (first := keys.setdefault(_natural(name), name)) != name:
            return tuple(names), f"{first!r} and {name!r} have the same"
    return tuple(keys[key] for key in sorted(keys)), ""


def _natural(name: str) -> tuple[Any, ...]:
    """Texts and numbers in turn: "class_10" is ("class_", 10, "")."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if k % 2 else part for k, part in enumerate(parts))
