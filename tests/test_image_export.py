"""Results beside their images as Parquet: read back by this package and by pandas."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffcert_ray import certify, load_dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.parquet_export import export_parquet, png
from diffcert_ray.run.stored import open_run

DIGITS = {
    "name": "tiny",
    "votes": {"sigmas": [0.25, 0.5], "n0": 4, "n": 12, "unit": 4, "radii": [0.0]},
    "noise_levels": {"levels": 4},
    "numerics": {"batch": 8},
    "dataset": {"name": "digits", "every": 100, "first": None},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    certify(DIGITS, folder, local=True, images=(0, 3))
    return open_run(folder)


@pytest.fixture(scope="module")
def path(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported") / "test.parquet"
    assert export_parquet(run, place) == 6
    return place


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal values: what is a dictionary in one file may be plain text in another."""
    text = expected.select_dtypes("category").columns
    plain = {name: "str" for name in text}
    pd.testing.assert_frame_equal(found.astype(plain), expected.astype(plain), check_dtype=False)


def test_pandas_reads_certificates_votes_and_pictures(run, path):
    rows = pd.read_parquet(path)
    stored = run.certificates().sort_values(["sigma", "image_id"], ignore_index=True)
    same(rows[list(stored)], stored)
    votes = np.stack(rows["votes"])
    assert votes.shape == (6, 10)
    assert (votes.sum(axis=1) + rows["other_votes"] == 12).all()
    certified = rows[~rows["abstained"]]
    assert len(certified)
    assert [v[k] for v, k in zip(certified["votes"], certified["predicted"], strict=True)] == list(
        certified["n_a"]
    )
    digits = load_dataset({"name": "digits"})
    for image_id, cell in zip(rows["image_id"], rows["image"], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(cell["bytes"]))) / 255
        assert np.abs(shown - digits.image(image_id)[0]).max() <= 0.5 / 255 + 1e-6


def test_this_package_reads_it_as_a_dataset(run, path):
    data = load_dataset({"name": "parquet", "path": str(path), "image_shape": [1, 8, 8]})
    rows = run.certificates().sort_values(["sigma", "image_id"])
    assert data.labels.tolist() == rows["label"].tolist()
    assert data.class_names == load_dataset({"name": "digits"}).class_names
    assert data.image(0).shape == (1, 8, 8)


def test_the_metadata_describe_every_column(path):
    schema = pq.read_schema(path)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["radius"] == {"_type": "Value", "dtype": "float64"}
    assert features["correct"] == {"_type": "Value", "dtype": "bool"}
    assert features["bound"] == {"_type": "Value", "dtype": "string"}
    assert features["votes"]["feature"] == {"_type": "Value", "dtype": "int64"}


def test_arrow_and_pandas_tables_of_a_run_agree(run):
    same(run.table().to_pandas(), run.certificates())
    same(run.table("units").to_pandas(), run.units())
    assert b"pixels in [0, 1]" in run.table().schema.field("radius").metadata[b"unit"]


def test_pictures_are_grey_or_coloured():
    pixels = (np.arange(48).reshape(3, 4, 4) / 255).astype(np.float32)
    back = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(back.transpose(2, 0, 1), np.arange(48).reshape(3, 4, 4))
    with pytest.raises(ConfigError, match="5 channels"):
        png(np.zeros((5, 4, 4), np.float32))


def test_another_dataset_is_refused_and_nothing_is_left(run, tmp_path, monkeypatch):
    other = load_dataset({"name": "digits", "split": "train"})
    monkeypatch.setattr("diffcert_ray.report.parquet_export.load_dataset", lambda *a: other)
    with pytest.raises(ConfigError, match="restore the data"):
        export_parquet(run, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []
