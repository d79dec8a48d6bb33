"""A stopwatch for the parts of the engine, as its ``Watch``."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffcert_ray.engine.speed import seconds
from diffcert_ray.engine.watch import PARTS


class Stopwatch:
    """A ``Watch`` that adds up seconds by part.

    On a GPU every part waits for the device, which the engine otherwise does not: the sum is then
    more than the engine needs.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure a part."""
        began = seconds(self._device)
        yield
        self.seconds[part] += seconds(self._device) - began
