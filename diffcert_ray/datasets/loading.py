"""Load a dataset, or the part of it that a specification chooses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from diffcert_ray.config.selectors import SELECTORS
from diffcert_ray.config.tables import NO_MATTER
from diffcert_ray.datasets.cifar import read_cifar
from diffcert_ray.datasets.class_order import padding_notes
from diffcert_ray.datasets.dataset import Dataset
from diffcert_ray.datasets.decoding import check_background
from diffcert_ray.datasets.digits import read_digits
from diffcert_ray.datasets.downsampled_imagenet import read_downsampled_imagenet
from diffcert_ray.datasets.glyphs import read_glyphs
from diffcert_ray.datasets.image_folder import read_image_folder
from diffcert_ray.datasets.labels import class_numbers
from diffcert_ray.datasets.medmnist import read_medmnist
from diffcert_ray.datasets.mnist import read_mnist
from diffcert_ray.datasets.pixels import frozen
from diffcert_ray.datasets.reader import Request, Split
from diffcert_ray.datasets.resizing import ResizedPixels, Resizing, asked_resizing
from diffcert_ray.datasets.selection import positions
from diffcert_ray.datasets.stl10 import read_stl10
from diffcert_ray.datasets.svhn import read_svhn
from diffcert_ray.datasets.tiny_imagenet import read_tiny_imagenet
from diffcert_ray.errors import DatasetError, nearest


def read_parquet(request: Request) -> Split:
    """A Parquet dataset; pyarrow is imported where there is one."""
    from diffcert_ray.datasets.parquet import read_parquet as read

    return read(request)


READERS: Final[dict[str, Callable[[Request], Split]]] = {
    "digits": read_digits,
    "glyphs": read_glyphs,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "svhn": read_svhn,
    "imagenet64": read_downsampled_imagenet,
    "imagenet32": read_downsampled_imagenet,
    "mnist": read_mnist,
    "fashion-mnist": read_mnist,
    "kmnist": read_mnist,
    "emnist": read_mnist,
    "medmnist": read_medmnist,
    "stl10": read_stl10,
    "tiny-imagenet": read_tiny_imagenet,
    "folder": read_image_folder,
    "parquet": read_parquet,
}
_PARQUET_ONLY = ("image_column", "label_column", "id_column")
_READ_AS = (
    *(*_PARQUET_ONLY, "path", "image_shape", "class_order", "background"),
    *("variant", "upright"),
)
_RESIZED = ("resize", "crop", "interpolation")
_REQUEST_KEYS = ("name", "split", *_READ_AS)
_KEYS = (*_REQUEST_KEYS, *_RESIZED, "label_map", "num_classes", "on_corrupt", *SELECTORS, "seed")


def load_dataset(spec: object, storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """Load a dataset, or the part of it that a specification chooses.

    Args:
        spec: the dataset's name, or a mapping (or dataclass, or pydantic model) with `name`,
            `split` (default "test"), `path` (a folder, file or fsspec address, for all but
            "digits" and split "test" of "glyphs") and at most one of: `first` = N; `every` = k
            (positions 0, k, 2k, ...); `ids` = list of image ids, in that order; `sample` = N with
            `seed` (default 0), which draws N images without replacement, in an order such that a
            larger N only adds images at the end. Further keys: `label_map` (list, mapping or
            file: the network's number of each class), `num_classes`, `image_shape` (C, H, W);
            `resize` (shorter side or (H, W)), `crop` (from the middle) and `interpolation`, after
            which images are certified; `background` of transparent pixels;
            `variant` of EMNIST and MedMNIST and `upright` of EMNIST;
            `class_order` ("name" or "number") of classes that are known by name; `image_column`,
            `label_column`, `id_column` of Parquet.
        storage_options: what fsspec's filesystem takes, for a `path` that is not local.

    Returns:
        The chosen images.

    Raises:
        ValueError: unknown key, name or split; files that are missing or not in the format; more
            images asked for than there are; labels without a class.
    """
    chosen = _as_mapping(spec)
    unknown = [key for key in chosen if key not in _KEYS]
    if unknown:
        raise DatasetError(f"dataset.{unknown[0]} is not known{nearest(unknown[0], _KEYS)}")
    name = str(chosen.get("name"))
    if name not in READERS:
        raise DatasetError(f"dataset.name {name!r} is not known{nearest(name, READERS)}")
    _check_keys_apply(name, chosen)
    resizing = asked_resizing(chosen)
    check_background(chosen.get("background"))
    request = Request(
        **{
            key: _fixed(key, chosen[key])
            for key in _REQUEST_KEYS
            if key in chosen and key != "class_order"
        },
        class_order=_class_order(chosen),
        resized=resizing is not None,
        storage_options=dict(storage_options or {}),
    )
    data = _chosen_part(request, READERS[name](request), chosen)
    return data if resizing is None else _resized(data, resizing)


def _fixed(key: str, value: Any) -> Any:
    """A list as a tuple, so that a fingerprint does not depend on how numbers were given."""
    if key == "background" and not isinstance(value, str):
        return tuple(float(number) for number in value)
    return tuple(value) if isinstance(value, list) else value


def _class_order(chosen: Mapping[str, Any]) -> str | None:
    """The order that is asked for; none matters where a mapping gives every class its number."""
    order = chosen.get("class_order")
    if order not in (None, "name", "number", NO_MATTER):
        raise DatasetError(f'dataset.class_order is {order!r}: give "name" or "number"')
    by_name = isinstance(chosen.get("label_map"), Mapping)
    return NO_MATTER if order is None and by_name else order


def _resized(data: Dataset, resizing: Resizing) -> Dataset:
    """The same images, resized as they are read; which they are is known by the files and this."""
    return dataclasses.replace(
        data,
        pixels=ResizedPixels(data.pixels, len(data), resizing),
        fingerprint=resizing.identity(data.fingerprint),
    )


def _chosen_part(request: Request, whole: Split, chosen: Mapping[str, Any]) -> Dataset:
    where = positions(f"{request.name} {request.split}", whole.ids, chosen)
    ids, labels = whole.ids[where], whole.labels(where)
    names, fingerprint, notes = whole.class_names, whole.fingerprint, list(whole.notes)
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        first = outside[0]
        raise DatasetError(
            f"image {ids[first]} of {request.name} {request.split} has label "
            f"{labels[first] + whole.first_label}, but the {len(names)} classes are "
            f"{whole.first_label} to {len(names) - 1 + whole.first_label}: choose a labelled "
            "split, or correct the file, label_column or num_classes"
        )
    if (label_map := chosen.get("label_map")) is not None:
        numbers, names = class_numbers(label_map, names, whole.first_label)
        labels = numbers[labels]
        fingerprint = _mapped(fingerprint, numbers.tolist())
    elif not whole.order_known:
        raise DatasetError(
            f"the labels of {request.name} count from {whole.first_label} in an order of their own "
            "(map_clsloc.txt of the distribution), not the sorted WordNet ids that published "
            'networks use: set dataset.label_map = "PATH/map_clsloc.txt", or a list or mapping of '
            "the network's class of every label"
        )
    elif whole.names_said:
        notes += padding_notes(names, chosen.get("num_classes"), whole.names_said)
    return Dataset(
        name=request.name,
        split=request.split,
        ids=frozen(ids),
        labels=frozen(labels),
        pixels=whole.pixels(where),
        class_names=_padded(names, chosen.get("num_classes")),
        fingerprint=fingerprint,
        notes=tuple(notes),
        mapping=whole.mapping,
    )


def _mapped(fingerprint: str, numbers: list[int]) -> str:
    return hashlib.sha256(f"{fingerprint} {json.dumps(numbers)}".encode()).hexdigest()


def _padded(names: tuple[str, ...], classes: int | None) -> tuple[str, ...]:
    """Names of all classes where a network has more than the dataset."""
    if classes is None:
        return names
    if classes < len(names):
        raise DatasetError(
            f"dataset.num_classes is {classes}, but the dataset has {len(names)}: raise or drop it"
        )
    return (*names, *(str(k) for k in range(len(names), classes)))


def _check_keys_apply(name: str, chosen: Mapping[str, Any]) -> None:
    """Refuse keys that would be silently without effect."""
    allowed = {
        "parquet": (*_PARQUET_ONLY, "path", "image_shape", "class_order", "background"),
        "folder": ("path", "image_shape", "class_order", "background"),
        "tiny-imagenet": ("path", "background"),
        "emnist": ("path", "variant", "upright"),
        "medmnist": ("path", "variant"),
        "digits": (),
    }.get(name, ("path",))
    for key in _READ_AS:
        if key in chosen and key not in allowed:
            raise DatasetError(f"dataset.{key} means nothing to dataset {name!r}: remove it")


def _as_mapping(spec: object) -> dict[str, Any]:
    """The specification's keys that are set."""
    if isinstance(spec, str):
        return {"name": spec}
    if isinstance(spec, Mapping):
        given = dict(spec)
    elif dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        given = dataclasses.asdict(spec)
    elif hasattr(spec, "model_dump"):
        given = spec.model_dump()
    else:
        raise DatasetError(
            f"a dataset is given by its name or by a mapping, not by {type(spec).__name__}"
        )
    return {key: value for key, value in given.items() if value is not None}
