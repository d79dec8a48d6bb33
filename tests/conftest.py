"""Settings of every test process: one torch thread, Ray without tokens, no usage reports."""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # At Ray's own niceness of 15 a busy machine starves its workers, and tests time out.
        "RAY_worker_niceness": "0",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork go first: a process that has used Ray has threads, and its forks may hang."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Handlers that a command adds write to a stream that is closed after its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
