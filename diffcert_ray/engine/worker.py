"""One worker: networks loaded once, images by id, items evaluated; in Ray or in-process."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from diffcert_ray.checkpoints.files import checkpoint_sha256
from diffcert_ray.checkpoints.image_classifier import (
    ImageClassifier,
    classifier_sha256,
    load_classifier,
    needed_checkpoint,
)
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset, as_expected, load_dataset
from diffcert_ray.denoisers.compiled import (
    compilation_failures,
    compile_denoiser,
    compiled_how,
    no_compiler,
)
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.gaussian import GaussianClasses
from diffcert_ray.denoisers.memory_format import keep_channels_last
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.engine.classifier_votes import DirectClassifier, evaluate_classifier_item
from diffcert_ray.engine.losses import evaluate_loss_item
from diffcert_ray.engine.numerics_kind import (
    joint_kind,
    kind_of_logits,
    numerics_kind,
    short_batches,
)
from diffcert_ray.engine.votes import evaluate_item
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.base_classifier import BaseClassifier, base_classifier
from diffcert_ray.method.from_config import largest_evaluations
from diffcert_ray.plain.plan import plain_levels
from diffcert_ray.plain.units import LossItem, LossResult
from diffcert_ray.votes.units import Item, Result


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to load; small enough to send, unless objects are given.

    Args:
        config: the run's configuration, with final [numerics].
        weights: sha256 of each checkpoint by role; another file on a worker is refused.
        device: "cpu" or "cuda".
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

    def load(self, name: str) -> "Worker | ClassifierWorker":
        """Load networks and images in this process.

        Raises:
            ValueError: a checkpoint or dataset is missing or another one than the driver's.
        """
        set_up_torch()
        if self.config.direct:
            return self._load_direct(name)
        model = self.config.model
        denoiser = self.network("denoiser")
        unconditional: Denoiser | None = None
        if self.denoiser is None and model.unconditional is not None:
            unconditional = self.network("unconditional")
        dataset = self._images()
        if unconditional is not None and model.resize is not None:
            unconditional = ResizedDenoiser(unconditional, denoiser.image_shape, model.resize)
        try:  # the probe batch compiles
            return Worker(name, self.config, denoiser, unconditional, dataset, self.device)
        except compilation_failures() as error:
            raise no_compiler(error) from error

    def _load_direct(self, name: str) -> "ClassifierWorker":
        config, dataset = self.config, self._images()
        denoiser: Denoiser | None = None
        if config.method.name == "denoise-classify":
            denoiser = self.network("denoiser")
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
        try:
            return ClassifierWorker(name, config, classifier, denoiser, dataset, self.device)
        except compilation_failures() as error:
            raise no_compiler(error) from error

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
            compile_denoiser(network)
        return network

    def _own(self, given: Denoiser) -> Denoiser:
        """The caller's object, or a copy where it has to be changed: it stays as it is."""
        if not isinstance(given, nn.Module):
            return given
        training = any(module.training for module in given.modules())
        numerics = self.config.numerics
        if training or numerics.channels_last or numerics.compile:
            return copy.deepcopy(given).eval().requires_grad_(False)
        return given

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

    def _images(self) -> Dataset:
        options = self.config.execution.storage_options
        data = self.dataset or load_dataset(self.config.dataset, options)
        if self.fingerprint is None:
            return data
        return as_expected(data, self.fingerprint, self.image_shas)


def set_up_torch() -> None:
    """Let this process compute the way that every worker does."""
    # One thread for each CPU worker: two threads in each of two processes are 30 times slower.
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    # What use_deterministic_algorithms does, without seconds of importing the compiler.
    torch.set_deterministic_debug_mode("warn")
    # It would write NaN to all memory before it is used, 4 to 8 % of an evaluation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():  # float32 is what it says: a GPU's votes are to be a CPU's
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


class Worker:
    """Evaluates items at any sigma of the run.

    Args:
        name: told with every result.
        config: of the run, with final [numerics].
        denoiser: the class-conditional network.
        unconditional: of the first step, or None: the same network.
        dataset: the images.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        name: str,
        config: Config,
        denoiser: Denoiser,
        unconditional: Denoiser | None,
        dataset: Dataset,
        device: str,
    ) -> None:
        self.name = name
        self._config = config
        self.denoiser, self.unconditional = denoiser, unconditional
        self._dataset = dataset
        self._device = device
        self._at_sigma: dict[float, BaseClassifier] = {}
        batch = config.numerics.batch
        networks = (denoiser,) if unconditional is None else (denoiser, unconditional)
        self.numerics = joint_kind([numerics_kind(n, batch, device) for n in networks])
        # Compiled, each size would take a minute. In bfloat16 rounding hides another order of sums
        # from most rows, so that a probe of some rows could not tell.
        exact = config.numerics.dtype == "float32" and not config.numerics.compile
        self._short = short_batches(denoiser, batch, device) if exact else ()
        self.compiled = compiled_how() if config.numerics.compile else "no"

    def evaluate(self, item: Item | LossItem) -> Result | LossResult:
        """Evaluate one item; what it returns depends on its votes or draws only."""
        return self.draw_losses(item) if isinstance(item, LossItem) else self.cast_votes(item)

    def cast_votes(self, item: Item) -> Result:
        """Evaluate votes; the counts depend on the item's votes only."""
        base, image = self.base(item.sigma), self._dataset.image
        return evaluate_item(base, item, image, worker=self.name, numerics=self.numerics)

    def base(self, sigma: float) -> BaseClassifier:
        """The base classifier at one sigma, pixel units."""
        base = self._at_sigma.get(sigma)
        if base is None:
            base = base_classifier(
                self._config,
                self.denoiser,
                sigma,
                unconditional=self.unconditional,
                device=self._device,
            )
            base = replace(base, short_batches=self._short)
            self._at_sigma[sigma] = base
        return base

    def most_nfe(self, sigma: float) -> int:
        """Evaluations of a vote that drops no class early."""
        return largest_evaluations(self._config, sigma, self.denoiser.num_classes)

    def draw_losses(self, item: LossItem) -> LossResult:
        """Evaluate losses of the plain classifier; they depend on the item's draws only."""
        return evaluate_loss_item(
            self.denoiser,
            item,
            self._dataset.image,
            s=plain_levels(self._config)[0],
            seed=self._config.votes.seed,
            batch=self._config.numerics.batch,
            device=self._device,
            worker=self.name,
            numerics=self.numerics,
        )


class ClassifierWorker:
    """Evaluates items of ``classify`` and ``denoise-classify`` at any sigma of the run.

    Args:
        name: told with every result.
        config: of the run, with final [numerics].
        classifier: the trained classifier.
        denoiser: for ``denoise-classify``, else None.
        dataset: the images.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        name: str,
        config: Config,
        classifier: ImageClassifier,
        denoiser: Denoiser | None,
        dataset: Dataset,
        device: str,
    ) -> None:
        self.name = name
        self._config = config
        self._networks = (classifier, denoiser)
        self._dataset = dataset
        self._device = device
        probed = self.base(config.votes.sigmas[0])
        shape, batch = dataset.image_shape, config.numerics.batch
        self.numerics = kind_of_logits(probed.logits, shape, batch, device)
        self.compiled = compiled_how() if config.numerics.compile else "no"

    def evaluate(self, item: Item) -> Result:
        """Evaluate one item; what it returns depends on its votes only."""
        return self.cast_votes(item)

    def cast_votes(self, item: Item) -> Result:
        """Evaluate votes; the counts depend on the item's votes only."""
        base, image = self.base(item.sigma), self._dataset.image
        return evaluate_classifier_item(base, item, image, worker=self.name, numerics=self.numerics)

    def most_nfe(self, sigma: float) -> int:
        """Evaluations of a vote."""
        return self.base(sigma).nfe_per_vote

    def base(self, sigma: float) -> DirectClassifier:
        """The base classifier at one sigma, pixel units."""
        seed, batch = self._config.votes.seed, self._config.numerics.batch
        return DirectClassifier(*self._networks, sigma, seed, batch, self._device)


def weights_of(
    config: Config, denoiser: Denoiser | None = None, classifier: nn.Module | None = None
) -> dict[str, str]:
    """The sha256 of every checkpoint of a run by role.

    Args:
        config: names the checkpoints.
        denoiser: an object used in their place; its parameters (a torch module) or its ``means``
            and ``tau`` (a Gaussian world) are hashed.
        classifier: a torch module used in place of ``config.classifier``'s file.

    Raises:
        ConfigError: a pinned hash is another file's, an object has nothing to hash, or the method
            needs a classifier and there is none, or none and there is one.
    """
    if config.direct:
        return _direct_weights(config, denoiser, classifier)
    if classifier is not None:
        raise ConfigError(
            f'a classifier was given, but method.name = "{config.method.name}" uses none: set '
            '"classify" or "denoise-classify"'
        )
    if denoiser is not None:
        return {"denoiser": _object_sha256(denoiser)}
    return _denoiser_weights(config)


def _direct_weights(
    config: Config, denoiser: Denoiser | None, classifier: nn.Module | None
) -> dict[str, str]:
    about = config.classifier
    weights: dict[str, str] = {}
    if classifier is not None:
        weights["classifier"] = _object_sha256(classifier)
    else:
        source = needed_checkpoint(config)
        found = classifier_sha256(source, config.execution.storage_options)
        weights["classifier"] = _as_pinned(source, found, about.sha256, "classifier.sha256")
    if config.method.name == "denoise-classify" and denoiser is not None:
        return weights | {"denoiser": _object_sha256(denoiser)}
    return weights | _denoiser_weights(config)


def _denoiser_weights(config: Config) -> dict[str, str]:
    options = config.execution.storage_options
    return {
        role: _as_pinned(
            file.source, checkpoint_sha256(file.source, options), file.sha256, file.sha256_key
        )
        for role, file in model_files(config).items()
    }


def _as_pinned(source: str, found: str, expected: str | None, key: str) -> str:
    if expected is not None and expected.lower() != found:
        raise ConfigError(
            f"{key} is {expected}, but the file {source!r} has {found}: it is another file; "
            "correct the path or the hash"
        )
    return found


def _object_sha256(denoiser: Denoiser | nn.Module) -> str:
    digest = hashlib.sha256(type(denoiser).__name__.encode())
    if isinstance(denoiser, torch.nn.Module):
        tensors = sorted(denoiser.state_dict().items())
    elif isinstance(denoiser, GaussianClasses):
        tensors = [("means", denoiser.means), ("tau", torch.tensor(denoiser.tau))]
    else:
        raise ConfigError(
            f"a {type(denoiser).__name__} has no parameters to identify the run by: pass a torch "
            "module, or a checkpoint in model.checkpoint"
        )
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def resolve_device(asked: str) -> str:
    """The device that "auto", "cpu" or "cuda" stands for on this machine.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError(
            'execution.device = "cuda", but torch finds no GPU here: check the driver (nvidia-smi) '
            'and that torch has CUDA, or set execution.device = "cpu"'
        )
    return "cuda" if asked != "cpu" and available else "cpu"
