"""Parquet as Spark, pandas and Hugging Face leave it: companions, types, other columns, paths."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffcert_ray.datasets import check_images
from diffcert_ray.errors import CorruptImageError, DatasetError
from tests.brought.inputs import (
    encoded,
    grey,
    image_folder,
    labels_by_level,
    level,
    of_folder,
    of_parquet,
    parquet,
)

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def levels(data) -> list[int]:
    return [level(data, i) for i in data.ids.tolist()]


# --- files


@pytest.mark.parametrize("folder", ["", "test.parquet", "data/test"])
def test_what_spark_writes_beside_its_parts_is_none_of_them(tmp_path, folder):
    parquet(tmp_path / folder / "part-00000-c1.snappy.parquet", [0, 1])
    parquet(tmp_path / folder / "part-00001-c1.snappy.parquet", [1])
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00000-c1.snappy.parquet.crc", "_metadata",
                 "_common_metadata", "README.md", "dataset_infos.json"):  # fmt: skip
        (tmp_path / folder / name).write_bytes(b"{}")
    data = of_parquet(tmp_path)
    assert data.labels.tolist() == [0, 1, 1]
    if folder:
        assert of_parquet(tmp_path, split="test").fingerprint
    assert of_parquet(tmp_path / folder).labels.tolist() == [0, 1, 1]  # "test.parquet" is a folder


def test_columns_in_another_order_and_of_other_widths_are_the_same_columns(tmp_path):
    parquet(tmp_path / "0.parquet", [0, 1], kind=pa.int64(), columns={"id": [5, 6]})
    table = pq.read_table(tmp_path / "0.parquet")
    other = table.select(["id", "label", "image"])
    kinds = {"id": pa.int32(), "label": pa.int8(), "image": pa.large_binary()}
    other = other.cast(pa.schema([(name, kinds[name]) for name in other.column_names]))
    other = other.set_column(0, "id", pa.array([9, 7], pa.int32()))
    pq.write_table(other, tmp_path / "1.parquet")
    data = of_parquet(tmp_path, id_column="id")
    assert data.ids.tolist() == [5, 6, 9, 7]
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert levels(data) == [10, 11, 10, 11]
    assert data.notes == ()


def test_unused_columns_that_differ_are_named_and_do_not_matter(tmp_path):
    parquet(tmp_path / "0.parquet", [0, 1], columns={"url": ["a", "b"], "size": [1, 2]})
    parquet(tmp_path / "1.parquet", [1], columns={"size": ["3"], "aesthetic": [0.5]})
    data = of_parquet(tmp_path)
    assert data.labels.tolist() == [0, 1, 1]
    assert levels(data) == [10, 11, 10]
    assert any("'aesthetic', 'size', 'url' are not alike" in note for note in data.notes)
    parquet(tmp_path / "2.parquet", [0])
    pq.write_table(
        pq.read_table(tmp_path / "2.parquet").rename_columns(["picture", "label"]),
        tmp_path / "2.parquet",
    )
    with pytest.raises(DatasetError, match=r"2\.parquet has no column 'image', which 0\.parquet"):
        of_parquet(tmp_path)


# --- labels


@pytest.mark.parametrize(
    ("labels", "kind", "names", "expected"),
    [
        (["dog", "ant", "dog"], pa.string(), ("ant", "dog"), [1, 0, 1]),
        (["dog", "ant", "dog"], pa.large_string(), ("ant", "dog"), [1, 0, 1]),
        ([b"dog", b"ant", b"dog"], pa.binary(), ("ant", "dog"), [1, 0, 1]),
        ([True, False, True], pa.bool_(), ("False", "True"), [1, 0, 1]),
        ([False, False, False], pa.bool_(), ("False", "True"), [0, 0, 0]),
        ([2, 0, 1], pa.uint8(), ("0", "1", "2"), [2, 0, 1]),
        ([2.0, 0.0, 1.0], pa.float64(), ("0", "1", "2"), [2, 0, 1]),
    ],
    ids=["text", "large text", "bytes", "truth", "all false", "uint8", "whole floats"],
)
def test_labels_of_many_types_are_classes(tmp_path, labels, kind, names, expected):
    parquet(tmp_path / "all.parquet", labels, kind=kind)
    data = of_parquet(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (names, expected)


@pytest.mark.parametrize(
    ("categories", "names"),
    [(["dog", "ant", "eel"], ("ant", "dog", "eel")), ([7, 0, 2], tuple(map(str, range(8))))],
    ids=["text", "numbers"],
)
def test_categories_of_pandas_are_classes(tmp_path, categories, names):
    for k, part in enumerate((categories[:2], categories[1:])):  # each file has its own codes
        frame = pd.DataFrame({"image": [encoded(grey(10 + k))] * 2})
        frame["label"] = pd.Categorical(part)
        frame.to_parquet(tmp_path / f"{k}.parquet")
    data = of_parquet(tmp_path)
    assert data.class_names == names
    found = [data.class_names[label] for label in data.labels]
    assert found == [str(c) for c in (*categories[:2], *categories[1:])]


def test_a_row_without_a_label_is_no_class_0(tmp_path):
    parquet(tmp_path / "all.parquet", [1.0, float("nan"), 0.0], kind=pa.float64())
    with pytest.raises(DatasetError, match="image 1 of parquet all has label -1"):
        of_parquet(tmp_path)
    assert of_parquet(tmp_path, ids=[0, 2]).labels.tolist() == [1, 0]
    parquet(tmp_path / "all.parquet", ["ant", None, "bee"], kind=pa.string())
    with pytest.raises(DatasetError, match="empty labels"):
        of_parquet(tmp_path)


@pytest.mark.parametrize(
    ("labels", "kind", "match"),
    [
        ([[1], [0]], None, r"is list<.*>, not whole numbers or text"),
        ([0.5, 1.0], pa.float64(), r"has 0\.5, which is no class"),
        ([1, 0], pa.timestamp("s"), "is timestamp"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_type(tmp_path, labels, kind, match):
    parquet(tmp_path / "all.parquet", labels, kind=kind)
    with pytest.raises(DatasetError, match=match):
        of_parquet(tmp_path)


def test_an_empty_file_of_a_split_says_nothing_of_types(tmp_path):
    parquet(tmp_path / "1.parquet", ["ant", "bee"])
    frame = pd.DataFrame({"image": [], "label": []})
    frame.to_parquet(tmp_path / "0.parquet")
    assert of_parquet(tmp_path).labels.tolist() == [0, 1]


def test_text_in_one_file_and_numbers_in_another_are_refused(tmp_path):
    parquet(tmp_path / "0.parquet", [0, 1])
    parquet(tmp_path / "1.parquet", ["ant", "bee"])
    with pytest.raises(DatasetError, match="int64, string, not whole numbers or text"):
        of_parquet(tmp_path)


# --- images


def paths_only(folder, paths, *, struct=True):
    """Parquet whose images are files beside it, as datasets without embedded files are saved."""
    for k, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded(grey(10 + k)))
    column = pa.array([{"bytes": None, "path": p} for p in paths], STRUCT)
    parquet(folder / "all.parquet", [0, 1], images=column if struct else pa.array(paths))


@pytest.mark.parametrize("struct", [True, False], ids=["struct", "text"])
@pytest.mark.parametrize("where", ["images/{}.png", "{}.png"])
def test_images_that_are_paths_are_read_below_the_dataset(tmp_path, struct, where):
    paths_only(tmp_path, [where.format(k) for k in "ab"], struct=struct)
    assert levels(of_parquet(tmp_path)) == [10, 11]
    assert levels(of_parquet(tmp_path / "all.parquet")) == [10, 11]


def test_an_absolute_path_below_the_dataset_is_read_and_no_other(tmp_path):
    home = tmp_path / "home"
    paths_only(home, ["a.png", "b.png"])
    (tmp_path / "secret.png").write_bytes(encoded(grey(99)))
    for path, read in (
        (str(home / "a.png"), True),
        (str(tmp_path / "secret.png"), False),
        ("../secret.png", False),
        ("images/../../secret.png", False),
        ("https://example.org/a.png", False),
        ("file:///etc/hostname", False),
    ):
        column = pa.array([{"bytes": None, "path": path}], STRUCT)
        parquet(home / "all.parquet", [0], images=column)
        data = of_parquet(home, image_shape=[3, 4, 4])
        if read:
            assert levels(data) == [10]
            continue
        with pytest.raises(CorruptImageError, match="which is not below"):
            data.image(0)


def test_a_struct_with_nothing_but_a_path_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(grey(10)))
    kind = pa.struct([("path", pa.string())])
    parquet(tmp_path / "all.parquet", [0], images=pa.array([{"path": "a.png"}], kind))
    assert levels(of_parquet(tmp_path)) == [10]


def test_a_file_that_is_missing_is_named(tmp_path):
    paths_only(tmp_path, ["a.png", "b.png"], struct=False)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"has no file 'b\.png'"):
        of_parquet(tmp_path).image(1)


def test_a_corrupt_image_is_named_by_its_file_and_row(tmp_path):
    cells = [{"bytes": encoded(grey(10 + k)), "path": f"photo_{k}.png"} for k in range(3)]
    cells[2]["bytes"] = cells[2]["bytes"][:20]
    parquet(tmp_path / "test-0.parquet", [0, 1, 0], images=pa.array(cells[:2] * 2, STRUCT)[:3])
    parquet(tmp_path / "test-1.parquet", [0, 1, 0], images=pa.array(cells, STRUCT))
    data = of_parquet(tmp_path)
    checked = check_images(data, data.ids)
    assert list(checked.corrupt) == [5]
    assert "row 2 of test-1.parquet ('photo_2.png')" in checked.corrupt[5]


@pytest.mark.parametrize(
    "path",
    ["._photo.png", "ant/._photo.png", "Thumbs.db", "__MACOSX/ant/photo.png",
     "/home/me/data/.ipynb_checkpoints/photo-checkpoint.png"],
)  # fmt: skip
def test_an_image_that_a_program_left_behind_is_none(tmp_path, path):
    cells = [{"bytes": encoded(grey(10 + k)), "path": f"/home/me/.cache/{k}.png"} for k in range(2)]
    cells.append({"bytes": encoded(grey(99)), "path": path})
    parquet(tmp_path / "all.parquet", [0, 1, 0], images=pa.array(cells, STRUCT))
    data = of_parquet(tmp_path)
    corrupt = check_images(data, data.ids).corrupt
    assert list(corrupt) == [2]
    assert path in corrupt[2]
    assert "it is no image of the dataset: remove its row" in corrupt[2]


def test_a_corrupt_image_of_a_folder_is_named_by_its_file(tmp_path):
    image_folder(tmp_path, "ant", "bee")
    (tmp_path / "bee" / "0.png").write_bytes(b"GIF89a")
    data = of_folder(tmp_path)
    with pytest.raises(CorruptImageError, match=r"bee/0\.png: its 6 bytes are no PNG"):
        data.image(1)


def test_bytes_in_one_file_and_a_struct_in_another_are_both_images(tmp_path):
    parquet(tmp_path / "0.parquet", [0])
    cells = pa.array([{"bytes": encoded(grey(30)), "path": None}], STRUCT)
    parquet(tmp_path / "1.parquet", [1], images=cells)
    assert labels_by_level(of_parquet(tmp_path)) == {10: "0", 30: "1"}


def test_names_of_a_label_column_in_the_metadata_are_its_classes(tmp_path):
    features = {"coarse": {"names": ["x", "y"]}, "label": {"names": ["ant", "bee", "cat"]}}
    parquet(tmp_path / "all.parquet", [2, 0], columns={"coarse": [0, 1]})
    table = pq.read_table(tmp_path / "all.parquet")
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "all.parquet")
    assert of_parquet(tmp_path).class_names == ("ant", "bee", "cat")
    assert of_parquet(tmp_path, label_column="coarse").class_names == ("x", "y")
    assert np.array_equal(of_parquet(tmp_path).labels, [2, 0])
