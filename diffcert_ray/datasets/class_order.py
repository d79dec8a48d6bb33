"""The order of classes that are known by name only: folders, and labels that are text.

Networks that were trained through torchvision's ImageFolder number classes by sorted name, where
"10" comes before "2"; others number them by what the names say. Where the two differ, nothing in
the images tells which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from diffcert_ray.config.tables import NO_MATTER
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
        class_order: "name", "number", NO_MATTER, or None where nothing was said.
        where: what they are the names of, for messages.
        as_listed: a file lists them by its classes, and their order there is the usual one.

    Returns:
        Names by class; and whether that is another order than the usual one, which is that of the
        sorted names where there is no list.

    Raises:
        DatasetError: the orders of names and of numbers differ and none was chosen; or the names
            have no order by number.
    """
    usual = tuple(names) if as_listed else tuple(sorted(names))
    if class_order in ("name", NO_MATTER):
        return usual, False
    by_number, problem = _by_number(usual)
    if class_order == "number":
        if problem:
            raise DatasetError(
                f'dataset.class_order is "number", but {where} have none: {problem}; set it to '
                '"name", or name each class\'s number by dataset.label_map'
            )
        return by_number, by_number != usual
    if not _numbers_say_otherwise(usual):
        return usual, False
    shown = f"{'as listed' if as_listed else 'by name'} {mapping_shown(usual)}"
    if not problem:
        shown += f"; by number {mapping_shown(by_number)}"
    raise DatasetError(
        f"{where} are named by numbers, and their order as names is another than as numbers: "
        f'{shown}. Set dataset.class_order = "name" for a network that was trained through '
        'torchvision\'s ImageFolder or on sorted names, "number" for one whose class is the number '
        "in the name, or name each class's number by dataset.label_map"
    )


def mapping_shown(names: Sequence[str]) -> str:
    """The classes by their numbers, in a line: ``0 = ant, 1 = bee``; of many the first and last."""
    shown = [f"{k} = {name}" for k, name in enumerate(names)]
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN - 1], "...", shown[-1]]
    return ", ".join(shown)


def padding_notes(names: Sequence[str], classes: int | None, where: str) -> list[str]:
    """What to know of names that are those of some of a network's classes.

    Args:
        names: by class.
        classes: how many the network has, None where that is the number of names.
        where: what they are the names of.

    Returns:
        Sentences: that they are taken as its first classes.

    Raises:
        DatasetError: the names are numbers of other classes than those.
    """
    if classes is None or classes <= len(names):
        return []
    numbers = [int(name) if name.isdecimal() else -1 for name in names]
    if numbers == list(range(len(names))):
        return []
    taken = (
        f"dataset.num_classes is {classes}, and {where} are {len(names)}, from {names[0]!r} to "
        f"{names[-1]!r}: they are taken as the network's classes 0 to {len(names) - 1}; if they "
        "are others of its classes, say which by dataset.label_map"
    )
    if min(numbers) < 0:
        return [taken]
    raise DatasetError(f'{taken}, as in {{"{names[0]}" = {numbers[0]}, ...}}')


def _numbers_say_otherwise(names: Sequence[str]) -> bool:
    """Whether numbers tell most of the names apart, and have another order than these.

    Names that are numbers, whatever else there is; or more than half of all that begin alike, up to
    their first digit: class_1, 1_cat, 10-19 years.
    """
    plain = [name for name in names if _NUMBER.fullmatch(name)]
    if len(plain) > 1 and sorted(plain, key=float) != plain:
        return True
    alike: dict[str, list[str]] = {}
    for name in names:
        if _DIGITS.search(name):
            alike.setdefault(_DIGITS.split(name, maxsplit=1)[0], []).append(name)
    most = max(alike.values(), key=len, default=[])
    return 2 * len(most) > len(names) and sorted(most, key=_natural) != most


def _by_number(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Names by their numbers; and why they have no such order, or ""."""
    if without := [name for name in names if not _DIGITS.search(name)]:
        return tuple(names), f"there is none in {without[0]!r}"
    all_plain = all(_NUMBER.fullmatch(name) for name in names)
    keys: dict[Any, str] = {}
    for name in names:
        key = float(name) if all_plain else _natural(name)
        if (first := keys.setdefault(key, name)) != name:
            return tuple(names), f"{first!r} and {name!r} are one number"
    return tuple(keys[key] for key in sorted(keys)), ""


def _natural(name: str) -> tuple[Any, ...]:
    """Texts and numbers in turn: "class_10" is ("class_", 10, "")."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if k % 2 else part for k, part in enumerate(parts))
