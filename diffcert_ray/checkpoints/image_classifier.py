"""The classifier of `classify` and `denoise-classify`: its file, its network, its logits.

Shape letters: B images, C H W image, K classes. Pixel units: images in [0, 1] before noise.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffcert_ray.checkpoints.files import file_sha256, local_path, shipped
from diffcert_ray.checkpoints.tensors import is_safetensors, safetensors_of, torch_tensors_of
from diffcert_ray.checkpoints.wrapped_weights import NormalisationLayer, classifier_weights
from diffcert_ray.config.tables import Config
from diffcert_ray.denoisers.device import compile_classifier
from diffcert_ray.denoisers.edm import NETWORK_DTYPES
from diffcert_ray.errors import CheckpointError, ConfigError, nearest

Network = nn.Module
"""What the Python API takes as a classifier: images [B, C, H, W] to logits [B, K]."""

CONVNET = "digits-convnet"
SMALL_CONVNET = "small-convnet"
METADATA_KEY = "diffcert_ray_classifier"


class ImageClassifier:
    """Logits of images in pixel units, by a torch module in evaluation mode.

    Args:
        network: takes [B, C, H, W], returns logits [B, K]; it is copied.
        mean: of each channel, pixel units, subtracted from the image; None: nothing is.
        std: of each channel, pixel units, what the rest is divided by; None: nothing.
        dtype: what the network computes in.
        device: where it lives.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        self._dtype = NETWORK_DTYPES[dtype]
        network = copy.deepcopy(network).eval().requires_grad_(False)
        self._network = network.to(device, self._dtype)
        self._mean = _per_channel(mean, 0.0, device)
        self._std = _per_channel(std, 1.0, device)

    def keep_channels_last(self) -> None:
        """Keep all channels of a pixel together in memory."""
        self._network.to(memory_format=torch.channels_last)

    def compile(self) -> None:
        """Compile the network at its next call, which takes a minute or so."""
        compile_classifier(self._network)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, K], float32, of images [B, C, H, W] in pixel units."""
        for given in (self._mean, self._std):
            if len(given) not in (1, x.shape[1]):
                raise ConfigError(
                    f"{len(given)} numbers of mean or std for {x.shape[1]} channels: give one each"
                )
        seen = ((x - self._mean) / self._std).to(self._dtype)
        logits: Tensor = self._network(seen)
        return logits.float()


def load_classifier(
    config: Config,
    num_classes: int,
    image_shape: Sequence[int],
    *,
    network: nn.Module | None = None,
    device: str = "cpu",
    sha256: str | None = None,
) -> ImageClassifier:
    """Load the classifier of a configuration and evaluate it once, so that misfits are noticed.

    Args:
        config: its [classifier] names file, architecture and normalisation.
        num_classes: K of the dataset.
        image_shape: (C, H, W) of what the classifier will be shown.
        network: an object in place of file and architecture.
        device: where it is to live.
        sha256: what the file's hash must be.

    Raises:
        CheckpointError: no such file, refused, another hash, or tensors that do not fit.
        ConfigError: unknown architecture, or other images or classes than the dataset's.
    """
    about = config.classifier
    mean: _Numbers = about.mean
    std: _Numbers = about.std
    if network is None:
        options = config.execution.storage_options
        path = classifier_path(needed_checkpoint(config), sha256, options)
        actual = file_sha256(path)
        if sha256 is not None and actual != sha256.lower():
            raise CheckpointError(
                f"classifier {about.checkpoint!r} has sha256 {actual}, not {sha256}: this machine "
                "has another file than the driver; copy the driver's here"
            )
        network = network_of(about.architecture, num_classes, image_shape)
        named = f"classifier {path}"
        tensors, layer = classifier_weights(_tensors(path), network.state_dict())
        mean, std = _normalisation(named, layer, mean, std)
        _fill(network, tensors, named, about.architecture, num_classes)
    loaded = ImageClassifier(
        network, mean=mean, std=std, dtype=config.numerics.dtype, device=device
    )
    _check_output(loaded, num_classes, image_shape, device)
    return loaded


def needed_checkpoint(config: Config) -> str:
    """The file of the classifier; ConfigError if none is named."""
    if config.classifier.checkpoint is None:
        shipped = ", ".join(shipped_classifiers()) or "none"
        raise ConfigError(
            f'method.name = "{config.method.name}" needs a classifier: set classifier.checkpoint '
            f"(a .safetensors or .pt state dict; shipped: {shipped}) and "
            "classifier.architecture, or give classifier= in Python"
        )
    return config.classifier.checkpoint


def shipped_classifiers() -> dict[str, Path]:
    """The classifiers that come with the package, by name."""
    return shipped("models/classifiers")


def classifier_path(
    source: str,
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Find a classifier's file, fetching it first if it is at a remote address.

    Raises:
        CheckpointError: there is no such file.
    """
    known = shipped_classifiers()
    path = local_path(source, known, file_sha256, sha256, storage_options)
    if not path.is_file():
        raise CheckpointError(
            f"classifier {source!r} is no file: give the path or address of a .safetensors or .pt "
            f"state dict, or the name of a shipped classifier{nearest(source, known)}"
        )
    return path


def classifier_sha256(source: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """The sha256 of a classifier's file (`sha256sum FILE`); arguments as `classifier_path`."""
    return file_sha256(classifier_path(source, storage_options=storage_options))


def digits_convnet(num_classes: int = 10) -> nn.Module:
    """The project's own small network for 8x8 grey images: 29,578 parameters for ten classes."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 32, 5, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool", nn.AvgPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(64 * 4 * 4, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def small_convnet(image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The same network for images (C, H, W): pooled, and convolved once more, down to 8 pixels."""
    channels, height, width = image_shape
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 32, 5, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool", nn.AvgPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
        ("relu2", nn.ReLU()),
    ]
    height, width, number = height // 2, width // 2, 2
    while min(height, width) > 8:
        height, width, number = height // 2, width // 2, number + 1
        layers += [
            (f"pool{number}", nn.AvgPool2d(2)),
            (f"conv{number}", nn.Conv2d(64, 64, 3, padding=1)),
            (f"relu{number}", nn.ReLU()),
        ]
    layers += [("flat", nn.Flatten()), ("head", nn.Linear(64 * height * width, num_classes))]
    return nn.Sequential(OrderedDict(layers))


def network_of(architecture: str | None, num_classes: int, image_shape: Sequence[int]) -> nn.Module:
    """A network with fresh weights, for images (C, H, W) in pixel units.

    Raises:
        ConfigError: no architecture has this name.
    """
    if architecture == CONVNET:
        return digits_convnet(num_classes)
    if architecture == SMALL_CONVNET:
        return small_convnet(image_shape, num_classes)
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        raise ConfigError(
            f"classifier.architecture is {architecture!r}: give {SMALL_CONVNET!r}, {CONVNET!r} or "
            "a classification network of torchvision.models, such as resnet50 (list_models() "
            "names them); an own network comes through classifier= in Python"
        )
    made: nn.Module = models.get_model(architecture, weights=None, num_classes=num_classes)
    return made


def _tensors(path: Path) -> dict[str, Tensor]:
    named = f"classifier {path}"
    if is_safetensors(path):
        return safetensors_of(path, named)
    return torch_tensors_of(path, named)


_Numbers = Sequence[float] | None


def _normalisation(
    named: str, layer: NormalisationLayer | None, mean: _Numbers, std: _Numbers
) -> tuple[_Numbers, _Numbers]:
    """The configured normalisation, or that of a layer before the network, in pixel units."""
    if layer is None:
        return mean, std
    if layer.mean is None or layer.std is None:
        if mean is None or std is None:
            raise CheckpointError(
                f"{named} was saved behind a normalisation layer whose numbers it does not hold: "
                "give classifier.mean and classifier.std, the numbers of that layer in pixel units"
            )
        return mean, std
    for key, stated, held in (("mean", mean, layer.mean), ("std", std, layer.std)):
        if stated is not None and not np.allclose(stated, held, atol=1e-4):
            raise CheckpointError(
                f"classifier.{key} is {tuple(stated)}, but the normalisation layer of {named} has "
                f"{tuple(round(x, 4) for x in held)}: leave classifier.{key} out"
            )
    return layer.mean, layer.std


def _fill(
    network: nn.Module, tensors: Mapping[str, Tensor], name: str, architecture: Any, classes: int
) -> None:
    """Load a state dict, or say which of its tensors do not fit."""
    wanted = network.state_dict()
    wrong = [
        f"{k} is {tuple(tensors[k].shape) if k in tensors else 'missing'}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k not in tensors or tensors[k].shape != v.shape
    ] + [f"{k} is not in the architecture" for k in tensors if k not in wanted]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{name} does not fit architecture {architecture!r} with {classes} classes: "
            f"{'; '.join(wrong[:3])}{more}; name the architecture it was saved from, and a dataset "
            "with its classes (dataset.label_map, dataset.num_classes)"
        )
    network.load_state_dict(dict(tensors))


def _check_output(
    classifier: ImageClassifier, num_classes: int, image_shape: Sequence[int], device: str
) -> None:
    shape = tuple(image_shape)
    try:
        with torch.inference_mode():
            logits = classifier(torch.zeros((1, *shape), device=device))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError) as err:
        raise ConfigError(
            f"the classifier cannot take images {shape} (channels, height, width): {err}; choose "
            "a classifier made for them, and classifier.mean and std with one number a channel"
        ) from None
    if tuple(logits.shape) != (1, num_classes):
        raise ConfigError(
            f"the classifier returns {tuple(logits.shape)} for an image of {num_classes} classes, "
            f"it must be (1, {num_classes}): choose a classifier of the dataset's classes, or say "
            "with dataset.label_map and dataset.num_classes which of its classes they are"
        )


def _per_channel(values: Sequence[float] | None, default: float, device: str) -> Tensor:
    given = torch.tensor([default] if values is None else list(values), dtype=torch.float32)
    return given.reshape(-1, 1, 1).to(device)
