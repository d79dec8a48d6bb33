"""Small exact worlds as datasets: the oracle of every test that runs votes end to end."""

import hashlib

import numpy as np

from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import Dataset
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.tools.exact_worlds import GaussianClasses, gaussian_world, labelled_images
from diffcert_ray.votes.units import Item, Part, Unit

SETTINGS = {
    "name": "world",
    "noise_levels": {"levels": 24},
    "votes": {"n0": 20, "n": 60, "unit": 20, "radii": [0.0, 0.1]},
    "numerics": {"batch": 32},
}


def small_world(
    images: int = 6, classes: int = 4, dimensions: int = 16, seed: int = 0
) -> tuple[GaussianClasses, Dataset]:
    """Gaussian classes with their exact denoiser, and labelled images drawn from them."""
    side = round(dimensions**0.5)
    world = gaussian_world(classes, dimensions, 0.3, 0.25, seed, image_shape=(1, side, side))
    u, labels = labelled_images(world, images, seed)
    pixels = ((u + 1) / 2).float().clamp(0, 1).numpy()
    names = tuple(str(k) for k in range(classes))
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    ids = np.arange(100, 100 + images)  # ids are not positions
    return world, Dataset("world", "test", ids, labels.numpy(), pixels, names, digest)


def settings(**tables: object) -> dict:
    """SETTINGS with keys of its tables replaced: settings(votes={"n": 100})."""
    merged: dict = {k: dict(v) if isinstance(v, dict) else v for k, v in SETTINGS.items()}
    for name, table in tables.items():
        merged[name] = merged.get(name, {}) | table if isinstance(table, dict) else table
    return merged


def check_same(run, clean) -> None:
    """The same counts and certificates as those of another run."""
    assert counts_of(run) == counts_of(clean)
    columns = ["image_id", "predicted", "radius", "n_a", "n"]
    assert run.certificates()[columns].equals(clean.certificates()[columns])


def world_spec(images: int = 6) -> WorkerSpec:
    """What a worker loads to evaluate items of a small world."""
    world, dataset = small_world(images)
    config = load_config(settings())
    return WorkerSpec(config, weights_of(config, world), denoiser=world, dataset=dataset)


def world_items(count: int = 6, votes: int = 20) -> list[Item]:
    """An item for each of the first images of a small world."""
    units = [Unit(0.25, image, "select", 0, votes) for image in range(100, 100 + count)]
    return [Item(n, 0.25, (Part(unit, 0, votes),)) for n, unit in enumerate(units)]


def counts_of(run) -> dict:
    """Every stored unit's counts by key: what must be equal whatever happens."""
    units = run.units()
    keys = zip(
        units["sigma"],
        units["image_id"],
        units["stream"],
        units["start"],
        units["stop"],
        strict=True,
    )
    counts = [
        dict(zip(c.tolist(), n.tolist(), strict=True))
        for c, n in zip(units["classes"], units["counts"], strict=True)
    ]
    return dict(zip(keys, counts, strict=True))
