"""A run on Ray is told to stop: the caller's handler of SIGTERM stays in place."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffcert_ray.pool.on_ray.actors import RayPool
from tests.scripted_workers import Script

pytestmark = [
    pytest.mark.ray,
]


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Signals that the caller's own handler got."""
    found: list[int] = []

    def stop(number: int, frame: object) -> None:
        found.append(number)

    before = signal.signal(signal.SIGTERM, stop)
    yield found
    signal.signal(signal.SIGTERM, before)


def test_sigterm_reaches_the_handler_that_was_there_before_ray(
    received: list[int], tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    pool = RayPool(Script(tmp_path), actors=1)
    try:
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray's own would end this process
        os.kill(os.getpid(), signal.SIGTERM)
        limit = time.monotonic() + 10
        while not received and time.monotonic() < limit:
            pool.collect(0.1)
        assert received == [signal.SIGTERM]
    finally:
        pool.close()
