"""Which network for the least cost: families and sizes trained alike, certified alike.

    python jobs/ablation.py [--output runs/ablation]

Each network of ablation.toml is trained by what `diffcert train digits --set network.family=...
--set network.model_channels=...` runs, and then certifies the same images with the same noise,
votes and rule. The table gives parameters, evaluations of the network per vote (NFE), seconds of
one core per image (NFE times the processor time of an evaluation, measured in full batches of all
networks by turns, so that other work on the machine counts little), and certified accuracy with
exact 95 % intervals for the population of images. What is there already is not done again: networks
are files in the output folder, runs are run folders.
"""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from diffcert_ray import certified_accuracy, certify, load_dataset
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.training import load_denoiser_training
from diffcert_ray.engine.speed import Forward
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.reachable import check_radii
from diffcert_ray.run.stored import Run
from diffcert_ray.tools.training import train_denoiser

ROUNDS = 20  # evaluations of each network for its time


class Training(BaseModel):
    """How every network is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: PositiveInt
    batch: PositiveInt


class Settings(BaseModel):
    """The file ablation.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    training: Training
    networks: dict[str, list[PositiveInt]]
    run: dict[str, dict[str, Any]]


def network_file(settings: Settings, network: str, channels: int, folder: Path) -> Path:
    """The file of a trained network; trains it where there is none."""
    made = settings.training
    path = folder / f"{network}-{channels}-{made.steps}x{made.batch}.safetensors"
    if not path.exists():
        print(f"training {path.stem}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        asked = load_denoiser_training(
            "digits",
            (
                f"network.family={network}",
                f"network.model_channels={channels}",
                f"training.steps={made.steps}",
                f"training.batch={made.batch}",
            ),
        )
        trained = train_denoiser(asked, folder / "training" / path.stem)
        assert trained.model is not None
        trained.model.rename(path)
    return path


def row(run: Run, network: str, channels: int, checkpoint: Path) -> dict[str, Any]:
    """A network in figures, but for its seconds."""
    certificates = run.certificates()
    votes = (certificates["n"] + certificates["n0_used"]).sum()
    parameters = sum(p.numel() for p in load_denoiser(checkpoint).parameters())
    found: dict[str, Any] = {
        "network": network,
        "channels": channels,
        "parameters": parameters,
        "nfe_per_vote": certificates["nfe"].sum() / votes,
        "nfe_per_image": certificates["nfe"].mean(),
    }
    table = certified_accuracy(certificates, run.config.votes.radii, asked=run.asked())
    for line in table.to_dict("records"):
        found[f"r={line['radius']:g}"] = (
            f"{line['certified_accuracy']:.0%} "
            f"({line['interval_low']:.0%}-{line['interval_high']:.0%})"
        )
        found[f"accuracy at {line['radius']:g}"] = line["certified_accuracy"]
    return found


def seconds_per_nfe(checkpoints: list[Path], batch: int, rounds: int) -> list[float]:
    """Processor seconds of one evaluation in a full batch: the least of some rounds of each."""
    networks = [Forward(load_denoiser(checkpoint), batch, "cpu") for checkpoint in checkpoints]
    in_turn = [[network.rate(at_least_s=0.0) for network in networks] for _ in range(rounds)]
    return [1.0 / max(rates) for rates in zip(*in_turn, strict=True)]


def save_picture(rows: pd.DataFrame, radii: tuple[float, ...], path: Path) -> None:
    """Certified accuracy at each radius against seconds per image, a point for each network."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for radius in radii:
        accuracy = rows[f"accuracy at {radius:g}"]
        axes.scatter(rows["seconds_per_image"], accuracy, label=f"r = {radius:g}")
    for line in rows.itertuples():
        axes.annotate(
            f"{line.network}-{line.channels}",
            (line.seconds_per_image, 0.02),
            rotation=60,
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("seconds of one core per image")
    axes.set_ylabel("certified accuracy")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Train, certify, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--local", action="store_true", help="one worker in this process")
    options = parser.parse_args(arguments)
    settings = Settings.model_validate(tomllib.loads(options.config.read_text("utf-8")))
    asked = load_config(settings.run)
    check_radii(plan_of(asked, load_dataset(asked.dataset)))  # before hours of training
    torch.set_num_threads(1)  # as in every worker: two threads fight over small tensors
    rows, checkpoints = [], []
    for network, sizes in settings.networks.items():
        for channels in sizes:
            checkpoint = network_file(settings, network, channels, options.output)
            tables = settings.run | {"model": {"checkpoint": str(checkpoint)}}
            run = certify(tables, options.output / checkpoint.stem, local=options.local)
            rows.append(row(run, network, channels, checkpoint))
            checkpoints.append(checkpoint)
            pd.DataFrame(rows).to_csv(options.output / "unfinished.csv", index=False)
    found = pd.DataFrame(rows)
    seconds = seconds_per_nfe(checkpoints, asked.numerics.batch, ROUNDS)
    found.insert(5, "seconds_per_image", found["nfe_per_image"] * seconds)
    found.to_csv(options.output / "ablation.csv", index=False)
    (options.output / "unfinished.csv").unlink()
    radii = asked.votes.radii
    save_picture(found, radii, options.output / "ablation.png")
    hidden = ("accuracy at", "nfe_per_image")
    shown = [c for c in found.columns if not c.startswith(hidden)]
    formats = {"nfe_per_vote": "{:.1f}".format, "seconds_per_image": "{:.2f}".format}
    print(found[shown].to_string(index=False, formatters=formats))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
