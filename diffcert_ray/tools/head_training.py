"""Training of the head that proposes classes for a vote, on noisy copies of labelled images.

Shape letters: N images, B samples, C H W image, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcert_ray.conventions import to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.method.diffusion_classifier import to_model_image

OnProgress = Callable[[int, int, float], None]
"""on_progress(noisy images seen, noisy images in all, loss)."""

POOL_ROWS = 8192  # noisy images whose features are drawn together and learned from in turn


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained.

    Attributes:
        copies: noisy copies of each image: one evaluation of the denoiser each.
        epochs: times that each noisy copy is learned from.
        batch: noisy copies per step of Adam.
        learning_rate: its peak, left by a half cosine to zero.
        weight_decay: decoupled (AdamW).
        grid: activations are averaged to so many rows and columns.
        hidden: units of a hidden layer; 0: the head is linear.
        seed: of the first weights and of everything drawn while training.
    """

    copies: int = 40
    epochs: int = 4
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    grid: int = 4
    hidden: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.copies, self.epochs, self.batch) < 1:
            raise ValueError(
                f"copies is {self.copies}, epochs {self.epochs}, batch {self.batch}: each must be "
                "at least 1"
            )


def noisy_features(
    denoiser: Denoiser, head: ShortlistHead, noisy: Tensor, sigma: float, *, batch: int = 256
) -> Tensor:
    """What the head looks at after one unconditional step from noisy images.

    Args:
        denoiser: with an unconditional mode.
        head: says how activations are pooled.
        noisy: noisy images, model space [B, C, H, W].
        sigma: smoothing noise in them, pixel units.
        batch: rows evaluated at once.

    Returns:
        float32 [B, features].
    """
    call, s_tau = with_bottom(denoiser), to_model_space(sigma)
    found = []
    with torch.no_grad():
        for rows in noisy.split(batch):
            s = rows.new_full((len(rows),), s_tau)
            found.append(head.pooled(*call(rows, s, None)))
    return torch.cat(found)


def new_head(
    denoiser: Denoiser, num_classes: int, sigma: float, recipe: HeadRecipe
) -> ShortlistHead:
    """An untrained head for a denoiser, shaped by one evaluation of it."""
    device = next(iter(getattr(denoiser, "parameters", lambda: [])()), torch.zeros(1)).device
    with torch.no_grad():
        blank = torch.zeros((1, *denoiser.image_shape), device=device)
        s = blank.new_full((1,), to_model_space(sigma))
        estimate, bottom = with_bottom(denoiser)(blank, s, None)
    shape = (estimate.shape[1], estimate.shape[2], estimate.shape[3])
    inner = None if bottom is None else (bottom.shape[1], bottom.shape[2], bottom.shape[3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = ShortlistHead(num_classes, shape, inner, recipe.grid, recipe.hidden)
    return head.to(device)


def train_head(
    denoiser: Denoiser,
    images: Tensor,
    labels: Tensor,
    sigma: float,
    num_classes: int,
    recipe: HeadRecipe,
    on_progress: OnProgress | None = None,
) -> ShortlistHead:
    """Train a head on noisy copies of images, by cross entropy.

    Args:
        denoiser: with an unconditional mode; it is not changed.
        images: pixels in [0, 1], float32 [N, C, H, W].
        labels: int64 [N].
        sigma: smoothing noise, pixel units.
        num_classes: K.
        recipe: how.
        on_progress: called after each pool of features.

    Returns:
        The head, in evaluation mode; equal seeds give equal weights on one machine.
    """
    head = new_head(denoiser, num_classes, sigma, recipe)
    device = head.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW(
        head.layers.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    total = recipe.copies * len(images)
    steps = max(1, total * recipe.epochs // recipe.batch)
    done = step = 0
    for rows in _pools(len(images), recipe.copies, generator):
        noise = torch.randn(images[rows].shape, generator=generator)
        noisy = to_model_image(images[rows] + sigma * noise).to(device)
        features = noisy_features(denoiser, head, noisy, sigma)
        answers = labels[rows].to(device)
        if not done:
            _standardise(head, features)
        loss = torch.zeros(())
        for _ in range(recipe.epochs):
            for part in torch.randperm(len(rows), generator=generator).split(recipe.batch):
                part = part.to(device)
                half = (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
                optimiser.param_groups[0]["lr"] = recipe.learning_rate * half
                loss = F.cross_entropy(head.logits(features[part]), answers[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                step += 1
        done += len(rows)
        if on_progress is not None:
            on_progress(done, total, loss.item())
    return head.eval().requires_grad_(False)


def _pools(images: int, copies: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Image numbers of the noisy copies, each image in each copy once, a pool at a time."""
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(copies):
        waiting = torch.cat([waiting, torch.randperm(images, generator=generator)])
        while len(waiting) >= POOL_ROWS:
            yield waiting[:POOL_ROWS]
            waiting = waiting[POOL_ROWS:]
    if len(waiting):
        yield waiting


def _standardise(head: ShortlistHead, features: Tensor) -> None:
    """Let the head see features of mean 0 and variance 1, as far as the first pool tells."""
    head.mean.copy_(features.mean(dim=0))
    head.scale.copy_(1.0 / (features.std(dim=0) + 1e-3))


def fit_temperature(head: ShortlistHead, features: Tensor, labels: Tensor) -> float:
    """Divide the head's logits by the temperature that makes its probabilities most likely.

    Args:
        head: changed in place.
        features: of noisy copies of images that it was not trained on [B, features].
        labels: int64 [B].

    Returns:
        The temperature: above 1 where the head was too sure.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2.
    """
    with torch.no_grad():
        logits = head.logits(features).double()
        choices = torch.logspace(-1, 1, 201, dtype=torch.float64)
        losses = torch.stack([F.cross_entropy(logits / t, labels) for t in choices.tolist()])
        temperature = float(choices[losses.argmin()])
        last = head.layers[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.div_(temperature)
        last.bias.div_(temperature)
    return temperature
