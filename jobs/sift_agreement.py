"""Sift and refine: what a vote costs under each rule, and how often it is the full vote.

    python jobs/sift_agreement.py [--world digits] [--sigma 0.25] [--votes 2000] [--images 50]
    python jobs/sift_agreement.py --reference exact --votes 20000 --images 360 --compile

Every vote is cast once in full (all classes at all 126 levels, apndc, the quantile grid) and once
by each rule of sift_agreement.toml, on the same noise. `--reference exact` casts the full vote by
the rule `exact`, which returns the same votes, bit for bit, for a quarter of the evaluations. The
table gives evaluations of the network per vote (NFE), agreement with the full vote and the share of
votes for the image's own class, with exact binomial intervals. Votes of one image are independent
given the image; the images are a fixed sample. The rule of preset `digits` was chosen on the first
60 votes of the first 16 test images (pareto.py): few of 20,000.

`--world gaussian-1000` is a world of ImageNet's number of classes: 192 dimensions, class means
N(0, 0.2^2 I), standard deviation 0.3 in every class, so 126,001 evaluations of its exact denoiser
per full vote.
"""

import argparse
import multiprocessing
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from scipy.stats import binomtest

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import compile_denoiser
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.tools.exact_worlds import gaussian_world, labelled_images
from diffcert_ray.votes.units import Item, Part, Unit

REFERENCES = ("full", "exact")
TOGETHER = 10  # images that share batches


class WorldSettings(BaseModel):
    """How many votes of how many images a world is given by default, and rows per batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    votes: PositiveInt
    images: PositiveInt
    batch: PositiveInt


class Settings(BaseModel):
    """The file sift_agreement.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    confidence: float
    worlds: dict[str, WorldSettings]
    rules: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A denoiser and its images."""

    denoiser: Denoiser
    ids: list[int]
    labels: list[int]
    image: Callable[[int], np.ndarray]


@cache
def world_of(name: str, images: int, compiled: bool) -> World:
    """A world by name, once per process."""
    torch.set_num_threads(1)
    if name == "digits":
        data = load_dataset({"name": "digits", "split": "test", "first": images})
        ids, labels = data.ids.tolist(), data.labels.tolist()
        network = load_denoiser("digits")
        if compiled:
            compile_denoiser(network)
        return World(network, ids, labels, data.image)
    world = gaussian_world(1000, 192, 0.3, 0.2, seed=0, image_shape=(3, 8, 8))
    u, label = labelled_images(world, images, seed=0)
    pixels = ((u + 1.0) / 2.0).float().numpy()
    return World(world, list(range(images)), label.tolist(), lambda image_id: pixels[image_id])


def votes_of_images(
    settings: Settings,
    world_name: str,
    compiled: bool,
    sigma: float,
    images: int,
    shares: dict[int, int],
    reference: str,
) -> pd.DataFrame:
    """Votes of a few images under every rule, a line each: how many, equal ones, right ones, NFE.

    Args:
        settings: the rules.
        world_name: of the network and the images.
        compiled: whether the network is.
        sigma: smoothing noise, pixel units.
        images: how many the world has.
        shares: position of each image among them -> its votes; they share batches.
        reference: rule of the full vote.
    """
    world = world_of(world_name, images, compiled)
    units = [Unit(sigma, world.ids[at], "estimate", 0, votes) for at, votes in shares.items()]
    item = Item(0, sigma, tuple(Part(unit, 0, unit.stop) for unit in units))
    label = np.repeat([world.labels[at] for at in shares], list(shares.values()))
    rows, full = [], None
    for name, sift in {reference: {"rule": reference}, **settings.rules}.items():
        tables = {
            "sift": sift,
            "votes": {"sigmas": [sigma]},
            "numerics": {"batch": settings.worlds[world_name].batch},
        }
        begun = time.process_time()
        config = load_config(tables)
        base = base_classifier(config, world.denoiser, sigma)
        found, nfe = evaluate_votes(base, item, world.image)
        full = found if full is None else full
        rows.append(
            {
                "rule": name,
                "images": len(shares),
                "first_image": units[0].image_id,
                "votes": len(label),
                "agree": int((found == full).sum()),
                "correct": int((found == label).sum()),
                "nfe": nfe,
                "full_nfe": len(label) * base.most_nfe,
                "seconds": time.process_time() - begun,
            }
        )
    return pd.DataFrame(rows)


def measured(
    settings: Settings,
    world: str,
    compiled: bool,
    sigma: float,
    votes: int,
    images: int,
    processes: int,
    reference: str,
) -> pd.DataFrame:
    """The rows of all parts, computed in several processes; progress on stderr."""
    count = np.diff(np.linspace(0, votes, images + 1).astype(int)).tolist()
    shares = {position: share for position, share in enumerate(count) if share}
    calls = [dict(list(shares.items())[a : a + TOGETHER]) for a in range(0, len(shares), TOGETHER)]
    begun, parts = time.perf_counter(), []
    about = (settings, world, compiled, sigma, images)
    # Not forked: torch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        under_way = [pool.submit(votes_of_images, *about, call, reference) for call in calls]
        for done, call in enumerate(as_completed(under_way), 1):
            parts.append(call.result())
            spent = time.perf_counter() - begun
            left = spent / done * (len(calls) - done)
            print(f"{done}/{len(calls)} parts, {left:.0f} s left", file=sys.stderr)
    return pd.concat(parts).sort_values(["rule", "first_image"], ignore_index=True)


def summary(rows: pd.DataFrame, settings: Settings, reference: str) -> pd.DataFrame:
    """A line per rule, the reference first, then in the order of the settings."""
    order = list(dict.fromkeys([reference, *settings.rules]))
    columns = ["votes", "agree", "correct", "nfe", "full_nfe", "seconds"]
    total = rows.groupby("rule")[columns].sum().loc[order]
    found = pd.DataFrame(index=total.index)
    found["nfe"] = total.nfe / total.votes
    found["times_fewer"] = total.full_nfe / total.nfe
    for name, column in (("agreement", total.agree), ("accuracy", total.correct)):
        found[name] = column / total.votes
        intervals = [
            binomtest(int(k), int(n)).proportion_ci(settings.confidence, "exact")
            for k, n in zip(column, total.votes, strict=True)
        ]
        found[f"{name}_low"] = [i.low for i in intervals]
        found[f"{name}_high"] = [i.high for i in intervals]
    found["cpu_ms_per_vote"] = 1000 * total.seconds / total.votes
    return found.reset_index()


def table(found: pd.DataFrame) -> str:
    """The printed table."""

    def shares(name: str) -> list[str]:
        columns = (found[name], found[f"{name}_low"], found[f"{name}_high"])
        return [f"{a:.2%} [{b:.2%}, {c:.2%}]" for a, b, c in zip(*columns, strict=True)]

    shown = pd.DataFrame(
        {
            "rule": found.rule,
            "NFE/vote": [f"{v:,.1f}" for v in found.nfe],
            "times fewer": [f"{v:.1f}" for v in found.times_fewer],
            "agreement": shares("agreement"),
            "accuracy": shares("accuracy"),
            "CPU ms/vote": [f"{v:.1f}" for v in found.cpu_ms_per_vote],
        }
    )
    return shown.to_string(index=False)


def save_picture(found: pd.DataFrame, title: str, path: Path) -> None:
    """Agreement against NFE, a point with its interval per rule."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for line in found.itertuples():
        below, above = line.agreement - line.agreement_low, line.agreement_high - line.agreement
        axes.errorbar(line.nfe, line.agreement, [[below], [above]], fmt="o", capsize=3)
        axes.annotate(
            line.rule, (line.nfe, line.agreement), (5, -11), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("evaluations of the network per vote (NFE)")
    axes.set_ylabel("votes equal to the full vote")
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--world", default="digits", choices=("digits", "gaussian-1000"))
    parser.add_argument("--sigma", type=float, default=0.25, help="smoothing noise, [0, 1] pixels")
    parser.add_argument("--votes", type=int, help="of all images together")
    parser.add_argument("--images", type=int)
    parser.add_argument("--rules", nargs="+", help="names in the file [default: all]")
    parser.add_argument(
        "--reference", default="full", choices=REFERENCES, help="the full vote's rule"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the network, to take less time")
    parser.add_argument("--output", type=Path, default=Path("runs/sift_agreement"))
    options = parser.parse_args(arguments)
    settings = Settings.model_validate(tomllib.loads(options.config.read_text("utf-8")))
    chosen = {n: settings.rules[n] for n in options.rules or settings.rules}
    chosen.pop(options.reference, None)  # it is measured in any case
    settings = settings.model_copy(update={"rules": chosen})
    default = settings.worlds[options.world]
    votes, images = options.votes or default.votes, options.images or default.images
    rows = measured(
        settings,
        options.world,
        options.compile,
        options.sigma,
        votes,
        images,
        options.processes,
        options.reference,
    )
    found = summary(rows, settings, options.reference)
    name = f"{options.world}-sigma-{options.sigma:g}"
    title = f"{options.world}, sigma {options.sigma:g}: {votes} votes of {images} images"
    options.output.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.output / f"{name}-parts.csv", index=False)
    found.to_csv(options.output / f"{name}.csv", index=False)
    save_picture(found, title, options.output / f"{name}.png")
    print(f"{title}; {settings.confidence:.0%} intervals\n{table(found)}")
    print(f"{time.perf_counter() - begun:.0f} s; figures and picture: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
