"""Small trainings: a configuration of a moment, and a dataset whose classes are easy to tell."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffcert_ray.config.training import load_classifier_training, load_denoiser_training
from diffcert_ray.config.training_tables import ClassifierTraining, DenoiserTraining
from diffcert_ray.datasets import Dataset

SIDE, CLASSES = 8, 3


def stripes(number: int = 24, side: int = SIDE, seed: int = 0) -> Dataset:
    """Images of three classes: bright above, bright on the left, bright on a diagonal."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % CLASSES
    y, x = np.mgrid[:side, :side]
    bright = np.stack([y < side // 2, x < side // 2, y > x])[labels]
    levels = np.where(bright, 200, 40) + rng.integers(-30, 30, (number, side, side))
    pixels = (levels[:, None] / np.float32(255)).astype(np.float32)
    names = ("above", "left", "below")
    return Dataset("stripes", "train", np.arange(number), labels, pixels, names, f"{side} {seed}")


def folder_of(data: Dataset, folder: Path) -> Path:
    """The same images as a folder with one sub-folder for each class."""
    for image_id, label in zip(data.ids.tolist(), data.labels.tolist(), strict=True):
        path = folder / "train" / f"{label}-{data.class_names[label]}" / f"{image_id:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.rint(data.image(image_id) * 255).astype(np.uint8)
        Image.fromarray(levels[0]).save(path)
    return folder


def denoiser_training(*overrides: str) -> DenoiserTraining:
    """A training of 12 steps of a small network."""
    small = {"steps": 12, "batch": 8, "warmup_steps": 2, "device": "cpu"}
    tables = {"network": {"model_channels": 4, "channel_mult": [1]}, "training": small}
    return load_denoiser_training(tables, overrides)


def classifier_training(*overrides: str) -> ClassifierTraining:
    """The same for a classifier."""
    small = {"steps": 12, "batch": 8, "device": "cpu"}
    return load_classifier_training({"training": small}, overrides)


def stopping_after(calls: int):
    """What says stop when it is asked once more than so many times."""
    asked = iter(range(calls))
    return lambda: next(asked, None) is None
