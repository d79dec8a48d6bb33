"""What can be checked before the first evaluation: failures name value, limit and remedy."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config
from diffcert_ray.conventions import MAX_IMAGE_ID
from diffcert_ray.datasets import Checked, Dataset
from diffcert_ray.datasets.pixel_scale import check_channel_order
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.kind import Plan, kind_of

if TYPE_CHECKING:
    from diffcert_ray.checkpoints.image_classifier import Network
    from diffcert_ray.denoisers.configuration import EdmConfiguration
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.denoisers.diffusers_configuration import DiffusersConfiguration

logger = logging.getLogger(__name__)

SHOWN_IDS = 20


def check_plan(
    config: Config,
    plan: Plan,
    dataset: Dataset,
    denoiser: "Denoiser | None" = None,
    classifier: "Network | None" = None,
) -> None:
    """Refuse a plan that cannot give what is asked of it.

    Raises:
        ConfigError: radii out of reach of n and alpha; impossible noise levels; labels, image ids,
            shapes or classes that do not fit.
        PixelsError: images H x W x C.
    """
    kind_of(config).check(config, plan)
    labels = dataset.labels
    if len(labels) and not (labels.min() >= 0 and labels.max() < dataset.num_classes):
        raise ConfigError(
            f"labels of {dataset.name} go from {labels.min()} to {labels.max()}, but it has "
            f"{dataset.num_classes} classes: labels must be 0 to {dataset.num_classes - 1}"
        )
    if len(plan.image_ids) and not (
        plan.image_ids.min() >= 0 and plan.image_ids.max() <= MAX_IMAGE_ID
    ):
        raise ConfigError(
            f"image ids go from {plan.image_ids.min()} to {plan.image_ids.max()}: noise "
            "addresses hold "
            f"0 to {MAX_IMAGE_ID}; number the images from 0"
        )
    if config.kind_name == "trained":
        _check_direct(config, dataset, denoiser, classifier)
        return
    shape, classes, name = _network_facts(config, denoiser)
    if classes != dataset.num_classes:
        raise ConfigError(
            f"dataset {dataset.name} has {dataset.num_classes} classes, the network of {name} has "
            f"{classes}: use a class-conditional network trained on this dataset's classes, or say "
            "with dataset.label_map and dataset.num_classes which of its classes they are"
        )
    if denoiser is None and config.model.resize is not None:
        shape, name = _smoothed_facts(config)
    _check_shape(shape, name, dataset)


def _check_shape(shape: tuple[int, ...], name: str, dataset: Dataset) -> None:
    check_channel_order(dataset.image_shape, shape, f"an image of {dataset.name}")
    if tuple(shape) != tuple(dataset.image_shape):
        raise ConfigError(
            f"images of {dataset.name} are {tuple(dataset.image_shape)} (channels, height, "
            "width), the "
            f"network of {name} takes {tuple(shape)}: choose the network or dataset that fits (for "
            "grey images stored as colours, or lists of numbers, set dataset.image_shape)"
        )


def _check_direct(
    config: Config,
    dataset: Dataset,
    denoiser: "Denoiser | None",
    classifier: "Network | None",
) -> None:
    """Load the classifier and show it one image; hold the denoiser's facts against the images."""
    from diffcert_ray.checkpoints.image_classifier import load_classifier

    method = config.method.name
    if method == "classify":  # else the denoiser says what it takes
        check_channel_order(dataset.image_shape, None, f"an image of {dataset.name}")
    if method != "shortlist-classify":
        load_classifier(config, dataset.num_classes, dataset.image_shape, network=classifier)
    if method == "classify":
        return
    if denoiser is not None:
        _check_shape(denoiser.image_shape, type(denoiser).__name__, dataset)
        unconditional, source = denoiser.has_unconditional, type(denoiser).__name__
    else:
        source = model_files(config)["denoiser"].source
        stated = _stated(config, "denoiser")
        _check_shape(stated.image_shape, repr(source), dataset)
        unconditional = stated.unconditional
    if not unconditional:
        raise ConfigError(
            f'method "{method}" needs one unconditional denoising step, but {source!r} was '
            "trained without label dropout; set model.unconditional to an unconditional "
            'checkpoint, or method.name = "classify"'
        )


def leave_out_corrupt(config: Config, plan: Any, checked: Checked) -> tuple[Any, list[int]]:
    """Do with corrupt images what ``dataset.on_corrupt`` says.

    Returns:
        The plan of the readable images, and the ids of the others, which are warned of.

    Raises:
        ConfigError: there are corrupt images and the run is to stop at them, or all are corrupt.
    """
    corrupt = sorted(checked.corrupt)
    if not corrupt:
        return plan, []
    shown = ", ".join(map(str, corrupt[:SHOWN_IDS])) + ("..." if len(corrupt) > SHOWN_IDS else "")
    about = (
        f"{len(corrupt)} of {len(plan.image_ids)} images cannot be read (image_id {shown}); the "
        f"first: {checked.corrupt[corrupt[0]]}"
    )
    if config.dataset.on_corrupt == "stop" or len(corrupt) == len(plan.image_ids):
        raise ConfigError(about)
    logger.warning("%s; each counts as an abstention", about)
    readable = plan.image_ids[~np.isin(plan.image_ids, corrupt)]
    return replace(plan, image_ids=readable), corrupt


def _network_facts(config: Config, denoiser: "Denoiser | None") -> tuple[tuple[int, ...], int, str]:
    if denoiser is not None:
        return denoiser.image_shape, denoiser.num_classes, type(denoiser).__name__
    stated = _stated(config, "denoiser")
    return stated.image_shape, stated.label_dim, repr(config.model.checkpoint)


def _smoothed_facts(config: Config) -> tuple[tuple[int, ...], str]:
    """Image shape and name of the network that sees the smoothing noise before a resize."""
    if config.model.unconditional is None or config.method.name != "apndc":
        raise ConfigError(
            f'model.resize = "{config.model.resize}" resizes what model.unconditional denoised, in '
            'method "apndc": set both, or leave model.resize out'
        )
    return _stated(config, "unconditional").image_shape, repr(config.model.unconditional)


def _stated(config: Config, role: str) -> "EdmConfiguration | DiffusersConfiguration":
    """What a run's checkpoint and the run's configuration say of a network."""
    from diffcert_ray.checkpoints.files import read_configuration

    file = model_files(config)[role]
    return read_configuration(file.source, file.settings, config.execution.storage_options)
