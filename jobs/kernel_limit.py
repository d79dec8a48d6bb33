"""What certified accuracy the digits allow: the exact classifier of the training images.

    python jobs/kernel_limit.py [--first 100] [--sigma 0.25] [--votes 1000]

The base classifier here needs no network: with the training images (and some blur around each)
taken for the whole distribution of their classes, the posterior probability of each class given a
noisy image is a sum of Gaussian kernels. This is what a denoiser that has learned its training set
perfectly amounts to. The table gives its certified accuracy with the same n and alpha as the preset
`digits`, so that the preset's figures can be read against what 1437 training images allow.
"""

import argparse
import sys

import numpy as np
import pandas as pd

from diffcert_ray import certificate
from diffcert_ray.datasets import load_dataset


def kernel_votes(
    noisy: np.ndarray, images: np.ndarray, labels: np.ndarray, variance: float
) -> np.ndarray:
    """The most probable class of each noisy image under kernels around the training images.

    Args:
        noisy: [V, D], pixel units.
        images: [N, D], training images.
        labels: int64 [N].
        variance: of each kernel, smoothing noise included.
    """
    squares = (noisy**2).sum(1)[:, None] - 2 * noisy @ images.T + (images**2).sum(1)
    exponent = -squares / (2 * variance)
    kernels = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    scores = np.stack([kernels[:, labels == c].sum(axis=1) for c in range(10)], axis=1)
    return scores.argmax(axis=1)


def main(arguments: list[str]) -> int:
    """Vote, certify, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=100, help="test images")
    parser.add_argument("--sigma", type=float, default=0.25, help="smoothing noise")
    parser.add_argument("--votes", type=int, default=1000)
    parser.add_argument("--blur", type=float, nargs="+", default=[0.0, 0.1, 0.15, 0.2])
    parser.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    options = parser.parse_args(arguments)
    train = load_dataset({"name": "digits", "split": "train"})
    test = load_dataset({"name": "digits", "split": "test", "first": options.first})
    images = np.asarray(train.pixels).reshape(len(train), -1)
    rows = []
    for blur in options.blur:
        rng, radii, hits = np.random.default_rng(0), [], 0
        for clean, label in zip(np.asarray(test.pixels), test.labels, strict=True):
            noise = rng.standard_normal((options.votes, clean.size), dtype=np.float32)
            noisy = clean.reshape(-1) + np.float32(options.sigma) * noise
            votes = kernel_votes(noisy, images, train.labels, options.sigma**2 + blur**2)
            n_a = int((votes == label).sum())
            found = certificate(n_a, options.votes, sigma=options.sigma)
            radii.append(-1.0 if found.abstained else found.radius)
            hits += n_a
        row: dict[str, object] = {"blur": blur, "votes right": hits / (options.votes * len(test))}
        row |= {f"r = {r:g}": float(np.mean([x >= r for x in radii])) for r in options.radii}
        rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
