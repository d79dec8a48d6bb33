"""One worker: networks loaded once, images by id, items evaluated; in Ray or in-process."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffcert_ray.checkpoints.head_file import load_heads
from diffcert_ray.checkpoints.image_classifier import load_classifier
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset, as_expected, load_dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import (
    check_device,
    compilation_failures,
    compile_denoiser,
    compiled_how,
    device_model,
    device_name,
    keep_channels_last,
    no_compiler,
    set_up_torch,
)
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead
from diffcert_ray.engine import too_large
from diffcert_ray.engine.compile_once import first_alone
from diffcert_ray.engine.denoising_check import denoising_errors, refuse_poor
from diffcert_ray.engine.losses import evaluate_loss_item
from diffcert_ray.engine.networks import DiffusionNetworks, HeadNetworks, Networks, TrainedNetworks
from diffcert_ray.engine.votes import evaluate_item
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.from_config import lowest_visited
from diffcert_ray.plain.plan import plain_levels
from diffcert_ray.plain.units import LossItem, LossResult
from diffcert_ray.votes.units import Item, Result

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to load; small enough to send, unless objects are given.

    Args:
        config: the run's configuration, with final [numerics].
        weights: sha256 of each checkpoint by role; another file on a worker is refused.
        denoiser: a denoiser object in place of ``config.model`` (Python API, oracle worlds).
        dataset: a dataset object in place of ``config.dataset``.
        classifier: a torch module in place of ``config.classifier``'s file and architecture.
        fingerprint: of the driver's dataset; another one on a worker is refused. None: the worker
            is in the process that read the images.
        image_shas: hash of the driver's pixels by image id, where the fingerprint does not cover
            pixels; an image with another one is refused when it is read.
    """

    config: Config
    weights: Mapping[str, str]
    device: str = "cpu"
    denoiser: Denoiser | None = None
    dataset: Dataset | None = None
    classifier: nn.Module | None = None
    fingerprint: str | None = None
    image_shas: Mapping[int, str] = field(default_factory=dict)

    def load(self, name: str, *, tried: bool = True) -> "Worker":
        """Load networks and images in this process.

        Args:
            name: of the worker.
            tried: refuse networks that do not denoise, where the configuration asks for it.

        Raises:
            ValueError: there is no such device here, a checkpoint or dataset is missing or
                another one than the driver's, or a network does not denoise.
        """
        check_device(self.device, name)
        numerics = self.config.numerics
        set_up_torch(numerics.dtype)
        dataset = self.images()
        if not numerics.compile:
            return self._worker(name, dataset, tried=tried)
        model = device_model(self.device)
        with first_alone(f"{sorted(self.weights.items())} {numerics!r} {model}"):
            try:  # the probe batch compiles
                return self._worker(name, dataset, tried=tried)
            except compilation_failures() as error:
                raise no_compiler(error) from error

    def _worker(self, name: str, dataset: Dataset, *, tried: bool) -> "Worker":
        with too_large.named(self.config.numerics.batch, self.device):
            worker = Worker(name, self.config, self.networks(dataset), dataset)
            if tried and self.config.model.check_denoising:
                worker.check_denoising()
            return worker

    def networks(self, dataset: Dataset) -> Networks:
        """All networks of the run on the device, as [numerics] says."""
        if self.config.method.name == "shortlist-classify":
            return self._head_alone()
        trained = self.config.kind_name == "trained"
        return self._trained(dataset) if trained else self._diffusion()

    def _diffusion(self) -> DiffusionNetworks:
        denoiser = self.network("denoiser")
        unconditional = self.unconditional(denoiser)
        heads = self._heads() if self.config.uses_head else None
        return DiffusionNetworks(self.config, denoiser, unconditional, self.device, heads)

    def unconditional(self, denoiser: Denoiser) -> Denoiser | None:
        """The second network, of the unconditional step, as ``denoiser`` sees it, or None."""
        model = self.config.model
        if self.denoiser is not None or model.unconditional is None:
            return None
        network = self.network("unconditional")
        if model.resize is None:
            return network
        return ResizedDenoiser(network, denoiser.image_shape, model.resize)

    def _head_alone(self) -> HeadNetworks:
        return HeadNetworks(self.config, self.network("denoiser"), self._heads(), self.device)

    def _heads(self) -> dict[float, ShortlistHead]:
        return load_heads(
            str(self.config.sift.head),
            device=self.device,
            sha256=self.weights["head"],
            storage_options=self.config.execution.storage_options,
        )

    def _trained(self, dataset: Dataset) -> TrainedNetworks:
        config = self.config
        denoises = config.method.name == "denoise-classify"
        denoiser = self.network("denoiser") if denoises else None
        classifier = load_classifier(
            config,
            dataset.num_classes,
            dataset.image_shape,
            network=self.classifier,
            device=self.device,
            sha256=self.weights["classifier"],
        )
        if config.numerics.channels_last:
            classifier.keep_channels_last()
        if config.numerics.compile:
            classifier.compile()
        return TrainedNetworks(config, classifier, denoiser, self.device)

    def network(self, role: str) -> Denoiser:
        """The object or file of a role ("denoiser", "unconditional"), as [numerics] says.

        Raises:
            CheckpointError: it is missing, another one than the driver's, or cannot compute so.
        """
        given = self.denoiser if role == "denoiser" else None
        network = self._loaded(role) if given is None else self._own(given)
        if self.config.numerics.channels_last:
            keep_channels_last(network)
        if self.config.numerics.compile:
            compile_denoiser(network, bottom=self.config.uses_head)
        return network

    def _own(self, given: Denoiser) -> Denoiser:
        """The caller's object, or a copy where it has to be changed or moved: it stays as it is."""
        if not isinstance(given, nn.Module):
            return self._moved(given)
        tensors = (*given.parameters(), *given.buffers())
        elsewhere = any(not self._here(tensor) for tensor in tensors)
        training = any(module.training for module in given.modules())
        numerics = self.config.numerics
        if elsewhere or training or numerics.channels_last or numerics.compile:
            return copy.deepcopy(given).to(self.device).eval().requires_grad_(False)
        return given

    def _moved(self, given: Denoiser) -> Denoiser:
        """An object that is no torch module, on the device if it says how it gets there."""
        state_dict, to = getattr(given, "state_dict", dict), getattr(given, "to", None)
        if callable(to) and not all(self._here(tensor) for tensor in state_dict().values()):
            moved: Denoiser = to(self.device)
            return moved
        return given

    def _here(self, tensor: Tensor) -> bool:
        return tensor.device.type == torch.device(self.device).type

    def _loaded(self, role: str) -> Denoiser:
        file, config = model_files(self.config)[role], self.config
        return load_denoiser(
            file.source,
            file.settings,
            device=self.device,
            dtype=config.numerics.dtype,
            sha256=self.weights[role],
            storage_options=config.execution.storage_options,
        )

    def images(self) -> Dataset:
        """The run's images, refused where they are not the driver's."""
        options = self.config.execution.storage_options
        data = self.dataset or load_dataset(self.config.dataset, options)
        if self.fingerprint is None:
            return data
        return as_expected(data, self.fingerprint, self.image_shas)


class Worker:
    """Evaluates items at any sigma of the run, whatever kind of run it is."""

    def __init__(self, name: str, config: Config, networks: Networks, dataset: Dataset) -> None:
        self.name, self.networks = name, networks
        self.numerics = networks.numerics_kind(dataset.image_shape)
        self.compiled = compiled_how() if config.numerics.compile else "no"
        self.computed_on = device_model(networks.device)
        self._device_name = device_name(networks.device)
        self._config, self.dataset = config, dataset
        self._base = cache(networks.base)

    def check_denoising(self) -> None:
        """Refuse denoisers that do not denoise some of the images (ConfigError)."""
        numerics, device = self._config.numerics, self.networks.device
        lowest = lowest_visited(self._config)
        for role, (denoiser, classes) in self.networks.roles.items():
            found = denoising_errors(
                denoiser,
                self.dataset,
                batch=numerics.batch,
                whole=numerics.compile,
                device=device,
                classes=classes,
                lowest=lowest,
            )
            refuse_poor(found, role, self.dataset.name)

    def evaluate(self, item: Item | LossItem) -> Result | LossResult:
        """Evaluate one item; what it returns depends on its votes or draws only.

        Raises:
            PoolError: memory ran out; the message names ``numerics.batch`` and one that fits.
        """
        return self.draw_losses(item) if isinstance(item, LossItem) else self.cast_votes(item)

    def cast_votes(self, item: Item) -> Result:
        """Evaluate votes; the counts depend on the item's votes only."""
        base = self.base(item.sigma)
        result = self._fitting(
            lambda batch: evaluate_item(
                base if batch == base.batch else base.with_batch(batch), item, self.dataset.image
            )
        )
        return replace(result, **self._about())

    def draw_losses(self, item: LossItem) -> LossResult:
        """Evaluate losses of the plain classifier; they depend on the item's draws only."""
        denoiser = self.networks.denoiser
        assert denoiser is not None  # the configuration has method dc
        result = self._fitting(
            lambda batch: evaluate_loss_item(
                denoiser,
                item,
                self.dataset.image,
                s=plain_levels(self._config)[0],
                seed=self._config.votes.seed,
                batch=batch,
                device=self.networks.device,
            )
        )
        return replace(result, **self._about())

    def _fitting(self, evaluate: Callable[[int], T]) -> T:
        numerics, device = self._config.numerics, self.networks.device
        return too_large.evaluated(evaluate, numerics.batch, device, smaller=not numerics.compile)

    def _about(self) -> dict[str, Any]:
        """What a result says of who computed it."""
        return {
            "worker": self.name,
            "device": self._device_name,
            "numerics": self.numerics,
            "computed_on": self.computed_on,
        }

    def base(self, sigma: float) -> BaseClassifier:
        """The base classifier at one sigma, pixel units; made once."""
        return self._base(sigma)
