"""What smoothing noise on a grid costs: its share of the engine's time, against float32 noise.

    OMP_NUM_THREADS=1 python jobs/noise_cost.py [--votes 200] [--rounds 7]

One image of the digits, one thread, CPU seconds; their diffusion network (apndc), and a small
classifier (`classify`, one evaluation a vote, random weights). Every round casts the votes with the
engine, then makes their smoothing noise again, in two ways: as whole steps of the grid from 64-bit
uniforms (``NoiseSource.steps``), and the same count of float32 numbers from 32-bit ones
(``NoiseSource.normal``), which is how method version 1 made it. The medians are printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from diffcert_ray import Classifier, load_dataset
from diffcert_ray.checkpoints.image_classifier import digits_convnet
from diffcert_ray.conventions import STREAM_NAMES
from diffcert_ray.method.noise import NoiseSource

SIGMA, STREAM = 0.25, "estimate"


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of this process during a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def per_vote(classifier: Classifier, votes: int, rounds: int) -> tuple[float, float, float]:
    """CPU seconds of one vote, medians of the rounds: engine, noise on the grid, float32 noise."""
    image = load_dataset("digits").image(9)
    source = NoiseSource(0, SIGMA, image.size)
    vote = np.arange(votes)
    address = (np.full(votes, 9), np.full(votes, STREAM_NAMES.index(STREAM)), vote)
    calls: tuple[Callable[[], object], ...] = (
        lambda: classifier.votes(image, 9, STREAM, 0, votes),
        lambda: source.steps(*address),
        lambda: source.normal(*address),
    )
    for call in calls:
        call()
    times = [[cpu_seconds(call) / votes for call in calls] for _ in range(rounds)]
    engine, grid, float32 = map(statistics.median, zip(*times, strict=True))
    return engine, grid, float32


def main(arguments: list[str]) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--votes", type=int, default=200, help="per round; of classify 20 times")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = digits_convnet()
    for classifier, votes in (
        (Classifier("digits", sigma=SIGMA), options.votes),
        (Classifier(None, sigma=SIGMA, method="classify", classifier=network), 20 * options.votes),
    ):
        engine, grid, float32 = per_vote(classifier, votes, options.rounds)
        print(f"engine: {1e6 * engine:.0f} us of CPU per vote, {votes} votes")
        for name, noise in (("float32", float32), ("on the grid", grid)):
            share = noise / (engine - grid + noise)
            print(f"  smoothing noise {name}: {1e6 * noise:.1f} us per vote, {100 * share:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
