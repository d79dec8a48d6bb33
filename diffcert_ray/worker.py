"""One worker: networks loaded once, images by id, items evaluated; in Ray or in-process."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from diffcert_ray.base_classifier import BaseClassifier, base_classifier
from diffcert_ray.config import Config, ConfigError
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.denoisers.checkpoint import checkpoint_sha256, load_denoiser
from diffcert_ray.denoisers.compiled import compilation_failures, compile_denoiser, no_compiler
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.gaussian import GaussianClasses
from diffcert_ray.denoisers.resized import ResizedDenoiser
from diffcert_ray.evaluate import evaluate_item
from diffcert_ray.evaluate_losses import evaluate_loss_item
from diffcert_ray.loss_work import LossItem, LossResult
from diffcert_ray.noise import NoiseSource
from diffcert_ray.plain import plain_levels
from diffcert_ray.work import Item, Result

logger = logging.getLogger(__name__)

PROBE_SEED = 0x0D1FFCE7


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to load; small enough to send, unless objects are given.

    Args:
        config: the run's configuration, with final [numerics].
        weights: sha256 of each checkpoint by role; another file on a worker is refused.
        device: "cpu" or "cuda".
        denoiser: a denoiser object in place of ``config.model`` (Python API, oracle worlds).
        dataset: a dataset object in place of ``config.dataset``.
    """

    config: Config
    weights: Mapping[str, str]
    device: str = "cpu"
    denoiser: Denoiser | None = None
    dataset: Dataset | None = None

    def load(self, name: str) -> "Worker":
        """Load networks and images in this process.

        Raises:
            ValueError: a checkpoint or dataset is missing or another one than the driver's.
        """
        # One thread for each CPU worker: two threads in each of two processes are 30 times slower.
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        model, dtype = self.config.model, self.config.numerics.dtype
        denoiser: Denoiser | None = self.denoiser
        unconditional: Denoiser | None = None
        if denoiser is None:
            denoiser = load_denoiser(
                model.checkpoint, device=self.device, dtype=dtype, sha256=self.weights["denoiser"]
            )
            if model.unconditional is not None:
                unconditional = load_denoiser(
                    model.unconditional,
                    device=self.device,
                    dtype=dtype,
                    sha256=self.weights["unconditional"],
                )
        dataset = self.dataset or load_dataset(
            self.config.dataset, self.config.execution.storage_options
        )
        if self.config.numerics.compile:
            for network in (denoiser, unconditional):
                if network is not None:
                    compile_denoiser(network)
        if unconditional is not None and model.resize is not None:
            unconditional = ResizedDenoiser(unconditional, denoiser.image_shape, model.resize)
        try:  # the probe batch compiles
            return Worker(name, self.config, denoiser, unconditional, dataset, self.device)
        except compilation_failures() as error:
            raise no_compiler(error) from error


class Worker:
    """Evaluates items at any sigma of the run."""

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
        self.numerics = numerics_kind(denoiser, config.numerics.batch, device)

    def evaluate(self, item: Item | LossItem) -> Result | LossResult:
        """Evaluate one item; what it returns depends on its votes or draws only."""
        return self.draw_losses(item) if isinstance(item, LossItem) else self.cast_votes(item)

    def cast_votes(self, item: Item) -> Result:
        """Evaluate votes; the counts depend on the item's votes only."""
        base = self._at_sigma.get(item.sigma)
        if base is None:
            base = base_classifier(
                self._config,
                self.denoiser,
                item.sigma,
                unconditional=self.unconditional,
                device=self._device,
            )
            self._at_sigma[item.sigma] = base
        return evaluate_item(
            base, item, self._dataset.image, worker=self.name, numerics=self.numerics
        )

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


def weights_of(config: Config, denoiser: Denoiser | None = None) -> dict[str, str]:
    """The sha256 of every checkpoint of a run by role.

    Args:
        config: names the checkpoints.
        denoiser: an object used in their place; its parameters (a torch module) or its ``means``
            and ``tau`` (a Gaussian world) are hashed.

    Raises:
        ConfigError: model.sha256 names another file, or the object has nothing to hash.
    """
    if denoiser is not None:
        return {"denoiser": _object_sha256(denoiser)}
    model = config.model
    weights = {"denoiser": _pinned(model.checkpoint, model.sha256, "model.sha256")}
    if model.unconditional is not None:
        weights["unconditional"] = _pinned(
            model.unconditional, model.unconditional_sha256, "model.unconditional_sha256"
        )
    return weights


def _pinned(source: str, expected: str | None, key: str) -> str:
    found = checkpoint_sha256(source)
    if expected is not None and expected.lower() != found:
        raise ConfigError(
            f"{key} is {expected}, but the file {source!r} has {found}: it is another file; "
            "correct the path or the hash"
        )
    return found


def _object_sha256(denoiser: Denoiser) -> str:
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


def numerics_kind(denoiser: Denoiser, batch: int, device: str) -> str:
    """Hash of what the network returns on a fixed probe batch: equal kinds give equal bits.

    The probe is evaluated twice, the second time in another order; a network whose rows depend on
    their position gets a kind of its own and a warning, because its votes then depend on packing.

    Args:
        denoiser: the loaded network.
        batch: rows of every batch of the run.
        device: where the network lives.

    Returns:
        12 hex digits, with the suffix "-positional" where rows depend on their position.
    """
    shape = denoiser.image_shape
    row = np.arange(batch)
    source = NoiseSource(PROBE_SEED, 0.0, int(np.prod(shape)))
    noise = source.normal(row, np.zeros_like(row), row, "internal", device=device)
    s = torch.linspace(0.1, 3.0, batch, device=device)
    y = torch.from_numpy(row % (denoiser.num_classes or 1)).to(device)
    if denoiser.has_unconditional or not denoiser.num_classes:
        y[::7] = -1
    z = (s[:, None] * noise).reshape(batch, *shape)
    order = torch.flip(torch.arange(batch, device=device), [0])
    with torch.inference_mode():
        straight = denoiser(z, s, y)
        turned = denoiser(z[order], s[order], y[order])[order]
    kind = hashlib.sha256(straight.cpu().numpy().tobytes()).hexdigest()[:12]
    if bool((straight == turned).all()):
        return kind
    logger.warning("rows of a batch depend on their position on this device: kind=%s", kind)
    return kind + "-positional"


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
