"""The sigma that the name of a log tells, where it tells one and no other."""

from __future__ import annotations

import re

LARGEST = 4.0
"""A larger number in a name is a percentage, a grey level or a count."""
_NAMED = re.compile(
    r"(?<![a-z])(?P<what>sigma|noise)(?:[-_ ]?(?:sd|std))?[-_=: ]?"
    r"(?P<number>\d+\.\d+|\.\d+|\d+)(?P<more>[a-z0-9,]?)",
    re.IGNORECASE,
)


def sigma_of_name(path: str) -> float | None:
    """The sigma (pixel units) that a log's name or folders tell.

    As in ``cifar10/noise_0.25/test/sigma_0.50``, ``run-sigma-0.5.tsv`` or ``noise_0.5_1682``: the
    innermost part that names one counts, and in it ``sigma`` before ``noise``, which in published
    folders is the noise that a network was trained with.

    Returns:
        None where no part tells one, or where it is ambiguous: two numbers in one part, a noise
        inside of another sigma, or numbers that may be meant otherwise (``sigma_25``,
        ``sigma_025``, ``sigma_0p25``).
    """
    inner: tuple[str, float] | None = None
    for part in reversed(re.split(r"[/\\]", path)):
        found = [_number(match) for match in _NAMED.finditer(part)]
        if not found:
            continue
        if None in found:
            return inner[1] if inner else None
        told = {(each[0].lower(), each[1]) for each in found if each}
        sigmas = {number for what, number in told if what == "sigma"}
        numbers = sigmas or {number for _, number in told}
        if inner is None:
            if len(numbers) != 1:
                return None
            inner = ("sigma" if sigmas else "noise", numbers.pop())
        elif inner[0] == "noise" and numbers != {inner[1]}:
            return None
    return inner[1] if inner else None


def _number(match: re.Match[str]) -> tuple[str, float] | None:
    """What a part names, and its number; None where the number may be meant otherwise."""
    text, number = match["number"], float(match["number"])
    leading_zero = len(text) > 1 and text.startswith("0") and "." not in text
    if match["more"] or leading_zero or not 0 < number <= LARGEST:
        return None
    return match["what"], number
