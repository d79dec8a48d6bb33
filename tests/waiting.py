"""Waiting for a condition, and not longer than a test may."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], limit_s: float, every_s: float = 0.01) -> None:
    """Ask again and again until the answer is yes."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every_s)
