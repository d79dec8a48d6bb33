"""What a reader of published files is asked for, and the split that it gives."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.pixels import BytePixels, Pixels
from diffcert_ray.errors import DatasetError

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a reader is asked for: the [dataset] table without the choice of images.

    Attributes:
        path: where its files are; None for data that comes with a package.
        image_column, label_column, id_column: Parquet columns, None for the usual names.
        image_shape: (C, H, W) where the files do not say it.
        background: of transparent pixels, see ``decode_image``.
        resized: whether images are resized or cropped afterwards: encoded ones may be of any size.
        variant: which of several datasets that one name stands for.
        upright: whether EMNIST's images are turned upright.
        class_order: "name" or "number", of classes that are known by name.
        storage_options: what fsspec's filesystem takes.
    """

    name: str
    split: str = "test"
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    image_shape: tuple[int, int, int] | None = None
    class_order: str | None = None
    background: str | Sequence[float] | None = None
    resized: bool = False
    variant: str | None = None
    upright: bool | None = None
    storage_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def files(self) -> DataFiles:
        """The files at the path; DatasetError if none is given."""
        if not self.path:
            raise DatasetError(
                f"dataset {self.name!r} needs dataset.path: the folder (or s3:// prefix) that its "
                "files are in"
            )
        return DataFiles(self.path, self.storage_options)

    @property
    def background_identity(self) -> bytes:
        """What a fingerprint knows of the background: nothing, where there is none."""
        return b"" if self.background is None else f"\nbackground {self.background}".encode()

    def check_split(self, *known: str) -> None:
        """Refuse a split that the dataset does not have."""
        if self.split not in known:
            raise DatasetError(
                f"dataset.split {self.split!r} is not known: use {', '.join(map(repr, known))} "
                f"of {self.name}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A whole split as a reader found it; labels and pixels are read for chosen positions only.

    Attributes:
        ids: int64 [N], stable image ids.
        labels: positions int64 [n] -> labels int64 [n], counted from 0.
        pixels: positions int64 [n] -> their pixels.
        class_names: one name per class.
        fingerprint: sha256 in hex, see ``Dataset``.
        first_label: what the files call the first class (ImageNet's labels count from 1).
        order_known: whether the classes have one order that networks are trained in; else a label
            map must be given.
        notes: sentences about what was read that a reader may not expect.
        names_said: what classes are the names of, where files know them by name only; else "".
        mapping: their numbers in a line, there.
    """

    ids: Ints
    labels: Callable[[Ints], Ints]
    pixels: Callable[[Ints], Pixels]
    class_names: tuple[str, ...]
    fingerprint: str
    first_label: int = 0
    order_known: bool = True
    notes: tuple[str, ...] = ()
    names_said: str = ""
    mapping: str = ""


def split_of_bytes(
    request: Request,
    values: NDArray[np.uint8],
    labels: Ints,
    class_names: tuple[str, ...],
    notes: tuple[str, ...] = (),
) -> Split:
    """A split that is in memory, uint8 [N, C, H, W]; image_id is the row number."""
    digest = hashlib.sha256(f"{request.name} {request.split} {values.shape} uint8".encode())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(values).data)
    return Split(
        ids=np.arange(len(labels), dtype=np.int64),
        labels=labels.__getitem__,
        pixels=lambda positions: BytePixels(values[positions]),
        class_names=class_names,
        fingerprint=digest.hexdigest(),
        notes=notes,
    )
