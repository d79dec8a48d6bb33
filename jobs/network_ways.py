"""The bare network each way that a CPU can evaluate it, in alternating rounds.

    OMP_NUM_THREADS=1 python jobs/network_ways.py [--scale digits] [--batch 256] [--rounds 60]

One process, one thread, a network with random weights. The ways: `eager`; `channels_last`
(numerics.channels_last); `compiled` (numerics.compile), unless --no-compile; and `filled`, which is
eager with NaN written to new memory first, torch's own setting where algorithms are deterministic.
Every round times all ways in turn, so that a noisy machine is noisy for all; what is printed of the
ratios to `eager` is the median round, and the quartiles around it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import compile_denoiser, keep_channels_last, set_up_torch
from diffcert_ray.engine.speed import Forward, seconds
from diffcert_ray.tools.scales import SCALES, random_network


def fill_memory(on: bool) -> None:
    """Whether torch writes NaN to new memory."""
    torch.utils.deterministic.fill_uninitialized_memory = on  # type: ignore[attr-defined]


def as_it_is(denoiser: Denoiser) -> None:
    """Change nothing."""


def ways(scale: str, batch: int, *, compiled: bool) -> dict[str, Callable[[], None]]:
    """One evaluation of a batch, by the way's name."""

    def network(change: Callable[[Denoiser], None]) -> Callable[[], None]:
        denoiser = random_network(scale, "cpu")
        change(denoiser)
        return Forward(denoiser, batch, "cpu").evaluate

    eager = network(as_it_is)

    def filled() -> None:
        fill_memory(True)
        eager()
        fill_memory(False)

    found = {"eager": eager, "channels_last": network(keep_channels_last), "filled": filled}
    if compiled:
        found["compiled"] = network(compile_denoiser)
    return found


def round_seconds(
    evaluate: dict[str, Callable[[], None]], evaluations: int, backwards: bool
) -> dict[str, float]:
    """CPU seconds of so many evaluations each way."""
    found = {}
    for way in sorted(evaluate, reverse=backwards):
        began = seconds("cpu")
        for _ in range(evaluations):
            evaluate[way]()
        found[way] = seconds("cpu") - began
    return found


def table(rounds: list[dict[str, float]], rows: int) -> str:
    """A line for each way: median rate, and its ratio to eager (quartiles of the rounds)."""
    lines = []
    for way in rounds[0]:
        ratios = [r["eager"] / r[way] for r in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = rows / statistics.median(r[way] for r in rounds)
        lines.append(
            f"{way:14s} {rate:10,.3g} NFE/s   {middle:.3f} times eager ({low:.3f} to {high:.3f})"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", default="digits", choices=tuple(SCALES))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=60, help="at least 2")
    parser.add_argument("--evaluations", type=int, default=4, help="of each way in a round")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled network")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}: at least 2 make quartiles")
    set_up_torch()
    evaluate = ways(options.scale, options.batch, compiled=not options.no_compile)
    for once in evaluate.values():  # warm up, and compile
        once()
    rounds = [
        round_seconds(evaluate, options.evaluations, backwards=bool(i % 2))
        for i in range(options.rounds)
    ]
    print(table(rounds, options.batch * options.evaluations))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
