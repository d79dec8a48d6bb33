"""How often a vote of the rule `shortlist` is the vote of all classes, and what it costs.

    python jobs/shortlist_agreement.py --sigma 0.25 --votes 20000 --device cuda
    python jobs/shortlist_agreement.py --preset glyphs --images 400 --votes 400

Votes of test images, of seed 1, by the rule that they are compared with and by settings of this
rule on the same noise. Digits are compared with `exact` (the full vote, bit for bit); the 1,000
classes of glyphs with the race of all of them, since a full vote takes 126,001 evaluations (one of
these takes 1,030), or with `exact` by --full. Intervals are exact binomial ones, as if votes of an
image were independent.
"""

import argparse
import sys
import time
from collections.abc import Mapping

import numpy as np
from scipy.stats import beta

from diffcert_ray.certificates.radius import certificate
from diffcert_ray.checkpoints.head_file import load_heads
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.device import set_up_torch
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.votes.units import Item, Part, Unit

RADIUS = 0.25  # with alpha 0.001, which takes 40 votes and more
RACE = ("sift.rule=paired-z", "sift.z=2.5", "sift.first_level=0.72")
GLYPHS = {"preset glyphs": (), "z 2.25": ("sift.z=2.25",), "least_p 0.03": ("sift.least_p=0.03",)}
SETTINGS = {
    0.25: {
        "preset digits": (),
        "z 1.4, least_p 0.02": ("sift.z=1.4", "sift.least_p=0.02"),
        "z 2.25": ("sift.z=2.25",),
        "z 1.25, least_p 0.05": ("sift.z=1.25", "sift.least_p=0.05"),
        "all classes race": RACE,
    },
    0.5: {
        "z 1.9, first_level 0.72, least_p 0.03": (
            "sift.z=1.9",
            "sift.first_level=0.72",
            "sift.least_p=0.03",
        ),
        "preset digits": (),
    },
}


def certified(right: np.ndarray, each: int, sigma: float) -> float:
    """Share of images whose votes for the label, ``each`` in a row, certify more than RADIUS."""
    counts = right.reshape(-1, each).sum(axis=1)
    return float(np.mean([certificate(int(k), each, sigma=sigma).radius > RADIUS for k in counts]))


def compare(
    images: Mapping[int, np.ndarray],
    labels: Mapping[int, int],
    sigma: float,
    votes: int,
    device: str,
    preset: str = "digits",
    *,
    full_vote: bool = True,
) -> None:
    """Cast votes by every setting on the same noise, and print a line for each."""
    each = -(-votes // len(images))
    parts = [Part(Unit(sigma, i, "estimate", 0, each), 0, each) for i in images]
    label = np.repeat([labels[i] for i in images], each)
    full: np.ndarray | None = None
    compared = {"exact": ("sift.rule=exact",)} if full_vote else {"all classes race": RACE}
    settings = SETTINGS[sigma] if preset == "digits" else GLYPHS
    for name, overrides in (compared | settings).items():
        asked = [f"votes.sigmas=[{sigma}]", "numerics.batch=512", *overrides]
        config = load_config(preset, asked)
        network = load_denoiser(config.model.checkpoint or "", device=device)
        head = load_heads(config.sift.head, device=device)[sigma] if config.sift.head else None
        base = base_classifier(config, network, sigma, head=head, device=device)
        begun = time.perf_counter()
        won, nfe = evaluate_votes(base, Item(0, sigma, tuple(parts)), images.__getitem__)
        seconds = time.perf_counter() - begun
        full = won if full is None else full
        same, n = int((won == full).sum()), len(won)
        low = beta.ppf(0.025, same, n - same + 1)
        high = beta.ppf(0.975, same + 1, n - same) if same < n else 1.0
        print(
            f"sigma {sigma:g} {name}: {n:,} votes, {nfe / n:.2f} NFE a vote, equal {same / n:.2%} "
            f"({low:.2%} to {high:.2%}), right {(won == label).mean():.2%}, "
            f"{certified(won == label, each, sigma):.1%} certified at {RADIUS}, {seconds:.0f} s",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    """Read the images, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sigma", type=float, default=0.25, choices=tuple(SETTINGS))
    parser.add_argument("--votes", type=int, default=20000)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--preset", default="digits", choices=("digits", "glyphs"))
    parser.add_argument("--images", type=int, help="the first ones; by default all")
    parser.add_argument("--full", action="store_true", help="compare glyphs with the full vote")
    options = parser.parse_args(arguments)
    if options.preset == "glyphs" and options.sigma != 0.25:
        parser.error("the head of glyphs is for --sigma 0.25")
    set_up_torch()
    data = load_dataset({"name": options.preset.partition("-")[0], "split": "test"})
    ids = data.ids.tolist()[: options.images]
    images, labels = {i: data.image(i) for i in ids}, dict(zip(ids, data.labels, strict=False))
    full = options.full or options.preset == "digits"
    asked = (options.sigma, options.votes, options.device, options.preset)
    compare(images, labels, *asked, full_vote=full)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
