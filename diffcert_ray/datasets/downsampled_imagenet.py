"""Downsampled ImageNet, 64x64 or 32x32: val_data.npz and train_data_batch_1..10.npz.

Source: Chrabaszcz, Loshchilov and Hutter 2017, "A Downsampled Variant of ImageNet as an Alternative
to the CIFAR datasets". Rows are the red, green and blue plane of an image. Labels count from 1 in
the order of the ILSVRC development kit's map_clsloc.txt, which starts n02119789 (kit fox): not that
of the sorted WordNet ids, which starts n01440764 (tench), that EDM and ADM networks are trained in.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcert_ray.datasets.data_files import DataFiles
from diffcert_ray.datasets.pixel_scale import check_published
from diffcert_ray.datasets.pixels import BytePixels
from diffcert_ray.datasets.reader import Ints, Request, Split
from diffcert_ray.errors import DatasetError

CLASSES = 1000
BLOCK_ROWS = 512  # decompressed at a time


def read_downsampled_imagenet(request: Request) -> Split:
    """Downsampled ImageNet, split "val" or "train"; image_id is the row in it, batch after batch.

    Only the chosen rows are kept; the files are decompressed by blocks, once, up to the last of
    them. The fingerprint rests on the labels and on the files' own checksums of their pixels. The
    path is the folder of the .npz files. The split needs a label map.
    """
    request.check_split("val", "train")
    side = int(request.name.removeprefix("imagenet"))
    files = request.files()
    train = [f"train_data_batch_{k}.npz" for k in range(1, 11)]
    names = train if request.split == "train" else ["val_data.npz"]
    digest = hashlib.sha256(f"{request.name} {request.split}".encode())
    labels = [_labels(files, name, 3 * side * side, digest) for name in names]
    all_labels = np.concatenate(labels)
    digest.update(all_labels.astype("<i8").tobytes())
    starts = np.cumsum([0, *map(len, labels)])

    def pixels(positions: Ints) -> BytePixels:
        values = np.empty((len(positions), 3, side, side), np.uint8)
        for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True):
            (mine,) = np.nonzero((positions >= start) & (positions < stop))
            rows = positions[mine] - start
            for at, row in _rows(files, name, rows):
                values[mine[at]] = row.reshape(3, side, side)
        return BytePixels(values)

    return Split(
        ids=np.arange(len(all_labels), dtype=np.int64),
        labels=all_labels.__getitem__,
        pixels=pixels,
        class_names=tuple(str(k) for k in range(1, CLASSES + 1)),
        fingerprint=digest.hexdigest(),
        first_label=1,
        order_known=False,
    )


def _labels(files: DataFiles, name: str, row_bytes: int, digest: Any) -> Ints:
    """Labels of a file, counted from 0; its pixels are checked by shape and hashed by checksum."""
    with _archive(files, name) as archive:
        with archive.open("data.npy") as file:
            shape = _data_shape(file, f"{files.address}/{name}")
        with archive.open("labels.npy") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
        if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{labels.shape} labels of {labels.dtype} for {shape[0]} images")
        info = archive.getinfo("data.npy")
    if shape[1:] != (row_bytes,):
        raise DatasetError(
            f"{files.address}/{name} has rows of {shape[1:]} bytes, not {row_bytes}: it is of the "
            "other resolution; use dataset.name imagenet64 or imagenet32 as it fits"
        )
    digest.update(f"{name} {info.file_size} {info.CRC:08x}".encode())
    return labels.astype(np.int64) - 1


def _rows(files: DataFiles, name: str, rows: Ints) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index in ``rows``, its bytes) for each row, in the order of the file."""
    if len(rows) == 0:
        return
    order = np.argsort(rows, kind="stable")
    with _archive(files, name) as archive, archive.open("data.npy") as file:
        count, width = _data_shape(file, f"{files.address}/{name}")
        for start in range(0, count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, count)
            data = file.read((stop - start) * width)
            if len(data) < (stop - start) * width:
                raise EOFError(f"row {start} and those after it are missing")
            block = np.frombuffer(data, np.uint8).reshape(-1, width)
            first, last = np.searchsorted(rows[order], [start, stop])
            for index in order[first:last]:
                yield int(index), block[rows[index] - start]
            if last == len(rows):
                return


def _data_shape(file: Any, where: str) -> tuple[int, ...]:
    """Shape of the array [N, 3 * H * W] of bytes whose content follows in a file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype != np.uint8 and not dtype.hasobject and len(shape) >= 1:
        first = min(shape[0], BLOCK_ROWS) * math.prod(shape[1:])
        data = file.read(first * dtype.itemsize)
        check_published(np.frombuffer(data, dtype), f"{where} (its first rows)")
    if dtype.hasobject or fortran or len(shape) != 2:
        raise ValueError(f"data is {dtype} {shape}, not bytes [N, 3 * H * W] in C order")
    return shape


@contextmanager
def _archive(files: DataFiles, name: str) -> Iterator[zipfile.ZipFile]:
    """The file as an archive; whatever is wrong in it is said with its name."""
    with files.open(name) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, zlib.error) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{files.address}/{name} is damaged, or not a file of downsampled ImageNet "
                f"({error}): fetch it again"
            ) from None
