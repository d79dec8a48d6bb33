"""Train the head of the rule `shortlist` for a configuration's network and sigmas.

    python jobs/train_head.py digits --split train --output head.safetensors

Labelled images that are not certified are needed: another split, of which a fifth fits the
temperature, and casts votes whose classes go to the end: what the head's log odds foretell of a
race. The file goes into `sift.head`; certifying an image that is in it is refused.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffcert_ray.checkpoints.files import checkpoint_sha256
from diffcert_ray.checkpoints.head_file import raced_with, save_heads
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.model_files import model_files
from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.dataset import all_images
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.diffusion_classifier import to_model_image
from diffcert_ray.tools.head_training import (
    HeadRecipe,
    fit_temperature,
    noisy_features,
    train_head,
)
from diffcert_ray.tools.lag_measurement import measured_lag_prior

RACES = 600  # votes that the prior of lags is measured on
RACE_SEED = 2**31  # of their noise: no certificate should use it
HELD_OUT = 5  # one image of so many fits the temperature, and trains no weight


def main(arguments: list[str]) -> int:
    """Train a head at each sigma, and write them as one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="of the run: a TOML file or preset")
    parser.add_argument("--split", default="train", help="of the run's dataset, to learn from")
    parser.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--copies", type=int, default=120, help="noisy copies of each image")
    parser.add_argument("--hidden", type=int, default=256, help="units; 0: a linear head")
    parser.add_argument("--races", type=int, default=RACES, help="votes to measure lags on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    settings = config.dataset.whole().model_copy(update={"split": options.split})
    data = load_dataset(settings, config.execution.storage_options)
    files = model_files(config)
    file = files.get("unconditional", files["denoiser"])
    denoiser = load_denoiser(file.source, file.settings)
    conditional = denoiser
    if "unconditional" in files:
        conditional = load_denoiser(files["denoiser"].source, files["denoiser"].settings)
        if config.model.resize is not None:  # as votes see it
            denoiser = ResizedDenoiser(denoiser, conditional.image_shape, config.model.resize)
    torch.set_num_threads(1)
    images, labels = torch.tensor(all_images(data)), torch.tensor(data.labels)
    held = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    recipe = HeadRecipe(copies=options.copies, hidden=options.hidden, seed=options.seed)
    heads = {}
    for sigma in config.votes.sigmas:
        head = train_head(
            denoiser,
            images[~held],
            labels[~held],
            sigma,
            data.num_classes,
            recipe,
            lambda done, total, loss: print(f"\r{done}/{total} loss {loss:.3f}", end=""),
        )
        noise = torch.randn(images[held].shape, generator=torch.Generator().manual_seed(1))
        noisy = to_model_image(images[held] + sigma * noise)
        features = noisy_features(denoiser, head, noisy, sigma)
        temperature = fit_temperature(head, features, labels[held])
        right = (head(features).argmax(dim=1) == labels[held]).float().mean()
        print(f"\rsigma {sigma:g}: temperature {temperature:.2f}, right {right:.2%} of held out")
        asked = {"rule": "shortlist", "head": str(options.output)}
        raced = config.model_copy(
            update={
                "sift": config.sift.model_copy(update=asked),
                "votes": config.votes.model_copy(update={"seed": RACE_SEED}),
            }
        )
        base = base_classifier(raced, conditional, sigma, unconditional=denoiser, head=head)
        ids = data.ids[held.numpy()][: options.races]
        each = -(-options.races // len(ids))
        head.lag_prior, pairs = measured_lag_prior(base, data.image, ids.tolist(), each)
        print(f"sigma {sigma:g}: {pairs} pairs of classes raced, {head.lag_prior}")
        heads[sigma] = head
    save_heads(
        options.output,
        heads,
        denoiser=checkpoint_sha256(file.source),
        image_shas=[data.image_sha(int(i)) for i in data.ids],
        recipe={"copies": options.copies, "hidden": options.hidden, "seed": options.seed},
        raced=raced_with(config),
    )
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
