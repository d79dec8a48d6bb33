"""Evaluations against certified accuracy: every sifting rule of pareto.toml on the same losses.

    python jobs/pareto.py [--worlds digits-0.25 gaussian-10] [--compile]

For each world some votes are cast in full once and all their losses are kept (every class at every
level; OUTPUT/WORLD.npz, made again only when it is missing). Then every rule is replayed on them,
which takes no evaluation, and asked what it would have evaluated and how it would have voted:
NFE per vote, agreement with the full vote, share of right votes, and the certified accuracy that
these votes give (Clopper-Pearson over the votes of each image, alpha 0.001). Rules that nothing
beats in both NFE and agreement are printed, and drawn as a line; the .csv has all of them.

Rules see a vote's own losses only, as in a run (`Sift.step`, `Sift.asked`); that a replay equals
the engine is tested. All noise is of seed 0: certify a rule that was chosen here with another seed
(`votes.seed`), as the presets do, or it is not independent of the votes.
"""

import argparse
import itertools
import sys
import time
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from diffcert_ray import certificate
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.device import compile_denoiser
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.from_config import levels_and_sift
from diffcert_ray.method.sift import Sift
from diffcert_ray.tools.exact_worlds import gaussian_world, labelled_images
from diffcert_ray.votes.units import Item, Part, Unit


class WorldSettings(BaseModel):
    """A world: which network and images, at which noise, and how many votes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: str
    classes: PositiveInt
    sigma: float
    images: PositiveInt
    votes: PositiveInt
    radii: tuple[float, ...]
    spread: float = 0.2  # of a Gaussian world's class means


class Settings(BaseModel):
    """The file pareto.toml; a rule's lists stand for all their combinations."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    worlds: dict[str, WorldSettings]
    rules: dict[str, dict[str, Any]]

    def sifts(self) -> dict[str, dict[str, Any]]:
        """Name and [sift] table of every combination."""
        found = {}
        for name, rule in self.rules.items():
            lists = {k: v if isinstance(v, list) else [v] for k, v in rule.items()}
            for values in itertools.product(*lists.values()):
                table = dict(zip(lists, values, strict=True))
                varied = [f"{k} {table[k]:g}" for k, v in lists.items() if len(v) > 1]
                found[", ".join([name, *varied])] = table
        return found


@dataclass(frozen=True)
class Losses:
    """All losses of some votes.

    Args:
        losses: float32 [N, T, K], squared error of each class at each level of the grid.
        image: int64 [N], position of each vote's image.
        label: int64 [images].
    """

    losses: np.ndarray
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Recorder(Sift):
    """The full rule, which also keeps what it has seen."""

    kept: list[np.ndarray] = field(default_factory=list)

    def step(
        self, round_index: int, losses: np.ndarray, alive: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decide as the full rule does; at the end the losses are kept as [votes, levels, K]."""
        if round_index + 1 == len(self.rounds):
            self.kept.append(losses.transpose(1, 0, 2).astype(np.float32))
        return super().step(round_index, losses, alive)


def configuration(world: WorldSettings, sift: dict[str, Any]) -> Config:
    """The configuration of a world with a rule: the quantile grid of 126 levels."""
    return load_config({"sift": sift, "votes": {"sigmas": [world.sigma]}})


def cast_in_full(world: WorldSettings, *, compiled: bool) -> Losses:
    """Cast the votes of a world in full and keep every loss; progress on stderr."""
    torch.set_num_threads(1)
    if world.network == "digits":
        data = load_dataset({"name": "digits", "split": "test", "first": world.images})
        network: Any = load_denoiser("digits")
        if compiled:
            compile_denoiser(network)
        pictures = [data.image(int(i)) for i in data.ids]
        label = np.array(data.labels)
    else:
        network = gaussian_world(
            world.classes, 192, 0.3, world.spread, seed=0, image_shape=(3, 8, 8)
        )
        u, labels = labelled_images(network, world.images, seed=0)
        pictures = list(((u + 1.0) / 2.0).float().numpy())
        label = labels.numpy()
    config = configuration(world, {"rule": "full"})
    base = base_classifier(config, network, world.sigma)
    cubes, image, begun = [], [], time.perf_counter()
    for position, picture in enumerate(pictures):
        sift = Recorder(**{f.name: getattr(base.sift, f.name) for f in fields(Sift)})
        unit = Unit(world.sigma, position, "estimate", 0, world.votes)
        item = Item(0, world.sigma, (Part(unit, 0, world.votes),))
        evaluate_votes(replace(base, sift=sift), item, lambda _, p=picture: p)
        cubes += sift.kept
        image += [position] * sum(map(len, sift.kept))
        left = (time.perf_counter() - begun) / (position + 1) * (world.images - position - 1)
        print(f"{position + 1}/{world.images} images, {left:.0f} s left", file=sys.stderr)
    return Losses(np.concatenate(cubes), np.array(image), label)


def losses_of(name: str, world: WorldSettings, folder: Path, *, compiled: bool) -> Losses:
    """The losses of a world, from its file or cast now."""
    path = folder / f"{name}.npz"
    if not path.exists():
        found = cast_in_full(world, compiled=compiled)
        np.savez(path, losses=found.losses, image=found.image, label=found.label)
    with np.load(path, allow_pickle=False) as stored:
        return Losses(stored["losses"], stored["image"], stored["label"])


def replay(sift: Sift, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a rule does with known losses.

    Args:
        sift: a rule over one grid (not ``threshold``, whose sifting levels are others).
        losses: [N, T, K], in the order of the grid.

    Returns:
        The class of each vote and the class evaluations it took, int64 [N] each.
    """
    by_entry = losses[:, sift.order].transpose(1, 0, 2).astype(np.float64)
    votes, classes = by_entry.shape[1:]
    known = np.full_like(by_entry, np.nan)
    alive = np.ones((votes, classes), bool)
    round_of, winner = np.zeros(votes, np.int64), np.full(votes, -1)
    nfe = np.zeros(votes, np.int64)
    for index, (start, stop) in enumerate(sift.rounds):
        group = np.flatnonzero((winner == -1) & (round_of == index))
        if not len(group):
            continue
        seen = known[:, group] if sift.leader_round is not None else by_entry[:start, group]
        asked = sift.asked(index, seen, alive[group])
        nfe[group] += asked.sum(axis=1) * (stop - start)
        part = known[start:stop, group]
        known[start:stop, group] = np.where(asked[None], by_entry[start:stop, group], part)
        visible = known[: sift.entries_before(index + 1), group]
        alive[group], round_of[group], winner[group] = sift.step(index, visible, alive[group])
    return winner, nfe


def certified(losses: Losses, winner: np.ndarray, world: WorldSettings) -> list[float]:
    """Share of the images whose label is certified beyond each radius of the world."""
    radius = []
    for position, label in enumerate(losses.label):
        mine = winner[losses.image == position]
        found = certificate(int((mine == label).sum()), len(mine), sigma=world.sigma)
        radius.append(-1.0 if found.abstained else found.radius)
    return [float(np.mean(np.array(radius) > r)) for r in world.radii]


def compared(
    losses: Losses, world: WorldSettings, sifts: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    """A line for each rule, by NFE; `front` marks those that no other beats in both."""
    full, _ = replay(
        levels_and_sift(configuration(world, {"rule": "full"}), world.sigma)[1], losses.losses
    )
    lines = []
    for name, table in sifts.items():
        _, sift = levels_and_sift(configuration(world, table), world.sigma)
        winner, nfe = replay(sift, losses.losses)
        lines.append(
            {
                "rule": name,
                "nfe": 1 + nfe.mean(),
                "agreement": (winner == full).mean(),
                "right": (winner == losses.label[losses.image]).mean(),
            }
            | {
                f"r {r:g}": c
                for r, c in zip(world.radii, certified(losses, winner, world), strict=True)
            }
        )
    found = pd.DataFrame(lines).sort_values(["nfe", "agreement"], ignore_index=True)
    best = found["agreement"].cummax().shift(fill_value=-1.0)
    found["front"] = found["agreement"] > best
    return found


def save_picture(found: pd.DataFrame, title: str, path: Path) -> None:
    """Disagreement against NFE; the front as a line."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    floor = (
        0.2 * (1 - found.agreement[found.agreement < 1]).min()
        if (found.agreement < 1).any()
        else 1e-4
    )
    off = np.maximum(1 - found.agreement, floor)
    axes.scatter(found.nfe, off, s=14, color="#8a8a8a")
    front = found[found.front]
    axes.plot(front.nfe, np.maximum(1 - front.agreement, floor), "o-", ms=5, color="#1f5fa8")
    for line in front.itertuples():
        at = (line.nfe, max(1 - line.agreement, floor))
        axes.annotate(line.rule, at, (5, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("evaluations of the network per vote (NFE)")
    axes.set_ylabel("share of votes that differ from the full vote")
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(found: pd.DataFrame) -> str:
    """The printed table: the rules that no other beats, and the full vote."""
    shown = found[found["front"] | (found["rule"] == "full")].drop(columns="front")
    for name in shown.columns[2:]:
        shown[name] = [f"{v:.2%}" for v in shown[name]]
    shown["nfe"] = [f"{v:,.1f}" for v in shown["nfe"]]
    return shown.rename(columns={"nfe": "NFE/vote"}).to_string(index=False)


def main(arguments: list[str]) -> int:
    """Cast, replay, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--worlds", nargs="+", help="names in the file [default: all]")
    parser.add_argument("--compile", action="store_true", help="the network, to take less time")
    parser.add_argument("--output", type=Path, default=Path("runs/pareto"))
    options = parser.parse_args(arguments)
    settings = Settings.model_validate(tomllib.loads(options.config.read_text("utf-8")))
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.worlds or settings.worlds:
        world = settings.worlds[name]
        losses = losses_of(name, world, options.output, compiled=options.compile)
        found = compared(losses, world, settings.sifts())
        found.to_csv(options.output / f"{name}.csv", index=False)
        count = world.images * world.votes
        title = (
            f"{name}: {count} votes of {world.images} images, full {1 + 126 * world.classes} NFE"
        )
        save_picture(found, title, options.output / f"{name}.png")
        print(f"\n{title}\n{table(found)}")
    print(f"\nfigures and pictures: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
