"""Training of the head that proposes classes for a vote, on noisy copies of labelled images.

Shape letters: N images, B samples, C H W image, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from diffcert_ray.conventions import to_model_space
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.method.diffusion_classifier import to_model_image

OnProgress = Callable[[int, int, float], None]
"""on_progress(noisy images seen, noisy images in all, loss)."""

POOL_ROWS = 8192  # noisy images whose features are drawn together and learned from in turn
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW remembers of a tensor


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


class HeadTraining:
    """Training by cross entropy, a pool of noisy copies at a time; it may be stored in between.

    What a pool holds follows from the recipe and its number alone, so that a training that goes on
    elsewhere ends with the head that it would have had.

    Args:
        denoiser: with an unconditional mode; it is not changed.
        images: pixels in [0, 1], float32 [N, C, H, W].
        labels: int64 [N].
        sigma: smoothing noise, pixel units.
        num_classes: K.
        recipe: how.
        state: what ``state`` gave, or None to begin.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        labels: Tensor,
        sigma: float,
        num_classes: int,
        recipe: HeadRecipe,
        state: bytes | None = None,
    ) -> None:
        self._denoiser, self._images, self._labels = denoiser, images, labels
        self._sigma, self._recipe = sigma, recipe
        self._head = new_head(denoiser, num_classes, sigma, recipe)
        self._optimiser = torch.optim.AdamW(
            self._head.layers.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.total = recipe.copies * len(images)
        self._steps = max(1, self.total * recipe.epochs // recipe.batch)
        self._pool = self._step = 0
        self.loss = math.nan
        if state is not None:
            self._restore(state)

    @property
    def done(self) -> int:
        """Noisy images learned from, of ``total``."""
        return min(self._pool * POOL_ROWS, self.total)

    @property
    def finished(self) -> bool:
        """Whether all have been."""
        return self.done >= self.total

    @property
    def head(self) -> ShortlistHead:
        """The head as it is, in evaluation mode."""
        return self._head.eval().requires_grad_(False)

    def advance(self) -> None:
        """Learn from the next pool."""
        head, recipe, rows = self._head, self._recipe, self._rows(self._pool)
        generator = _generator(recipe.seed, "pool", self._pool)
        noise = torch.randn(self._images[rows].shape, generator=generator)
        noisy = to_model_image(self._images[rows] + self._sigma * noise).to(head.mean.device)
        features = noisy_features(self._denoiser, head, noisy, self._sigma)
        answers = self._labels[rows].to(features.device)
        if self._pool == 0:
            _standardise(head, features)
        for _ in range(recipe.epochs):
            for part in torch.randperm(len(rows), generator=generator).split(recipe.batch):
                part = part.to(features.device)
                half = (1 + math.cos(math.pi * min(self._step / self._steps, 1.0))) / 2
                self._optimiser.param_groups[0]["lr"] = recipe.learning_rate * half
                loss = F.cross_entropy(head.logits(features[part]), answers[part])
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
                self._step += 1
        self._pool += 1
        self.loss = loss.item()

    def state(self) -> bytes:
        """Where it stands, as safetensors."""
        tensors = {f"head.{name}": tensor for name, tensor in self._head.state_dict().items()}
        for number, about in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": about[name] for name in _MOMENTS}
        facts = {"pool": self._pool, "step": self._step, "loss": self.loss}
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return save(held, metadata={"training": json.dumps(facts)})

    def _restore(self, state: bytes) -> None:
        facts = json.loads(_metadata(state)["training"])
        self._pool, self._step, self.loss = facts["pool"], facts["step"], facts["loss"]
        tensors = load(state)
        own = {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}
        self._head.load_state_dict(own)
        about = self._optimiser.state_dict()
        numbers = about["param_groups"][0]["params"]
        about["state"] = {n: {m: tensors[f"adam.{n}.{m}"] for m in _MOMENTS} for n in numbers}
        self._optimiser.load_state_dict(about)

    def _rows(self, pool: int) -> Tensor:
        """Image numbers of a pool's noisy copies: each image once in each copy, in its order."""
        count, start = len(self._images), pool * POOL_ROWS
        stop = min(start + POOL_ROWS, self.total)
        copies = range(start // count, (stop - 1) // count + 1)
        orders = [
            torch.randperm(count, generator=_generator(self._recipe.seed, "copy", copy))
            for copy in copies
        ]
        first = copies[0] * count
        return torch.cat(orders)[start - first : stop - first]


def train_head(
    denoiser: Denoiser,
    images: Tensor,
    labels: Tensor,
    sigma: float,
    num_classes: int,
    recipe: HeadRecipe,
    on_progress: OnProgress | None = None,
) -> ShortlistHead:
    """Train a head from beginning to end.

    Args as `HeadTraining`; ``on_progress`` is called after each pool of features.

    Returns:
        The head, in evaluation mode; equal seeds give equal weights on one machine.
    """
    training = HeadTraining(denoiser, images, labels, sigma, num_classes, recipe)
    while not training.finished:
        training.advance()
        if on_progress is not None:
            on_progress(training.done, training.total, training.loss)
    return training.head


def _generator(seed: int, use: str, number: int) -> torch.Generator:
    """What is drawn for one use depends on no other."""
    entropy = [seed, int.from_bytes(use.encode(), "little"), number]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def _metadata(state: bytes) -> dict[str, str]:
    """What a safetensors file says of itself."""
    length = int.from_bytes(state[:8], "little")
    found: dict[str, str] = json.loads(state[8 : 8 + length])["__metadata__"]
    return found


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
