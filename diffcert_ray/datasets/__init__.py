"""Datasets: which images there are, their stable ids, pixels and labels."""

from diffcert_ray.datasets.checked import Checked, as_expected, check_images
from diffcert_ray.datasets.dataset import Dataset
from diffcert_ray.datasets.loading import load_dataset

__all__ = [
    "Checked",
    "Dataset",
    "as_expected",
    "check_images",
    "load_dataset",
]
