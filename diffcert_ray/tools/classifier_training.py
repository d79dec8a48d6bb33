"""Training of the small noise-trained classifier that ships for the digits.

Shape letters: B samples, C H W image.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from diffcert_ray.checkpoints.image_classifier import CONVNET, METADATA_KEY, digits_convnet
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.dataset import all_images
from diffcert_ray.tools.training import OnProgress


@dataclasses.dataclass(frozen=True)
class ClassifierRecipe:
    """How the classifier is trained.

    Attributes:
        sigma: Gaussian noise added to every training image, pixel units.
        steps: steps of Adam.
        batch: images per step, drawn with replacement.
        seed: of the first weights and of everything drawn while training.
        learning_rate: its peak, left by a half cosine to zero.
        weight_decay: decoupled (AdamW).
    """

    sigma: float = 0.25
    steps: int = 2000
    batch: int = 64
    seed: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.sigma >= 0:
            raise ValueError(
                f"steps is {self.steps}, batch {self.batch}, sigma {self.sigma}: steps and batch "
                "must be at least 1, sigma at least 0"
            )


def train_classifier(
    network: nn.Module,
    dataset: Dataset,
    recipe: ClassifierRecipe,
    on_progress: OnProgress | None = None,
) -> nn.Module:
    """Train a classifier on noisy images, in place; equal seeds give equal weights on one machine.

    Args:
        network: takes noisy images [B, C, H, W] in pixel units, returns logits.
        dataset: the images to learn from, all of them.
        recipe: how; its seed rules what is drawn, not the first weights.
        on_progress: called after every step with the steps done and the loss.

    Returns:
        The network, in evaluation mode.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.3: cross-entropy on
    Gaussian-noised images.
    """
    images, labels = torch.tensor(all_images(dataset)), torch.tensor(dataset.labels)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW(
        network.train().parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for step in range(recipe.steps):
        half = (1 + math.cos(math.pi * step / recipe.steps)) / 2
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * half
        rows = torch.randint(len(images), (recipe.batch,), generator=generator)
        noise = torch.randn(images[rows].shape, generator=generator)
        loss: Tensor = F.cross_entropy(network(images[rows] + recipe.sigma * noise), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if on_progress is not None:
            on_progress(step + 1, loss.item())
    return network.eval()


def train_digits_classifier(
    output: str | Path,
    recipe: ClassifierRecipe | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train the digits classifier on the training split, on one thread, and write it.

    Recipe (by default the shipped file's), architecture, torch's version, the dataset's fingerprint
    and the seconds taken stand in the metadata of the .safetensors file.

    Raises:
        ValueError: the output is no .safetensors file.
    """
    path, recipe = Path(output), recipe or ClassifierRecipe()
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"output is {str(output)!r}: name a .safetensors file in a folder there is"
        )
    dataset = load_dataset({"name": "digits", "split": "train"})
    started, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = digits_convnet(dataset.num_classes)
        train_classifier(network, dataset, recipe, on_progress)
    finally:
        torch.set_num_threads(threads)
    about = {
        "architecture": CONVNET,
        "recipe": dataclasses.asdict(recipe),
        "dataset": f"{dataset.name} {dataset.split}",
        "dataset_fingerprint": dataset.fingerprint,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 1),
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, {METADATA_KEY: json.dumps(about)})
    return path
