"""A run's results beside their images: one Parquet file, laid out as Hugging Face datasets are."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.errors import ConfigError, CorruptImageError
from diffcert_ray.run.certifiable import check_labels
from diffcert_ray.run.stored import Run
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA

ROWS = 1000  # of a row group: what readers hold at once
VOTES = ("votes", "other_votes")
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def export_parquet(run: Run, path: Path) -> int:
    """Write one row for each certificate: image, label, predicted class, radius, votes, all else.

    Columns are those of certificates/, with ``image`` (PNG of 8 bits a channel: exact for datasets
    that are stored so) and, for bounds from votes, ``votes`` (stored estimation votes for each
    class, [K]) and ``other_votes`` (not the asked class, or unresolved). An image that could not be
    read is null.

    Returns:
        Rows written; the file appears whole.

    Raises:
        ConfigError: there are no certificates, or some of another run or that their bound does not
            hold for; the dataset is not at hand or another one.
    """
    certificates = run.table("certificates").sort_by(
        [("sigma", "ascending"), ("image_id", "ascending")]
    )
    if not certificates.num_rows:
        raise ConfigError(f"run {run.address} has no certificates yet: run certify on it first")
    data = _dataset(run)
    check_labels(certificates.select(["image_id", "label"]).to_pandas(), data)
    units = run.kind.votes_by_class(run.store)
    if units is not None:
        for name, column in zip(VOTES, _votes(units, certificates, data.num_classes), strict=True):
            certificates = certificates.append_column(name, column)
    schema = _schema(certificates.schema, data.class_names)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for rows in _with_images(certificates, data):
                writer.write_table(rows.select(schema.names).cast(schema))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return int(certificates.num_rows)


def _dataset(run: Run) -> Dataset:
    data = load_dataset(run.config.dataset.whole(), run.config.execution.storage_options)
    if data.fingerprint != run.document.dataset.get("fingerprint"):
        raise ConfigError(
            f"the dataset's fingerprint is {data.fingerprint}, the run was started with "
            f"{run.document.dataset.get('fingerprint')}: restore the data, or export without "
            "images (--format logs)"
        )
    return data


def _votes(units: pa.Table, certificates: pa.Table, classes: int) -> tuple[pa.Array, pa.Array]:
    """Stored estimation votes of each certificate's image and sigma, by class; the others."""
    keys = list(zip(*(certificates[k].to_pylist() for k in ("sigma", "image_id")), strict=True))
    row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    asked = zip(*(units[k].to_pylist() for k in ("sigma", "image_id")), strict=True)
    rows = np.array([row_of.get(key, -1) for key in asked], np.int64)
    lengths = pc.list_value_length(units["classes"]).to_numpy()
    row = np.repeat(rows, lengths)
    klass, count = (pc.list_flatten(units[k]).to_numpy() for k in ("classes", "counts"))
    votes = np.zeros((len(row_of), classes + 1), np.int64)  # the last entry: other votes
    kept = row >= 0
    np.add.at(votes, (row[kept], np.where(klass < 0, classes, klass)[kept]), count[kept])
    table = votes[[row_of[key] for key in keys]]
    offsets = np.arange(len(table) + 1, dtype=np.int32) * classes
    by_class = pa.ListArray.from_arrays(pa.array(offsets), pa.array(table[:, :-1].ravel()))
    return by_class, pa.array(table[:, -1])


def _with_images(certificates: pa.Table, data: Dataset) -> Iterator[pa.Table]:
    for start in range(0, certificates.num_rows, ROWS):
        rows = certificates.slice(start, ROWS)
        cells = [_cell(data, image_id) for image_id in rows["image_id"].to_pylist()]
        yield rows.append_column("image", pa.array(cells, _IMAGE))


def _cell(data: Dataset, image_id: int) -> dict[str, Any] | None:
    try:
        return {"bytes": png(data.image(image_id)), "path": f"{image_id}.png"}
    except CorruptImageError:
        return None


def png(pixels: NDArray[np.float32]) -> bytes:
    """An image [C, H, W] in [0, 1] as PNG, rounded to 8 bits a channel, grey or colour."""
    from PIL import Image

    if len(pixels) not in (1, 3):
        raise ConfigError(
            f"images of {len(pixels)} channels are no pictures: export without (--format logs)"
        )
    values = np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(values if len(pixels) == 3 else values[..., 0]).save(file, "PNG")
    return file.getvalue()


def _schema(columns: pa.Schema, class_names: tuple[str, ...]) -> pa.Schema:
    """Image and label first, and what Hugging Face's library reads the columns as."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(class_names)},
    }
    for field in columns:
        features.setdefault(field.name, _feature(field.type))
    types = {field.name: field.type for field in columns} | {"image": _IMAGE}
    fields = [pa.field(name, types[name]) for name in features]
    document = json.dumps({"info": {"features": features}})
    units = {f"unit.{field.name}": field.metadata[b"unit"] for field in CERTIFICATE_SCHEMA}
    return pa.schema(fields, metadata={"huggingface": document, **units})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"_type": "Sequence", "feature": _feature(kind.value_type)}
    names = {pa.float64(): "float64", pa.bool_(): "bool"}
    return {"_type": "Value", "dtype": names.get(kind, str(kind))}
