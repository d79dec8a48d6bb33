"""What a certified image costs here, against the way of the paper's released code.

    python jobs/reference_cost.py [--images 6] [--votes 20] [--sequential-images 20]

One process, one thread, the shipped digits network, sigma 0.25, n0 = 100. Measured in turns
(reference, ours, reference, ours ...), so that a noisy machine is noisy for all:

- the reference's way: every vote evaluates one denoising step and then, one class after another,
  a batch of all noise levels of the paper's grid (T' = 126: 1241 evaluations). Timed on a few votes
  (a third of --votes in each of three to five rounds) and multiplied by n0 + n: 1.4 million and
  12.5 million evaluations an image would take half an hour and half a day;
- ours, fixed n = 1000: preset `digits`, complete runs of --images images through `certify`;
- ours, `sequential` for r = 0.5 and 0.25 with at most 10,000 votes and selection that stops,
  against fixed n = 10,000 the reference's way, on --sequential-images images.

Beside these ratios, two that are stricter: the reference's way with as many votes as ours took, and
with the smallest fixed n whose unanimous votes reach the radius.

Ours is measured eager and, unless --eager-only, with `numerics.compile`; loading and compiling are
not counted. Seconds are of this process's CPU time, wall time beside it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffcert_ray import certify
from diffcert_ray.certificates.radius import certificate
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.diffusion_classifier import row_losses, to_model_image

SIGMA = 0.25
ALPHA = 0.001
SELECTION = 100  # votes that choose the class, the reference's way
PAPER = {
    "noise_levels": {"grid": "linear", "weights": "reference", "levels": 126},
    "sift": {"rule": "full"},
    "votes": {"sigmas": [SIGMA]},
}
SEQUENTIAL = (
    "votes.bound=sequential",
    "votes.n=10000",
    "votes.estimate=target",
    "votes.unit=10",
    "votes.select=5",
)
RUNS: tuple[tuple[str, tuple[str, ...], float, int], ...] = (
    ("fixed n = 1000", (), 0.25, 1_000),
    ("sequential for r = 0.5", (*SEQUENTIAL, "votes.radii=[0.5]"), 0.5, 10_000),
    ("sequential for r = 0.25", (*SEQUENTIAL, "votes.radii=[0.25]"), 0.25, 10_000),
)
"""name, settings, radius that is asked for, votes of the reference's way"""


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU and of the wall."""

    cpu: float
    wall: float

    @staticmethod
    def on(work: Callable[[], object]) -> "Spent":
        """What some work takes."""
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        return Spent(time.process_time() - cpu, time.perf_counter() - wall)

    def times(self, factor: float) -> "Spent":
        """The same, so many times."""
        return Spent(self.cpu * factor, self.wall * factor)


def reference_classifier() -> BaseClassifier:
    """The paper's grid and weights, every class at every level."""
    return base_classifier(load_config(PAPER), load_denoiser("digits"), SIGMA)


def reference_vote(base: BaseClassifier, image: np.ndarray, generator: torch.Generator) -> int:
    """One vote, one class after another, each with all its noise levels in one batch."""
    plan = base.plan
    levels = len(plan.s)
    with torch.inference_mode():
        clean = to_model_image(torch.tensor(image))[None]
        noisy = clean + plan.s_tau * torch.randn(clean.shape, generator=generator)
        denoised = base.denoiser(noisy, torch.full((1,), plan.s_tau), None)
        eps = torch.randn((levels, *image.shape), generator=generator)
        s = torch.tensor(plan.s).float()
        seen = denoised + torch.tensor(plan.noise_scale).float()[:, None, None, None] * eps
        sums = []
        for label in range(base.denoiser.num_classes):
            out = base.denoiser(seen, s, torch.full((levels,), label))
            losses = row_losses(out.flatten(1), denoised.flatten(1).expand(levels, -1))
            sums.append(float(losses.double() @ torch.tensor(base.sift.coefficient)))
    return int(np.argmin(sums))


@dataclass(frozen=True)
class Ours:
    """A run of ours: what an image takes, and the share certified at the radius asked for."""

    seconds: Spent
    votes: float
    nfe_per_vote: float
    certified: float


def our_run(images: int, settings: Sequence[str], radius: float) -> Ours:
    """Certify the first images in this process, stored as always; loading is not in the seconds."""
    began: list[tuple[float, float]] = []

    def keep_going() -> bool:  # first asked when the networks are loaded and compiled
        if not began:
            began.append((time.process_time(), time.perf_counter()))
        return False

    with tempfile.TemporaryDirectory() as folder:
        run = certify(
            "digits",
            Path(folder) / "run",
            overrides=[*settings, "dataset.first=100"],
            images=(0, images),
            local=True,
            should_stop=keep_going,
        )
        cpu, wall = time.process_time(), time.perf_counter()
        rows = run.certificates()
    outcome = run.outcome
    if outcome is None or not outcome.complete:
        raise RuntimeError(f"the run of {images} images did not finish: {outcome}")
    spent = Spent(cpu - began[0][0], wall - began[0][1])
    return Ours(
        spent.times(1 / images),
        outcome.votes / images,
        outcome.nfe / outcome.votes,
        float((rows["correct"] & (rows["radius"] > radius)).mean()),
    )


def smallest_n(radius: float) -> int:
    """Fewest estimation votes that certify more than a radius when all are for the class."""
    return next(
        n for n in range(1, 10**6) if certificate(n, n, sigma=SIGMA, alpha=ALPHA).radius > radius
    )


def measured(options: argparse.Namespace) -> pd.DataFrame:
    """A line for each way: the reference's is timed before, between and after ours."""
    base = reference_classifier()
    data = load_dataset({"name": "digits", "split": "test", "first": options.images})
    generator = torch.Generator().manual_seed(0)

    def reference() -> Spent:
        """Of one vote, over a third of the votes asked for."""
        count = -(-options.votes // 3)
        pictures = [data.image(int(data.ids[i % len(data)])) for i in range(count)]
        reference_vote(base, pictures[0], generator)  # warm
        return Spent.on(lambda: [reference_vote(base, p, generator) for p in pictures]).times(
            1 / count
        )

    compiled = [[]] if options.eager_only else [[], ["numerics.compile=true"]]
    rounds, ours = [reference()], []
    for name, bound, radius, n in RUNS:
        images = options.sequential_images if bound else options.images
        for kind in compiled:
            run = our_run(images, [*bound, *kind, *options.set], radius)
            ours.append((name + (", compiled" if kind else ""), radius, n, run))
            rounds.append(reference())
    vote = Spent(*(float(np.median([getattr(r, k) for r in rounds])) for k in ("cpu", "wall")))
    spread = [1000 * r.cpu for r in rounds]
    print(
        f"reference's way: {1 + 10 * len(base.plan.s)} NFE and {1000 * vote.cpu:.0f} ms of CPU "
        f"per vote (median of {len(rounds)} rounds, {min(spread):.0f} to {max(spread):.0f} ms)"
    )
    lines = []
    for name, radius, n, run in ours:
        image, least = vote.times(SELECTION + n), SELECTION + smallest_n(radius)
        lines.append(
            {
                "way": name,
                "votes/image": f"{run.votes:,.0f}",
                "NFE/vote": f"{run.nfe_per_vote:.1f}",
                "certified": f"{run.certified:.0%} at {radius}",
                "CPU s/image": f"{run.seconds.cpu:.1f}",
                "reference's CPU s/image": f"{image.cpu:,.0f}",
                "times less (CPU)": f"{image.cpu / run.seconds.cpu:.0f}",
                "times less (wall)": f"{image.wall / run.seconds.wall:.0f}",
                "at equal votes": f"{vote.cpu * run.votes / run.seconds.cpu:.0f}",
                "at the smallest n": f"{vote.cpu * least / run.seconds.cpu:.0f} ({least} votes)",
            }
        )
    return pd.DataFrame(lines)


def main(arguments: list[str]) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=6, help="with fixed n")
    parser.add_argument("--sequential-images", type=int, default=20)
    parser.add_argument(
        "--votes", type=int, default=20, help="of the reference's way in three rounds"
    )
    parser.add_argument("--eager-only", action="store_true", help="leave out the compiled network")
    parser.add_argument("--set", action="append", default=[], help="settings for ours")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(measured(options).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
