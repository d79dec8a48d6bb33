"""The times that logs of certificates give: as Python prints them, as clocks do, or in seconds."""

from __future__ import annotations

import math
import re

_CLOCK = re.compile(
    r"(?:(?P<d>\d+) days?,? +)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+(?:\.\d*)?)", re.IGNORECASE
)
_PLAIN = re.compile(r"(?P<n>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_SECONDS = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
}


def seconds_of(text: str) -> float:
    """A time in seconds: ``1 day, 0:01:44.3``, ``0:01:44.3``, ``01:44``, ``104.3``, ``1.7 min``.

    Args:
        text: a cell; a number without a unit is seconds.

    Returns:
        Seconds, or NaN where it is no time.
    """
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(clock[part] or 0) for part in "dhms")
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    plain = _PLAIN.fullmatch(text)
    if plain and plain["unit"].lower() in _SECONDS:
        return float(plain["n"]) * _SECONDS[plain["unit"].lower()]
    return math.nan
