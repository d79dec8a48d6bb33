"""The bare network, timed: evaluations per second of one batch size."""

import time

import torch
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser


def seconds(device: str) -> float:
    """A clock for what one thread computes, once the device has done what it was given.

    On a CPU these are the CPU seconds of this process: on a quiet machine they pass like wall time,
    and other work on its cores counts less. On a GPU it is wall time.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def example_rows(denoiser: Denoiser, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [B, C, H, W] at levels [B] inside the network's range, and classes [B].

    The values matter to no time, as long as they are no denormal numbers.

    Args:
        denoiser: whose shape, range and classes count.
        batch: rows B.
        device: where they are made.
    """
    low, high = denoiser.s_range
    s = torch.linspace(max(0.1, low), min(3.0, high), batch, device=device)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, *denoiser.image_shape, generator=generator).to(device)
    y = torch.arange(batch, device=device) % max(1, denoiser.num_classes)
    return u * s[:, None, None, None], s, y if denoiser.num_classes else y - 1


class Forward:
    """The bare network at one batch size.

    Args:
        denoiser: on ``device``.
        batch: rows.
        device: "cpu" or "cuda".
    """

    def __init__(self, denoiser: Denoiser, batch: int, device: str) -> None:
        self._denoiser, self.batch, self._device = denoiser, batch, device
        self._rows = example_rows(denoiser, batch, device)

    def evaluate(self) -> None:
        """Evaluate the batch; the first time warms up, and compiles."""
        with torch.inference_mode():
            self._denoiser(*self._rows)

    def rate(self, at_least_s: float) -> float:
        """Evaluations per second, over evaluations that take at least so many seconds in all."""
        began, rows, evaluations = seconds(self._device), 0, 1
        while True:
            for _ in range(evaluations):  # on a GPU one wait for the device, not one for each
                self.evaluate()
            rows += evaluations * self.batch
            spent = seconds(self._device) - began
            if spent >= at_least_s:
                return rows / max(spent, 1e-9)
            evaluations = min(2 * evaluations, 64)
