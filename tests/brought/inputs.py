"""What the tests of brought inputs make them from: small images whose grey level tells them apart,
folders, and Parquet in the layouts that people have."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffcert_ray.datasets import load_dataset


def grey(level: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def encoded(values: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def image_folder(root: Path, *classes: str, per_class: int = 1) -> Path:
    """A sub-folder for each class, in this order; image k of class c has level c + 1 + 110 k."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            (root / name / f"{k}.png").write_bytes(encoded(grey(c + 1 + 110 * k)))
    return root


def level(data, image_id: int) -> int:
    """The grey level of an image that is of one level."""
    return int(np.rint(data.image(image_id)[0, 0, 0] * 255))


def parquet(
    file: Path, labels, *, images=None, names=None, columns=None, kind=None, **options
) -> Path:
    """Rows of images of level 10, 11, ... with these labels; names go into the metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [encoded(grey(10 + k)) for k in range(len(labels))]
    table = {"image": images, "label": labels if kind is None else pa.array(labels, kind)}
    made = pa.table(table | (columns or {}))
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(made, file, **options)
    return file


def of_folder(path: Path, **keys):
    return load_dataset({"name": "folder", "path": str(path), "split": "all"} | keys)


def of_parquet(path: Path, **keys):
    return load_dataset({"name": "parquet", "path": str(path), "split": "all"} | keys)


def labels_by_level(data) -> dict[int, str]:
    """Grey level -> name of the class that the image was given."""
    return {
        level(data, i): data.class_names[label]
        for i, label in zip(data.ids.tolist(), data.labels.tolist(), strict=True)
    }
