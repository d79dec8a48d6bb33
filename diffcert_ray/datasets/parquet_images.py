"""One image out of a Parquet column: encoded bytes, or nested lists of numbers."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.decoding import Background, decode_pixels
from diffcert_ray.datasets.parquet_files import Columns
from diffcert_ray.datasets.pixels import UndecodableError, from_bytes
from diffcert_ray.errors import DatasetError

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ImageLeaves:
    """Where in a field of images their content and the names of their files are.

    Attributes:
        columns: what is read of it: the field, or leaves of it.
        content: the part of its struct with encoded bytes; "" for a field that is no struct, of
            bytes or lists of numbers; None where there are paths only.
        path: the part with the paths; "" for a field of paths; None where there are none.
    """

    columns: Columns
    content: str | None
    path: str | None

    def of(self, column: Any, row: int) -> tuple[Any, str]:
        """The content of a row, an Arrow array of one value, or None; and its path, or ""."""
        found = column.slice(row, 1).combine_chunks()
        if isinstance(found, pa.ChunkedArray):
            found = found.chunk(0)
        content, path = (
            None if part is None or found.null_count else found.field(part) if part else found
            for part in (self.content, self.path)
        )
        if content is not None and content.null_count:
            content = None
        return content, "" if path is None else path[0].as_py() or ""


def image_leaves(field: Any) -> ImageLeaves:
    """Where the images of a field are: in itself, or in bytes and path of its struct.

    Raises:
        DatasetError: it holds neither bytes, nor lists of numbers, nor paths.
    """
    kind, name = field.type, str(field.name)
    if pa.types.is_struct(kind):
        parts = [part for part in ("bytes", "path") if kind.get_field_index(part) >= 0]
        if parts:
            content, path = (part if part in parts else None for part in ("bytes", "path"))
            return ImageLeaves(tuple(f"{name}.{part}" for part in parts), content, path)
    if _is_binary(kind) or _is_list(kind):
        return ImageLeaves(name, "", None)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ImageLeaves(name, None, "")
    raise DatasetError(
        f"column {field.name!r} is {kind}, which is no image: it must be encoded bytes, a struct "
        "with bytes or path (as Hugging Face writes it), paths of files, or nested lists of "
        "numbers; set dataset.image_column"
    )


def file_of_path(path: str, files: DataFiles, beside: str) -> str:
    """The file below the dataset's folder that a path in a row names, relative to it.

    Args:
        path: as stored.
        files: the dataset's folder.
        beside: the folder that the row's own file is in, relative to it.

    Raises:
        UndecodableError: the path leads out of the folder, or is an address of its own.
    """
    root = os.path.abspath(files.address) if files.is_local else files.address
    relative = path.replace("\\", "/").removeprefix("file://").removeprefix(f"{root}/")
    parts = relative.split("/")
    if not relative or relative.startswith("/") or ".." in parts or ":" in parts[0]:
        raise UndecodableError(
            f"its row has no bytes, but the path {path!r}, which is not below dataset.path, and "
            "no other file is opened: store paths relative to it, or the bytes"
        )
    near = f"{beside}/{relative}" if beside else relative
    return near if files.exists(near) else relative


@dataclasses.dataclass(frozen=True)
class ReadAs:
    """How images are read.

    Attributes:
        image_shape: (C, H, W), or None: three channels of encoded images; what the nesting of
            lists says.
        background: of transparent pixels, see ``decode_image``.
        resized: whether they are resized afterwards, so that encoded ones may be of any size.
    """

    image_shape: Shape | None = None
    background: Background = None
    resized: bool = False


def content_pixels(value: Any, read_as: ReadAs) -> NDArray[Any]:
    """Pixels of one image, [C, H, W]; who gives it out checks that they are in [0, 1].

    Args:
        value: an Arrow array of one value, the content that ``ImageLeaves.of`` gave.
        read_as: how.

    Raises:
        UndecodableError: why there are none.
    """
    if _is_binary(value.type):
        return encoded_pixels(value[0].as_py(), read_as)
    shape = read_as.image_shape
    return _of_shape(_scaled(_unnested(value, shape)), shape)


def encoded_pixels(data: bytes, read_as: ReadAs) -> NDArray[Any]:
    """Pixels [C, H, W] of an encoded image; UndecodableError says why there are none."""
    shape = read_as.image_shape
    pixels = decode_pixels(data, shape[0] if shape else 3, read_as.background)
    return pixels if read_as.resized else _of_shape(pixels, shape)


def _of_shape(pixels: NDArray[Any], image_shape: Shape | None) -> NDArray[Any]:
    if image_shape is not None and pixels.shape != tuple(image_shape):
        raise UndecodableError(f"its shape is {pixels.shape}, dataset.image_shape {image_shape}")
    return pixels


def _unnested(cell: Any, image_shape: Shape | None) -> NDArray[Any]:
    """Nested lists as an array [C, H, W] of their numbers."""
    shape: list[int] = []
    while _is_list(cell.type):
        lengths = pc.unique(pc.list_value_length(cell))
        if cell.null_count or len(lengths) != 1:
            raise UndecodableError("its rows are not of one length")
        shape.append(lengths[0].as_py())
        cell = cell.flatten()
    if cell.null_count:
        raise UndecodableError("it has empty numbers")
    values = cell.to_numpy(zero_copy_only=False)
    if image_shape is not None:
        channels, height, width = image_shape
        if shape == [height, width, channels] and shape != list(image_shape):
            return values.reshape(shape).transpose(2, 0, 1)
        if values.size != channels * height * width:
            raise UndecodableError(f"it has {shape} numbers, dataset.image_shape is {image_shape}")
        return values.reshape(image_shape)
    return _guessed(values, shape)


def _guessed(values: NDArray[Any], shape: list[int]) -> NDArray[Any]:
    """The array [C, H, W] that the nesting of the lists can only mean."""
    if len(shape) == 2:
        return values.reshape(1, *shape)
    if len(shape) == 3:
        first, last = shape[0] in (1, 3), shape[-1] in (1, 3)
        if last and not first:
            return values.reshape(shape).transpose(2, 0, 1)
        if first and not last:
            return values.reshape(shape)
    raise UndecodableError(
        f"lists of {shape} do not say which of them are channels: set dataset.image_shape = "
        "[channels, height, width]"
    )


def _scaled(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers 0..255 as grey levels; all others as they are, for the check of their scale.

    Python's whole numbers become int64 in Parquet: here their type says nothing of their scale.
    """
    whole = np.issubdtype(values.dtype, np.integer)
    if whole and values.min(initial=0) >= 0 and values.max(initial=0) <= 255:
        return from_bytes(values.astype(np.uint8))
    return np.ascontiguousarray(values)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in lists)
