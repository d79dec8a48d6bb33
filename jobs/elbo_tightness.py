"""ELBO tightness: how far class scores are from exact log densities, and at what cost.

    python jobs/elbo_tightness.py [--config FILE] [--output runs/elbo_tightness] [--processes 2]

Worlds whose densities and denoisers are known exactly, the `elbo` weight density, squared errors
summed over the D dimensions. The error of a score is cut into four parts, each a difference of two
known quantities for the noisy image u_tau = u + s_tau * delta:

| part | from | to |
|---|---|---|
| method | log p_{s_tau}(u_tau given k), the truth | what the method integrates to over all levels |
| range | over all levels | over (s_lo, s_max) only |
| discretisation | the integral over (s_lo, s_max) | T levels, exact expectation over the noise |
| sampling | exact expectation | one draw of noise per level, as in a vote |

Over all levels epndc integrates to the truth; dc to log p_0(u_tau given k), since it takes its
input for clean; apndc to E log p_{s_tau}(u_hat + s_tau eps given k). An error is the root mean
square, over images and pairs of classes, of the error of a score difference. The method error and
the total error are shares of the same mean of the exact log ratio of the noisy image, the other
three of the log ratio to which the method integrates over all levels.

Shapes: B images, T levels, K classes, J components, D dimensions; model space throughout.
"""

import argparse
import math
import multiprocessing
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from exact_mixtures import ExactMixtures
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor

from diffcert_ray.conventions import to_model_space
from diffcert_ray.method.diffusion_classifier import MethodPlan, class_logits, method_plan
from diffcert_ray.method.noise_levels import noise_levels

Row = dict[str, str | int | float]


class Strict(BaseModel):
    """Settings that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GaussianSettings(Strict):
    """Worlds of one normal density per class."""

    dimensions: list[PositiveInt]
    distance: PositiveFloat
    tau: list[PositiveFloat]


class MixtureSettings(Strict):
    """The world of one dimension with several normal densities per class."""

    means: list[list[float]]
    tau: list[PositiveFloat]


class Settings(Strict):
    """Everything the figures depend on; elbo_tightness.toml says what each key is."""

    seed: int
    sigma: list[PositiveFloat]
    levels: list[PositiveInt]
    methods: list[Literal["epndc", "dc", "apndc"]]
    grids: list[Literal["linear", "quantile"]]
    s_max: list[PositiveFloat]
    s_lo_over_s_tau: PositiveFloat
    dc_s_lo: PositiveFloat
    images: PositiveInt
    draws: PositiveInt
    most_levels_times_draws: PositiveInt
    shown_levels: PositiveInt
    gaussian: GaussianSettings
    mixture: MixtureSettings


def worlds(settings: Settings) -> list[ExactMixtures]:
    """The worlds of the settings; means are drawn from the seed."""
    found = []
    tau = torch.tensor(settings.gaussian.tau, dtype=torch.float64)
    for dimensions in settings.gaussian.dimensions:
        generator = np.random.default_rng([settings.seed, dimensions])
        means = torch.from_numpy(generator.standard_normal((len(tau), 1, dimensions)))
        scale = settings.gaussian.distance / math.sqrt(dimensions)
        found.append(ExactMixtures(f"gaussian-{dimensions}", scale * means, tau))
    means = torch.tensor(settings.mixture.means, dtype=torch.float64)[:, :, None]
    found.append(
        ExactMixtures("mixture-1", means, torch.tensor(settings.mixture.tau, dtype=torch.float64))
    )
    return found


def pair_rms(scores: Tensor) -> float:
    """Root mean square of the score differences, over rows and pairs of classes, of [..., K]."""
    centred = scores - scores.mean(dim=-1, keepdim=True)
    pairs = 2.0 / (scores.shape[-1] - 1) * centred.square().sum(dim=-1)
    return float(pairs.mean().sqrt())


def integrals(
    world: ExactMixtures, u: Tensor, method: str, s_tau: float, *, s_lo: float, s_max: float
) -> tuple[Tensor, Tensor]:
    """Scores of infinitely many levels, over all levels and over (s_lo, s_max), [B, K] each.

    The derivative of E log p_s(z) in s is the `elbo` integrand, up to a number that all classes
    share; at s = infinity the classes are alike.
    """
    lowest, present, image = s_tau, s_tau, u
    if method == "dc":
        lowest = present = 0.0
    if method == "apndc":
        present = 0.0
        image = world(u, u.new_full((len(u),), s_tau))
    upper = world.expected_logs(image, s_max, present)
    everywhere = world.expected_logs(image, lowest, present)
    return everywhere, world.expected_logs(image, s_lo, present) - upper


def measured(settings: Settings, world: ExactMixtures, sigma: float) -> list[Row]:
    """Figures of one world at one sigma: a row per T, method, s_max and grid."""
    torch.set_num_threads(1)  # the tensors are too small for more
    s_tau = to_model_space(sigma)
    generator = np.random.default_rng([settings.seed, 1])
    u, label = world.draw(settings.images, generator)
    u = u + s_tau * torch.from_numpy(generator.standard_normal(u.shape))
    truth = world.log_densities(u, s_tau)
    fixed: Row = {
        "world": world.name,
        "sigma": sigma,
        "log_ratio_nats": pair_rms(truth),
        "accuracy_of_truth": float((truth.argmax(dim=1) == label).double().mean()),
    }
    rows = []
    for size in settings.levels:
        draws = max(1, min(settings.draws, settings.most_levels_times_draws // size))
        shape = (draws * len(u), 1, size, *world.image_shape)
        eps = torch.from_numpy(generator.standard_normal(shape))  # the same for all below
        for method, s_max, grid in product(settings.methods, settings.s_max, settings.grids):
            s_lo = settings.dc_s_lo if method == "dc" else settings.s_lo_over_s_tau * s_tau
            levels = noise_levels(
                grid, "elbo", size, s_lo=s_lo, s_max=s_max, method=method, s_tau=s_tau
            )
            exact = (truth, *integrals(world, u, method, s_tau, s_lo=s_lo, s_max=s_max))
            found = error_parts(world, u, method_plan(method, levels, s_tau), exact, eps)
            named: Row = {"method": method, "s_lo": s_lo, "s_max": s_max, "grid": grid}
            rows.append(fixed | named | {"levels": size, "votes": len(eps)} | found)
    return rows


def error_parts(
    world: ExactMixtures,
    u: Tensor,
    plan: MethodPlan,
    exact: tuple[Tensor, Tensor, Tensor],
    eps: Tensor,
) -> Row:
    """Error parts of one plan; exact is (truth, integral over all levels, over (s_lo, s_max))."""
    truth, everywhere, in_range = exact
    expected = world.expected_scores(plan, u)
    votes = u.repeat_interleave(len(eps) // len(u), dim=0)
    scores = class_logits(world, votes, plan, eps, batch=4096) * world.dimensions
    scores = scores.reshape(len(u), -1, world.num_classes)
    best, scale, own_scale = truth.argmax(dim=1), pair_rms(truth), pair_rms(everywhere)
    return {
        "nfe_per_class": len(plan.s) + plan.needs_denoised / world.num_classes,
        "method_error": pair_rms(everywhere - truth) / scale,
        "range_error": pair_rms(in_range - everywhere) / own_scale,
        "discretisation_error": pair_rms(expected - in_range) / own_scale,
        "sampling_error": pair_rms(scores - expected[:, None]) / own_scale,
        "total_error": pair_rms(scores - truth[:, None]) / scale,
        "agreement_all_levels": float((everywhere.argmax(dim=1) == best).double().mean()),
        "agreement_expected": float((expected.argmax(dim=1) == best).double().mean()),
        "agreement": float((scores.argmax(dim=2) == best[:, None]).double().mean()),
    }


def orders(errors: pd.Series) -> float:
    """Order of convergence in 1/T between the two largest T, errors indexed by T."""
    last = errors.sort_index().iloc[-2:]
    return -float(np.diff(np.log(last.to_numpy()))[0] / np.diff(np.log(last.index))[0])


def table(figures: pd.DataFrame, settings: Settings) -> str:
    """The printed table: a line per world, sigma and method, errors in percent."""
    s_max, shown = settings.s_max[0], settings.shown_levels
    lines = []
    for (world, sigma, method), part in figures.groupby(["world", "sigma", "method"], sort=False):
        line: Row = {"world": str(world), "sigma": str(sigma), "method": str(method)}
        line["log ratio"] = f"{part.log_ratio_nats.iloc[0]:.2f}"
        line["method %"] = f"{100 * part.method_error.iloc[0]:.3g}"
        for end, at_end in part.groupby("s_max", sort=False):
            line[f"range {end:g} %"] = f"{100 * at_end.range_error.iloc[0]:.3g}"
        part = part[part.s_max == s_max]
        for grid, on_grid in part.groupby("grid", sort=False):
            one = on_grid[on_grid.levels == shown].iloc[0]
            name = str(grid)[:3]
            line[f"discr {name} %"] = f"{100 * one.discretisation_error:.2g}"
            line[f"order {name}"] = (
                f"{orders(on_grid.set_index('levels').discretisation_error):.2f}"
            )
            line[f"sampl {name} %"] = f"{100 * one.sampling_error:.3g}"
            line[f"agree {name}"] = f"{one.agreement:.3f}"
        line["agree all"] = f"{part.agreement_all_levels.iloc[0]:.3f}"
        lines.append(line)
    return (
        f"s_max {s_max:g} but for range, T = {shown}, order from the two largest T; "
        "lin, qua: the grids\n" + pd.DataFrame(lines).to_string(index=False)
    )


def save_pictures(figures: pd.DataFrame, settings: Settings, folder: Path) -> None:
    """errors-METHOD.png for each method, and agreement.png: a panel per sigma and world."""
    for method in settings.methods:
        figure = drawn(figures[figures.method == method], settings, draw_errors)
        whose = "" if method == "epndc" else " (method: of the noisy image's; others: of its own)"
        figure.suptitle(f"{method}: error of score differences, as a share of the log ratio{whose}")
        figure.savefig(folder / f"errors-{method}.png", dpi=110)
        plt.close(figure)
    figure = drawn(figures[figures.s_max == settings.s_max[0]], settings, draw_agreement)
    figure.suptitle(
        "Share of votes, one noise draw per level, that name the class of the exact posterior"
    )
    figure.savefig(folder / "agreement.png", dpi=110)
    plt.close(figure)


def drawn(
    figures: pd.DataFrame,
    settings: Settings,
    draw: Callable[[Axes, pd.DataFrame, Settings], None],
) -> Figure:
    """A figure of panels, one row per sigma and one column per world, with one legend below."""
    names = list(figures.world.unique())
    size = (0.5 + 3.1 * len(names), 1.3 + 2.5 * len(settings.sigma))
    figure, grid = plt.subplots(
        len(settings.sigma),
        len(names),
        figsize=size,
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (row, sigma), (column, name) in product(enumerate(settings.sigma), enumerate(names)):
        axes, part = grid[row, column], figures[figures.world == name]
        part = part[part.sigma == sigma]
        draw(axes, part, settings)
        ratio = part.log_ratio_nats.iloc[0]
        axes.set_title(f"{name}, sigma {sigma:g} (log ratio {ratio:.2g} nats)", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(settings.levels, [str(size) for size in settings.levels])
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    for axes in grid[-1]:
        axes.set_xlabel("NFE per class", fontsize=9)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    return figure


def draw_errors(axes: Axes, part: pd.DataFrame, settings: Settings) -> None:
    """Discretisation and sampling error against cost, and the range errors as horizontal lines."""
    near = part[part.s_max == settings.s_max[0]]
    for grid, colour in zip(settings.grids, ("tab:red", "tab:blue"), strict=False):
        line = near[near.grid == grid]
        for column, style in (("discretisation_error", "o-"), ("sampling_error", "s--")):
            label = f"{column.split('_')[0]}, {grid} (s_max {settings.s_max[0]:g})"
            axes.plot(
                line.nfe_per_class, line[column], style, color=colour, label=label, markersize=3.5
            )
    for s_max, style in zip(settings.s_max, (":", "-."), strict=False):
        error = part[part.s_max == s_max].range_error.iloc[0]
        axes.axhline(error, color="black", linestyle=style, label=f"range, s_max {s_max:g}")
    if part.method_error.iloc[0] > 1e-9:
        axes.axhline(part.method_error.iloc[0], color="tab:green", label="method")
    axes.set_yscale("log")


def draw_agreement(axes: Axes, part: pd.DataFrame, settings: Settings) -> None:
    """Agreement of sampled votes against cost."""
    colours = dict(zip(settings.methods, ("tab:blue", "tab:orange", "tab:green"), strict=False))
    styles = dict(zip(settings.grids, ("^:", "o-"), strict=False))
    for method, grid in product(settings.methods, settings.grids):
        line = part[(part.method == method) & (part.grid == grid)]
        axes.plot(
            line.nfe_per_class,
            line.agreement,
            styles[grid],
            color=colours[method],
            label=f"{method}, {grid}",
            markersize=3.5,
        )
    axes.set_ylim(0.0, 1.02)


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--output", type=Path, default=Path("runs/elbo_tightness"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    settings = Settings.model_validate(tomllib.loads(options.config.read_text()))
    begun = time.perf_counter()
    cases = [(settings, *case) for case in product(worlds(settings), settings.sigma)]
    cases.sort(key=lambda case: -case[1].dimensions)  # longest first, so that both end together
    if options.processes == 1:
        parts = [measured(*case) for case in cases]
    else:
        # Not forked: torch's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, context) as pool:
            parts = list(pool.map(measured, *zip(*cases, strict=True)))
    rows = [row for part in parts for row in part]
    figures = pd.DataFrame(rows).sort_values(["world", "sigma"], kind="stable")
    options.output.mkdir(parents=True, exist_ok=True)
    figures.to_csv(options.output / "figures.csv", index=False)
    print(table(figures, settings))
    save_pictures(figures, settings, options.output)
    print(f"{time.perf_counter() - begun:.0f} s; figures and pictures: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
