"""The Lipschitz constant: the steepest score differences that a search finds, against the bounds.

    python jobs/lipschitz_constant.py [--config FILE] [--output runs/lipschitz_constant]

Gradient ascent on the score difference of two classes from many starts inside the box collects
steep points. At the steepest, independent draws choose a direction, and fresh draws measure the
slope along it: the chord from x - c v to x + c v with the same noise at both ends. Its expectation
is an average of slopes, so the lower end of its interval must exceed neither the constant bound nor
the local bound at the losses measured there (their upper ends, which are the weaker bound).

Shapes: B points, M draws, T noise levels, D pixels.
"""

import argparse
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from scipy.special import ndtri
from torch import Tensor

from diffcert_ray.certificates.lipschitz import lipschitz_constant, local_slope
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.engine.losses import pair_losses, score_gaps

ROWS = 1024  # rows given to the network at once
INSIDE = 0.01  # points keep this distance from the sides of the box, where the projection begins


class Strict(BaseModel):
    """Settings that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Search(Strict):
    """How steep points are looked for."""

    starts: int
    steps: int
    step: float
    draws: int
    kept: int
    refine_steps: int
    refine_step: float
    refine_draws: int


class Measure(Strict):
    """How slopes are measured."""

    points: int
    direction_draws: int
    slope_draws: int
    chord: float
    alpha: float


class Settings(Strict):
    """The experiment."""

    checkpoint: str
    seed: int
    scores: list[list[float]]
    search: Search
    measure: Measure


@dataclass
class Score:
    """A score difference: network, levels, weights, and where its noise comes from."""

    denoiser: Denoiser
    s: Tensor
    generator: torch.Generator
    nfe: int = 0

    @property
    def weights(self) -> Tensor:
        """Proportional to s, summing to 1."""
        return self.s.double() / self.s.double().sum()

    def noise(self, draws: int) -> Tensor:
        """Fresh noise [M, T, C, H, W]."""
        shape = (draws, len(self.s), *self.denoiser.image_shape)
        return torch.randn(shape, generator=self.generator)

    def losses(self, x: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Tensor:
        """Losses [M, T, 2, B] under given noise."""
        self.nfe += len(eps) * len(self.s) * 2 * len(x)
        return pair_losses(self.denoiser, x, a, b, eps, self.s)

    def gradients(self, x: Tensor, a: Tensor, b: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Mean gradients [B, C, H, W] of the difference from two halves of fresh draws."""
        halves = []
        for _ in range(2):
            total = torch.zeros_like(x)
            for eps in self.noise(draws // 2).split(max(1, ROWS // (2 * len(self.s)))):
                at_once = max(1, ROWS // (2 * len(eps) * len(self.s)))
                for rows in torch.arange(len(x)).split(at_once):
                    point = x[rows].clone().requires_grad_(True)
                    gaps = score_gaps(self.losses(point, a[rows], b[rows], eps), self.weights)
                    total[rows] += torch.autograd.grad(gaps.sum(), point)[0]
            halves.append(total / (draws // 2))
        return halves[0], halves[1]


def starts(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the box and the class pair whose difference is climbed at each."""
    data = load_dataset({"name": "digits", "split": "all"})
    random = np.random.default_rng(seed)
    one, two = random.integers(len(data), size=(2, count))
    kind = np.arange(count) % 3
    share = np.where(kind == 0, 1.0, 0.5)[:, None, None, None]
    x = share * data.pixels[one] + (1.0 - share) * data.pixels[two]
    x = np.where((kind == 2)[:, None, None, None], random.random(x.shape), x)
    b = data.labels[one]
    other = (b + random.integers(1, data.num_classes, count)) % data.num_classes
    a = np.where((kind == 1) & (data.labels[two] != b), data.labels[two], other)
    return inside(torch.from_numpy(x.astype(np.float32))), torch.from_numpy(a), torch.from_numpy(b)


def inside(x: Tensor) -> Tensor:
    """Points kept a little away from the sides of the box."""
    return x.clamp(INSIDE, 1.0 - INSIDE)


def climb(
    score: Score, x: Tensor, a: Tensor, b: Tensor, *, steps: int, step: float, draws: int
) -> tuple[Tensor, Tensor]:
    """Ascend the score difference; the steepest point of each path and its squared slope.

    The squared slope is the inner product of gradients from independent draws, which is unbiased.
    """
    best, steepest = x.clone(), torch.full((len(x),), -torch.inf)
    for _ in range(steps):
        one, two = score.gradients(x, a, b, draws)
        squared = (one * two).flatten(1).sum(dim=1)
        better = squared > steepest
        best[better], steepest[better] = x[better], squared[better]
        x = inside(x + step * unit(one + two))
    return best, steepest


def unit(v: Tensor) -> Tensor:
    """Each row scaled to l2 length 1."""
    return v / v.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, 1, 1, 1)


def measured(score: Score, x: Tensor, a: Tensor, b: Tensor, how: Measure) -> pd.DataFrame:
    """Slope, its interval and the local bound at each of the points."""
    z = -float(ndtri(how.alpha / (4 * len(x))))  # slopes two-sided, losses of either class above
    v = unit(sum(score.gradients(x, a, b, how.direction_draws)))
    slopes, losses = [], []
    with torch.inference_mode():
        for eps in score.noise(how.slope_draws).split(max(1, ROWS // (4 * len(score.s) * len(x)))):
            ends = [score.losses(x + sign * how.chord * v, a, b, eps) for sign in (1.0, -1.0)]
            one, two = (score_gaps(end, score.weights) for end in ends)
            slopes.append((one - two) / (2.0 * how.chord))
            losses.append((ends[0] + ends[1]) / 2.0)
    slope, loss = torch.cat(slopes).numpy(), torch.cat(losses).numpy()
    high = loss.mean(axis=0) + z * loss.std(axis=0, ddof=1) / np.sqrt(len(loss))
    psi = local_slope(
        np.clip(high, 0.0, 0.5), score.s.numpy()[:, None, None] / 2.0, x[0].numel()
    )  # psi rises up to 1/2
    error = z * slope.std(axis=0, ddof=1) / np.sqrt(len(slope))
    return pd.DataFrame(
        {
            "slope": slope.mean(axis=0),
            "low": slope.mean(axis=0) - error,
            "high": slope.mean(axis=0) + error,
            "local_bound": score.weights.numpy() @ psi.sum(axis=1),
            "loss_a": score.weights.numpy() @ loss.mean(axis=0)[:, 0],
            "loss_b": score.weights.numpy() @ loss.mean(axis=0)[:, 1],
        }
    )


def experiment(settings: Settings, levels: list[float]) -> pd.DataFrame:
    """Search and measure one score; a row for each measured point."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(settings.seed)
    score = Score(load_denoiser(settings.checkpoint), torch.tensor(levels), generator)
    how = settings.search
    x, a, b = starts(how.starts, settings.seed)
    x, steep = climb(score, x, a, b, steps=how.steps, step=how.step, draws=how.draws)
    kept = steep.argsort(descending=True)[: how.kept]
    x, a, b = x[kept], a[kept], b[kept]
    x, steep = climb(
        score, x, a, b, steps=how.refine_steps, step=how.refine_step, draws=how.refine_draws
    )
    top = steep.argsort(descending=True)[: settings.measure.points]
    found = measured(score, x[top], a[top], b[top], settings.measure)
    found.insert(0, "levels", " ".join(f"{s:g}" for s in levels))
    found["constant_bound"] = lipschitz_constant(
        score.s.double().numpy() / 2.0, score.weights.numpy(), x[0].numel()
    )
    found["nfe"], found["seconds"] = score.nfe, time.perf_counter() - started
    return found


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row for each score."""
    rows = []
    for levels, block in found.groupby("levels", sort=False):
        best = block.loc[block["low"].idxmax()]
        rows.append(
            {
                "levels s": levels,
                "constant bound": best["constant_bound"],
                "steepest": best["slope"],
                "its low end": best["low"],
                "low / constant": best["low"] / best["constant_bound"],
                "local bound there": best["local_bound"],
                "largest low / local": (block["low"] / block["local_bound"]).max(),
                "above a bound": int(
                    (block["low"] > block[["constant_bound", "local_bound"]].min(axis=1)).sum()
                ),
                "NFE": int(best["nfe"]),
                "seconds": round(best["seconds"]),
            }
        )
    return pd.DataFrame(rows)


def picture(found: pd.DataFrame, path: Path) -> None:
    """Slopes with their intervals over the local bound at each point; lines: the bounds."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for levels, block in found.groupby("levels", sort=False):
        error = [block["slope"] - block["low"], block["high"] - block["slope"]]
        points = axes.errorbar(
            block["local_bound"], block["slope"], yerr=error, fmt="o", ms=3, lw=0.8,
            label=f"s = {levels}",
        )  # fmt: skip
        axes.axhline(block["constant_bound"].iloc[0], color=points[0].get_color(), ls=":", lw=1)
    ends = np.array(
        [found["low"].clip(lower=1e-3).min() / 1.5, 1.2 * found["constant_bound"].max()]
    )
    axes.plot(ends, ends, color="0.5", lw=0.8, label="slope = local bound")
    axes.set(
        xscale="log", yscale="log", ylim=ends, xlim=(found["local_bound"].min() / 1.5, ends[1])
    )
    axes.set_xlabel("local bound at the point (per pixel unit, l2)")
    axes.set_ylabel("slope found")
    axes.set_title("Slopes of score differences; dotted: constant bounds", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the experiment of the configuration file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--output", type=Path, default=Path("runs/lipschitz_constant"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    settings = Settings.model_validate(tomllib.loads(options.config.read_text("utf-8")))
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        blocks = list(pool.map(experiment, [settings] * len(settings.scores), settings.scores))
    found = pd.concat(blocks, ignore_index=True)
    found.to_csv(options.output / "points.csv", index=False)
    table = summary(found)
    table.to_csv(options.output / "table.csv", index=False)
    picture(found, options.output / "slopes.png")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    print(f"\ntable.csv, points.csv and slopes.png are in {options.output}")


if __name__ == "__main__":
    main()
