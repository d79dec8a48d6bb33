"""Every error of its own that this package raises; each message names value, limit and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ConfigError(ValueError):
    """The configuration is wrong; the message names key, value, limit and remedy."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, not the expected one, or not safe to read."""


class DatasetError(ValueError):
    """A dataset, or a file of it, that cannot be used; the message names it and the remedy."""


class CorruptImageError(DatasetError):
    """One image that cannot be decoded or is unlike the others; the message names its id."""


class PixelsError(DatasetError):
    """Pixels that are not in [0, 1], or whose axes are not C x H x W; never skipped as corrupt."""


class VotesError(ValueError):
    """Counts that must not be certified the way they were asked to be."""


class LogError(ValueError):
    """A file that is no log of certificates; the message names the line and the remedy."""


class StoreError(Exception):
    """A store that cannot be written or trusted; the message names the file and the remedy."""


class TrainingError(RuntimeError):
    """A training that cannot go on; the message names the step and the remedy."""


class PoolError(RuntimeError):
    """No worker can be had, or a worker's failure that trying again cannot mend."""


def nearest(name: str, known: Iterable[str], introduced: str = "known are") -> str:
    """The end of a message about an unknown name: ": did you mean 'x'? known are x, y"."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    return f"{hint} {introduced} {', '.join(known)}"


def explained(error: ValidationError) -> str:
    """What is wrong with a configuration, in one line: each setting, its value and the reason."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        given = (
            f" is {str(problem['input'])[:60]!r}" if where and problem["type"] != "missing" else ""
        )
        lines.append(f"{where}{given}: {problem['msg']}" if where else problem["msg"])
    return "; ".join(lines)
