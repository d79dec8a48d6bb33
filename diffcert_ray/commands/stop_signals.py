"""Stopping a run by signal: SIGINT and SIGTERM once to store and stop, twice to stop at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffcert_ray.commands.screen import err


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """A list that fills at the first SIGINT or SIGTERM; the second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        err.print("stopping: storing what has come back (again: stop at once)")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
