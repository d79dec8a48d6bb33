"""The one error for a checkpoint that cannot be used."""

from __future__ import annotations

from pydantic import ValidationError


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, not the expected one, or not safe to read."""


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
