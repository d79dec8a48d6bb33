"""The speed of a network alone: evaluations per second of each batch size that memory allows."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.engine.memory import example_rows, needed_bytes, out_of_memory

ROUNDS = 3
ROUND_S = 0.4
CONTENDERS = 3  # batch sizes that are measured again
NEARLY = 0.97  # of the best rate: the smallest batch that reaches it is chosen
# Rows at an item's end that only fill batches, in batches; seen on digits:
TAIL_BATCHES = 2.0  # 0.6 of 128 rows, 2.3 of 512
SHORT_TAIL_BATCHES = 0.5  # 0.3 of 512, and the speed of short batches, where there are these


def seconds(device: str) -> float:
    """A clock for what one thread computes, once the device has done what it was given.

    On a CPU these are the CPU seconds of this process: on a quiet machine they pass like wall time,
    and other work on its cores counts less. On a GPU it is wall time.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Forward:
    """The bare network, on its device, at one batch size."""

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


@dataclass(frozen=True)
class Rate:
    """What was measured of one batch size.

    Args:
        batch: rows.
        nfe_per_s: median of some rounds for the fastest, else of one; None where the batch does
            not fit into memory.
        peak_bytes: device memory at its peak, weights included; 0 where it is not known (CPU).
    """

    batch: int
    nfe_per_s: float | None
    peak_bytes: int = 0


def batch_rates(
    denoiser: Denoiser,
    batches: Sequence[int],
    device: str,
    *,
    memory_limit: int | None = None,
    rounds: int = ROUNDS,
    round_s: float = ROUND_S,
    patience: int = 2,
    on_rate: Callable[[Rate], None] = lambda rate: None,
) -> list[Rate]:
    """Evaluations per second at growing batch sizes, until they no longer gain or fit.

    Args:
        denoiser: on ``device``.
        batches: sizes, ascending.
        device: "cpu" or "cuda".
        memory_limit: bytes that the peak may take, weights included; None for what there is.
        rounds: in which the fastest few take turns; the median counts.
        round_s: seconds of a round at least.
        patience: sizes in a row below the best that end the search.
        on_rate: called with the rate of each size, as it is first measured.

    Returns:
        One entry for each size that was tried. Out of memory is a finding, not an error.
    """
    rates: list[Rate] = []
    behind = 0
    for batch in batches:
        rates.append(_rate(denoiser, batch, device, memory_limit, round_s))
        on_rate(rates[-1])
        if rates[-1].nfe_per_s is None:
            break
        behind = 0 if best_rate(rates).batch == batch else behind + 1
        if behind >= patience:
            break
    return _again(denoiser, device, rates, rounds, round_s)


def _again(
    denoiser: Denoiser, device: str, rates: list[Rate], rounds: int, round_s: float
) -> list[Rate]:
    """Measure the fastest few in turn, so that a slow moment of the machine hits all of them."""
    fitting = sorted(rates, key=lambda r: r.nfe_per_s or 0.0)[-CONTENDERS:]
    forwards = [Forward(denoiser, r.batch, device) for r in fitting if r.nfe_per_s is not None]
    again: dict[int, list[float]] = {f.batch: [] for f in forwards}
    for _ in range(rounds):
        for forward in forwards:
            again[forward.batch].append(forward.rate(round_s))
    medians = {batch: statistics.median(values) for batch, values in again.items()}
    return [replace(r, nfe_per_s=medians.get(r.batch, r.nfe_per_s)) for r in rates]


def best_rate(rates: Sequence[Rate]) -> Rate:
    """The fastest.

    Raises:
        ValueError: none fits into memory.
    """
    fitting = [r for r in rates if r.nfe_per_s is not None]
    if not fitting:
        tried = ", ".join(str(r.batch) for r in rates)
        raise ValueError(
            f"no batch fits into memory (tried {tried}): give a larger execution.memory_limit, a "
            "smaller network, or another device"
        )
    return max(fitting, key=lambda r: r.nfe_per_s or 0.0)


def smallest_good_batch(rates: Sequence[Rate], item_s: float, *, short: bool) -> int:
    """The smallest batch nearly as fast as the best, what an item's last batches lose included.

    Args:
        rates: of the network alone; at least one fits.
        item_s: seconds of an item.
        short: whether its last rows may go in short batches (on a CPU, eagerly).
    """
    tail = SHORT_TAIL_BATCHES if short else TAIL_BATCHES
    useful = {
        r.batch: r.nfe_per_s / (1.0 + tail * r.batch / (r.nfe_per_s * item_s))
        for r in rates
        if r.nfe_per_s is not None
    }
    enough = NEARLY * max(useful.values())
    return min(batch for batch, rate in useful.items() if rate >= enough)


def doubling(first: int, last: int) -> Iterator[int]:
    """first, 2 first, 4 first, ... up to last."""
    while first <= last:
        yield first
        first *= 2


def _rate(
    denoiser: Denoiser,
    batch: int,
    device: str,
    memory_limit: int | None,
    round_s: float,
) -> Rate:
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif memory_limit is not None and needed_bytes(denoiser, batch) > memory_limit:
            return Rate(batch, None)
        forward = Forward(denoiser, batch, device)
        forward.evaluate()
        seconds(device)  # an error of a GPU shows here
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        if memory_limit is not None and peak > memory_limit:
            return Rate(batch, None, peak)
        return Rate(batch, forward.rate(round_s), peak)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if device == "cuda":
        torch.cuda.empty_cache()
    return Rate(batch, None)
