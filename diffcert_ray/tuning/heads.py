"""The heads of a configuration trained a step at a time: here or on workers, stored in between."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffcert_ray.checkpoints.head_file import load_heads, raced_with, save_heads
from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import set_up_torch
from diffcert_ray.denoisers.shortlist_head import ShortlistHead
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.diffusion_classifier import to_model_image
from diffcert_ray.storage.location import Location
from diffcert_ray.tools.head_training import (
    HeadRecipe,
    HeadTraining,
    fit_temperature,
    noisy_features,
)
from diffcert_ray.tools.lag_measurement import measured_lag_prior

STEP_S = 30.0  # of training between two stored states
FITTING_ROWS = 2048  # noisy images that a temperature is fitted on, about
STATES = "heads"  # the folder that they are in

OnHead = Callable[[float, "HeadStep"], None]
"""on_head(sigma, where its training stands)."""


@dataclass(frozen=True)
class HeadStep:
    """Where the training of one head stands.

    Attributes:
        state: of `HeadTraining`.
        done: noisy images learned from.
        total: of so many.
        loss: of the last step.
    """

    state: bytes
    done: int
    total: int
    loss: float

    @property
    def finished(self) -> bool:
        """Whether nothing is left to learn from."""
        return self.done >= self.total


@dataclass(frozen=True)
class HeadFitted:
    """A finished head.

    Attributes:
        file: a file of this head alone (`checkpoints.head_file`).
        temperature: by which its logits were divided.
        right: share of noisy images, not trained on, that its likeliest class is right on.
        pairs: of classes that its prior of lags was measured on.
    """

    file: bytes
    temperature: float
    right: float
    pairs: int


@dataclass(frozen=True)
class HeadJob:
    """What a worker needs to train a head; small enough to send, unless objects are given.

    Attributes:
        spec: networks and images, by the rule shortlist, whose head need not exist.
        head_ids: images to train on.
        screening_ids: images that the temperature is fitted on, and the prior of lags.
        sigma: pixel units.
        num_classes: K.
        recipe: how.
        races: votes that the prior of lags is measured on.
        state: where to go on, or None.
    """

    spec: WorkerSpec
    head_ids: tuple[int, ...]
    screening_ids: tuple[int, ...]
    sigma: float
    num_classes: int
    recipe: HeadRecipe
    races: int
    state: bytes | None = None

    def training(self) -> HeadTraining:
        """The training as it stands, in this process."""
        set_up_torch()
        images, labels = self._labelled(self.head_ids)
        network = self._networks()[1]
        return HeadTraining(
            network, images, labels, self.sigma, self.num_classes, self.recipe, self.state
        )

    def step(self) -> HeadStep:
        """Train for some time."""
        return advanced(self.training())

    def fitted(self) -> HeadFitted:
        """The finished head with its temperature and prior of lags."""
        conditional, network = self._networks()
        images, labels = self._labelled(self.screening_ids)
        head = self.training().head
        copies = max(1, FITTING_ROWS // len(images))
        generator = torch.Generator().manual_seed(self.recipe.seed + 1)
        rows = torch.arange(len(images)).repeat(copies)
        noise = torch.randn((len(rows), *images.shape[1:]), generator=generator)
        noisy = to_model_image(images[rows] + self.sigma * noise).to(head.mean.device)
        features = noisy_features(network, head, noisy, self.sigma)
        answers = labels[rows].to(features.device)
        right = float((head.logits(features).argmax(dim=1) == answers).float().mean())
        temperature = fit_temperature(head, features, answers)
        base = base_classifier(
            self.spec.config,
            conditional,
            self.sigma,
            unconditional=network,
            head=head,
            device=self.spec.device,
        )
        ids = self.screening_ids[: self.races]
        image = self.spec.images().image
        head.lag_prior, pairs = measured_lag_prior(base, image, ids, -(-self.races // len(ids)))
        file = _as_file({self.sigma: head}, raced=raced_with(self.spec.config))
        return HeadFitted(file, temperature, right, pairs)

    def _networks(self) -> tuple[Denoiser, Denoiser]:
        """The conditional network, and that of the unconditional step, as [numerics] says."""
        conditional = self.spec.network("denoiser")
        return conditional, self.spec.unconditional(conditional) or conditional

    def _labelled(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        data = self.spec.images()
        labels = dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))
        pixels = np.stack([data.image(i) for i in ids])
        return torch.from_numpy(pixels), torch.tensor([labels[i] for i in ids])


def head_config(config: Config) -> Config:
    """The configuration that heads are trained with: the rule is theirs, they do not exist yet."""
    sift = SiftConfig(rule="shortlist", head="to be trained")
    return config.model_copy(update={"sift": sift})


def advanced(training: HeadTraining) -> HeadStep:
    """Train until it is time to store what there is."""
    until = time.monotonic() + STEP_S
    while not training.finished:
        training.advance()
        if time.monotonic() >= until:
            break
    return HeadStep(training.state(), training.done, training.total, training.loss)


def here(
    jobs: Sequence[HeadJob], should_stop: Callable[[], bool]
) -> Iterator[tuple[int, HeadStep | HeadFitted]]:
    """Train in this process, one head after the other; yields as `on_cluster`."""
    for position, job in enumerate(jobs):
        training = job.training()
        while not training.finished and not should_stop():
            yield position, advanced(training)
        if should_stop():
            return
        yield position, replace(job, state=training.state()).fitted()


def on_cluster(
    jobs: Sequence[HeadJob], should_stop: Callable[[], bool], *, gpus: float, limit_s: float
) -> Iterator[tuple[int, HeadStep | HeadFitted]]:
    """Train on workers of a Ray that this process is connected to, all heads side by side.

    Yields:
        (position of the job, where it stands), and at the end of each the finished head; nothing
        more once ``should_stop``.
    """
    from diffcert_ray.pool.on_ray.tasks import on_workers

    left = dict(enumerate(jobs))
    finished: set[int] = set()
    while left and not should_stop():
        positions = list(left)
        works = [left[p].fitted if p in finished else left[p].step for p in positions]
        options: dict[str, Any] = {"gpus": gpus, "limit_s": limit_s, "should_stop": should_stop}
        for which, found in on_workers(works, **options):
            position = positions[which]
            yield position, found
            if isinstance(found, HeadFitted):
                del left[position]
                continue
            left[position] = replace(left[position], state=found.state)
            if found.finished:
                finished.add(position)


class StoredHeads:
    """What an output folder holds of heads under way and finished.

    Args:
        location: the folder.
    """

    def __init__(self, location: Location) -> None:
        self._location = location

    def state(self, sigma: float) -> bytes | None:
        """The last stored state of a training, or None."""
        names = self._states(sigma)
        return self._location.read(names[-1]) if names else None

    def put_state(self, sigma: float, step: HeadStep) -> None:
        """Store a state; earlier ones go."""
        before = self._states(sigma)
        with suppress(FileExistsError):  # another driver of this tuning was as far
            self._location.create(f"{STATES}/{sigma!r}-{step.done:012d}.state", step.state)
        for name in before:
            self._location.delete(name)

    def fitted(self, sigma: float) -> bytes | None:
        """The file of a finished head, or None."""
        name = _fitted_name(sigma)
        return self._location.read(name) if self._location.exists(name) else None

    def put_fitted(self, sigma: float, file: bytes) -> None:
        """Store a finished head; its states go."""
        with suppress(FileExistsError):
            self._location.create(_fitted_name(sigma), file)
        for name in self._states(sigma):
            self._location.delete(name)

    def _states(self, sigma: float) -> list[str]:
        names = self._location.list(STATES)
        return [n for n in names if n.startswith(f"{STATES}/{sigma!r}-") and n.endswith(".state")]


def _fitted_name(sigma: float) -> str:
    return f"{STATES}/{sigma!r}.safetensors"


def joined_heads(
    files: Iterable[bytes],
    *,
    denoiser: str,
    image_shas: Iterable[str],
    recipe: dict[str, Any],
    raced: dict[str, Any],
) -> bytes:
    """One file of the heads of some files; further arguments as `save_heads`."""
    heads: dict[float, ShortlistHead] = {}
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "one.safetensors")
            path.write_bytes(file)
            heads |= load_heads(str(path))
    return _as_file(heads, denoiser=denoiser, image_shas=image_shas, recipe=recipe, raced=raced)


def _as_file(
    heads: dict[float, ShortlistHead],
    *,
    denoiser: str = "",
    image_shas: Iterable[str] = (),
    recipe: dict[str, Any] | None = None,
    raced: dict[str, Any],
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "heads.safetensors")
        save_heads(
            path,
            heads,
            denoiser=denoiser,
            image_shas=image_shas,
            recipe=recipe or {},
            raced=raced,
        )
        return path.read_bytes()
