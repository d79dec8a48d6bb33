"""The lines of the log, for people and machines: time, level, module, run, then the message.

The messages of this package name an event and then key=value pairs; a run is its votes_id, which
``run.toml`` and ``diffcert status`` show.
"""

import logging
from datetime import UTC, datetime
from typing import TextIO

from diffcert_ray.errors import nearest

NO_RUN = "-"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class LogLines(logging.Formatter):
    """One line a record; ``run`` is what the lines name as their run."""

    def __init__(self) -> None:
        super().__init__()
        self.run = NO_RUN

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a traceback follows it."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = " ".join(record.getMessage().splitlines())
        line = f"{time} {record.levelname} {record.name} run={self.run} {event}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def log_to(stream: TextIO, *, level: str = "WARNING", all_libraries: bool = False) -> LogLines:
    """Write this process's log to a stream, and no longer to the one of an earlier call.

    Args:
        stream: where to.
        level: the least level of this package's lines; of other packages WARNING at least.
        all_libraries: take other packages' lines from the same level on.

    Returns:
        The format of the lines; set its ``run`` once that is known.
    """
    if level not in logging.getLevelNamesMapping():
        raise ValueError(f"log level {level!r} is unknown{nearest(level, LEVELS)}")
    lines = LogLines()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(lines)
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h.formatter, LogLines)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level if all_libraries else "WARNING")
    logging.getLogger("diffcert_ray").setLevel(level)
    return lines


def name_run(run: str) -> None:
    """Name a run in the lines of this process from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LogLines):
            handler.formatter.run = run
