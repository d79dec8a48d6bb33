"""What sequential certificates save: one stored fixed-n run, its looks replayed.

    diffcert certify jobs/sequential_replay.toml
    python jobs/sequential_replay.py [--run runs/sequential_replay] [--radii 0.25 0.5]

The run holds all n votes of every image, in units that were stored one by one. The replay shows
each image's votes to the sequential rule in their order, a look at the end of each unit, and stops
where a `sequential` run with the same cap would have stopped: the largest asked radius certified,
the smallest missing one futile, or the cap. Both certificates rest on the same votes; the fixed-n
one is Clopper-Pearson's. An image is lost at a radius where only the fixed-n run certifies its
label there.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from diffcert_ray import open_run
from diffcert_ray.datasets import load_dataset
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.stored import Run
from diffcert_ray.run.vote_rows import stored_units
from diffcert_ray.votes.image import ImageVotes, Plan, Verdict


@dataclass(frozen=True)
class Replayed:
    """One image under both bounds."""

    image_id: int
    label: int
    fixed: Verdict
    sequential: Verdict
    reason: str


def replay(run: Run, radii: tuple[float, ...], futility: float) -> list[Replayed]:
    """Both certificates of every image of a fixed-n run at its only sigma."""
    data = load_dataset(run.config.dataset)
    labels = dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))
    plan = plan_of(run.config, data)
    if not isinstance(plan, Plan) or plan.bound != "clopper-pearson" or len(plan.sigmas) != 1:
        raise ValueError(
            f"{run.address} is no run of clopper-pearson at one sigma: make one with "
            "diffcert certify jobs/sequential_replay.toml"
        )
    looking = replace(plan, bound="sequential", radii=radii, futility=futility)
    units = stored_units(run.store.done_units(), plan)
    sigma, found = plan.sigmas[0], []
    for image_id in plan.image_ids.tolist():
        images = [ImageVotes(p, sigma, image_id) for p in (plan, looking)]
        for counts in units(sigma, image_id):
            for image in images:
                if not image.finished:
                    image.add(counts)
        verdicts = [image.verdict() for image in images]
        if verdicts[0] is None or verdicts[1] is None:
            raise ValueError(f"image {image_id} lacks votes: run certify again to complete it")
        reason = images[1].stopped or ""
        found.append(Replayed(image_id, labels[image_id], verdicts[0], verdicts[1], reason))
    return found


def certified(verdict: Verdict, label: int, radius: float) -> bool:
    """Whether the label is certified at a radius (0: at any)."""
    return verdict.predicted == label and verdict.radius >= radius


def table(images: list[Replayed], radii: tuple[float, ...]) -> pd.DataFrame:
    """A row for each radius: certified accuracies and images lost."""
    rows = []
    for radius in (0.0, *radii):
        fixed = np.array([certified(i.fixed, i.label, radius) for i in images])
        stopped = np.array([certified(i.sequential, i.label, radius) for i in images])
        lost = int((fixed & ~stopped).sum())
        rows.append((radius, f"{fixed.mean():.1%}", f"{stopped.mean():.1%}", lost))
    return pd.DataFrame(rows, columns=["radius", "fixed n", "sequential", "images lost"])


def save_picture(images: list[Replayed], cap: int, path: Path) -> None:
    """Votes that each image took, sorted, coloured by why it stopped."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    order = sorted(images, key=lambda i: i.sequential.n)
    colours = {"certified": "tab:blue", "futile": "tab:orange", "cap": "tab:red"}
    for reason, colour in colours.items():
        at = [k for k, image in enumerate(order) if image.reason == reason]
        votes = [order[k].sequential.n for k in at]
        axes.bar(at, votes, color=colour, label=f"{reason} ({len(at)} images)")
    axes.axhline(cap, color="black", linewidth=1, linestyle=":", label="fixed n")
    axes.set_yscale("log")
    axes.set_xlabel("images, sorted")
    axes.set_ylabel("estimation votes")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Replay, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", default="runs/sequential_replay")
    parser.add_argument("--radii", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--futility", type=float, default=0.05, help="posterior probability")
    parser.add_argument("--output", type=Path, default=Path("runs/sequential_replay"))
    options = parser.parse_args(arguments)
    run, radii = open_run(options.run), tuple(options.radii)
    images = replay(run, radii, options.futility)
    votes = run.config.votes
    mean = float(np.mean([i.sequential.n for i in images]))
    reasons = pd.Series([i.reason for i in images]).value_counts()
    print(
        f"{len(images)} images at sigma {votes.sigmas[0]:g}, alpha {votes.alpha:g}, cap "
        f"{votes.n:,}, a look every {votes.unit} votes, futility level {options.futility:g}\n"
        f"estimation votes per image: fixed {votes.n:,}, sequential {mean:,.0f}, "
        f"{votes.n / mean:.1f} times fewer ({', '.join(f'{n} {r}' for r, n in reasons.items())})\n"
        f"{table(images, radii).to_string(index=False)}"
    )
    options.output.mkdir(parents=True, exist_ok=True)
    save_picture(images, votes.n, options.output / "votes.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
