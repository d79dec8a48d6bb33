"""Parquet with images, local: layouts, splits, columns, row groups in memory, damage."""

import json
import pickle
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.datasets.parquet_files import RowGroups
from diffcert_ray.errors import CorruptImageError, DatasetError
from tests.test_datasets_files import png

RANDOM = np.random.default_rng(23)
ROWS, GROUP = 20, 6
VALUES = RANDOM.integers(0, 256, (ROWS, 4, 5, 3), np.uint8)  # H W C
LABELS = RANDOM.integers(0, 3, ROWS)
NAMES = ["cat", "dog", "eel"]
IMAGE = ("image.bytes", "image.path")


def encoded() -> list[bytes]:
    return [png(values) for values in VALUES]


def hugging_face(images=None, labels=LABELS, label="label", image="image", **columns) -> pa.Table:
    """The layout that Hugging Face writes: a struct of bytes and path, names in the metadata."""
    cells = [{"bytes": b, "path": f"{k}.png"} for k, b in enumerate(images or encoded())]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        image: {"_type": "Image"},
        label: {"names": NAMES, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({image: pa.array(cells, kind), label: pa.array(labels, pa.int64()), **columns})
    return table.replace_schema_metadata(metadata)


def write(path, table, group=GROUP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **options)


def spec(path, **keys):
    return {"name": "parquet", "path": str(path), **keys}


def assert_images_are(data, values):
    for image_id, expected in zip(data.ids, values, strict=True):
        image = data.image(image_id)
        assert image.dtype == np.float32
        assert np.array_equal(image, expected.transpose(2, 0, 1).astype(np.float32) / 255)


# --- layouts


def test_hugging_face_layout_gives_images_labels_and_names(tmp_path):
    write(tmp_path / "data" / "test-00000-of-00001.parquet", hugging_face())
    data = load_dataset(spec(tmp_path))
    assert data.ids.tolist() == list(range(ROWS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.class_names == tuple(NAMES)
    assert data.image_shape == (3, 4, 5)
    assert_images_are(data, VALUES)


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        (pa.array(encoded(), pa.binary()), {}),
        (pa.array(encoded(), pa.large_binary()), {}),
        (pa.array(VALUES.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))), {}),
        (pa.array(VALUES.transpose(0, 3, 1, 2).tolist()), {}),  # int64, channels first
        (
            pa.array(
                (VALUES / np.float32(255)).tolist(), pa.list_(pa.list_(pa.list_(pa.float32())))
            ),
            {},
        ),
        (
            pa.FixedSizeListArray.from_arrays(VALUES.transpose(0, 3, 1, 2).ravel(), 60),
            {"image_shape": (3, 4, 5)},
        ),
        (pa.array(VALUES.tolist()), {"image_shape": (3, 4, 5)}),
    ],
    ids=["bytes", "large bytes", "nested", "channels first", "floats", "flat", "shape given"],
)
def test_bytes_and_numbers_give_the_same_images(tmp_path, column, keys):
    write(tmp_path / "test.parquet", pa.table({"image": column, "label": LABELS}))
    data = load_dataset(spec(tmp_path, **keys))
    assert_images_are(data, VALUES)
    assert data.image_shape == (3, 4, 5)
    assert data.class_names == ("0", "1", "2")  # as many as the largest label tells


def test_grey_images_are_lists_of_rows_or_encoded_with_their_shape_said(tmp_path):
    grey = VALUES[..., 0]
    for column, keys in (
        (pa.array(grey.tolist()), {}),
        (pa.array([png(g) for g in grey]), {"image_shape": (1, 4, 5)}),
    ):
        write(tmp_path / "test.parquet", pa.table({"image": column, "label": LABELS}))
        data = load_dataset(spec(tmp_path, **keys))
        assert data.image_shape == (1, 4, 5)
        assert np.array_equal(np.rint(data.image(7) * 255)[0], grey[7])


def test_text_labels_are_classes_by_sorted_name(tmp_path):
    words = [["eel", "ant", "dog"][k] for k in LABELS]
    write(tmp_path / "test.parquet", pa.table({"image": encoded(), "label": words}))
    data = load_dataset(spec(tmp_path))
    assert data.class_names == ("ant", "dog", "eel")
    assert [data.class_names[k] for k in data.labels] == words
    mapped = load_dataset(spec(tmp_path, label_map={"eel": 0, "ant": 1, "dog": 2}))
    assert mapped.labels.tolist() == [{"eel": 0, "ant": 1, "dog": 2}[w] for w in words]


def test_columns_are_found_by_their_usual_names_or_by_setting(tmp_path):
    table = hugging_face(image="img", label="fine_label", coarse_label=pa.array([0] * ROWS))
    write(tmp_path / "test.parquet", table)
    with pytest.raises(DatasetError, match=r"label_column is needed: .*fine_label, coarse_label"):
        load_dataset(spec(tmp_path))
    data = load_dataset(spec(tmp_path, label_column="fine_label"))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.class_names == tuple(NAMES)
    with pytest.raises(DatasetError, match="image_column 'imgs' is no column: did you mean 'img'"):
        load_dataset(spec(tmp_path, label_column="fine_label", image_column="imgs"))
    with pytest.raises(DatasetError, match="'coarse_label' is int64, which is no image"):
        load_dataset(spec(tmp_path, label_column="fine_label", image_column="coarse_label"))


# --- splits, ids, parts


def test_files_of_a_split_are_one_dataset_in_the_order_of_their_names(tmp_path):
    table = hugging_face()
    for k, (start, stop) in enumerate([(0, 9), (9, 10), (10, 20)]):
        part = table.slice(start, stop - start)
        write(tmp_path / "data" / f"test-{k:05}-of-00003.parquet", part, group=4)
    write(tmp_path / "data" / "train-00000-of-00001.parquet", table.slice(0, 5))
    data = load_dataset(spec(tmp_path))
    assert data.labels.tolist() == LABELS.tolist()
    assert_images_are(data, VALUES)
    assert len(load_dataset(spec(tmp_path, split="train"))) == 5
    assert len(load_dataset(spec(tmp_path, split="all"))) == 25
    one_file = tmp_path / "data" / "train-00000-of-00001.parquet"
    assert len(load_dataset(spec(one_file))) == 5
    with pytest.raises(DatasetError, match=r"of split 'val' .* there are data/test-00000"):
        load_dataset(spec(tmp_path, split="val"))


def test_parts_take_the_rows_they_say_in_their_order(tmp_path):
    write(tmp_path / "test.parquet", hugging_face())
    whole = load_dataset(spec(tmp_path))
    for keys, rows in (
        ({"ids": [19, 0, 7]}, [19, 0, 7]),
        ({"every": 8}, [0, 8, 16]),
        ({"first": 2}, [0, 1]),
        ({"sample": 4, "seed": 3}, load_dataset(spec(tmp_path, sample=9, seed=3)).ids[:4]),
    ):
        part = load_dataset(spec(tmp_path, **keys))
        assert part.ids.tolist() == list(rows)
        assert part.labels.tolist() == LABELS[rows].tolist()
        assert_images_are(part, VALUES[rows])
        assert part.fingerprint == whole.fingerprint


def test_an_id_column_names_the_images(tmp_path):
    ids = RANDOM.permutation(ROWS) + 1000
    write(tmp_path / "test.parquet", hugging_face(number=pa.array(ids)))
    data = load_dataset(spec(tmp_path, id_column="number", ids=[int(ids[12]), int(ids[3])]))
    assert data.labels.tolist() == LABELS[[12, 3]].tolist()
    assert_images_are(data, VALUES[[12, 3]])
    twice = ids.copy()
    twice[4] = twice[9]
    write(tmp_path / "test.parquet", hugging_face(number=pa.array(twice)))
    with pytest.raises(DatasetError, match=f"has id {twice[9]} twice"):
        load_dataset(spec(tmp_path, id_column="number"))
    with pytest.raises(DatasetError, match=r"is struct.* ids are whole numbers"):
        load_dataset(spec(tmp_path, id_column="image"))


def test_fingerprint_changes_with_the_files_and_with_what_is_read_of_them(tmp_path):
    write(tmp_path / "test.parquet", hugging_face())
    before = load_dataset(spec(tmp_path)).fingerprint
    assert load_dataset(spec(tmp_path)).fingerprint == before
    other = load_dataset(spec(tmp_path, image_shape=(3, 4, 5))).fingerprint
    write(tmp_path / "test.parquet", hugging_face(labels=(LABELS + 1) % 3))
    assert len({before, other, load_dataset(spec(tmp_path)).fingerprint}) == 3


def test_unlabelled_rows_are_refused_by_id(tmp_path):
    labels = LABELS.copy()
    labels[13] = -1
    write(tmp_path / "test.parquet", hugging_face(labels=labels))
    with pytest.raises(DatasetError, match=r"image 13 of parquet test has label -1, .* 0 to 2"):
        load_dataset(spec(tmp_path))
    assert len(load_dataset(spec(tmp_path, first=13))) == 13
    write(tmp_path / "test.parquet", hugging_face(labels=[None if k == 2 else 1 for k in LABELS]))
    with pytest.raises(DatasetError, match="has label -1"):
        load_dataset(spec(tmp_path))


def test_a_file_without_a_column_that_is_read_is_refused(tmp_path):
    write(tmp_path / "test-0.parquet", hugging_face())
    write(tmp_path / "test-1.parquet", hugging_face().drop_columns("label"))
    with pytest.raises(DatasetError, match=r"test-1\.parquet has no column 'label', which test-0"):
        load_dataset(spec(tmp_path))


# --- row groups


@pytest.fixture
def live(monkeypatch):
    """Row groups fetched, in order, and those still alive when each came."""
    fetched, alive, most = [], [], []
    fetch = RowGroups._fetch

    def counted(self, group, column):
        found = fetch(self, group, column)
        fetched.append((group, column))
        alive.append(weakref.ref(found))
        most.append(sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(RowGroups, "_fetch", counted)
    return fetched, most


def test_one_image_reads_one_row_group_and_its_label_reads_none_of_the_pixels(tmp_path, live):
    fetched, _ = live
    write(tmp_path / "test.parquet", hugging_face())
    data = load_dataset(spec(tmp_path, ids=[14]))
    assert fetched == [(2, "label")]
    data.image(14)
    data.image(14)
    assert fetched[1:] == [(2, IMAGE)]


def test_memory_stays_flat_over_a_pass(tmp_path, live, monkeypatch):
    fetched, most = live
    table = pa.concat_tables([hugging_face()] * 10)
    write(tmp_path / "test.parquet", table, group=5)
    data = load_dataset(spec(tmp_path))
    group_bytes = data.pixels.groups.read(0, IMAGE).nbytes
    monkeypatch.setattr("diffcert_ray.datasets.parquet_files.KEPT_BYTES", int(2.5 * group_bytes))
    fetched.clear()
    most.clear()
    data = load_dataset(spec(tmp_path))
    start = len(fetched)
    assert data.image_shape == (3, 4, 5)
    checked = check_images(data, data.ids)
    assert len(checked.shas) == 200
    # Each of the 40 row groups once, and never more than two kept and one just come.
    assert fetched[start:] == [(group, IMAGE) for group in range(40)]
    assert max(most[start:]) <= 3


def test_a_dataset_that_is_sent_to_another_process_reads_for_itself(tmp_path):
    write(tmp_path / "test.parquet", hugging_face())
    data = load_dataset(spec(tmp_path, first=8))
    data.image(0)
    sent = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 20_000
    assert sent.image_sha(7) == data.image_sha(7)


# --- damage


def test_corrupt_images_are_found_by_id(tmp_path):
    images = encoded()
    images[3], images[4], images[5] = images[3][:40], b"", None
    images[11] = png(RANDOM.integers(0, 256, (9, 9, 3), np.uint8))
    write(tmp_path / "test.parquet", hugging_face(images))
    data = load_dataset(spec(tmp_path))
    checked = check_images(data, data.ids)
    assert list(checked.corrupt) == [3, 4, 5, 11]
    assert "there are no bytes in its row" in checked.corrupt[5]
    assert "image 11 is (3, 9, 9)" in checked.corrupt[11]
    assert len(checked.shas) == ROWS - 4
    with pytest.raises(CorruptImageError, match="image 3 of parquet test is corrupt"):
        data.image(3)


def test_the_first_readable_image_tells_the_shape(tmp_path):
    images = encoded()
    images[0] = b"x"
    write(tmp_path / "test.parquet", hugging_face(images))
    assert load_dataset(spec(tmp_path)).image_shape == (3, 4, 5)
    write(tmp_path / "test.parquet", hugging_face([b"x"] * ROWS))
    with pytest.raises(DatasetError, match="none of the 20 chosen images can be decoded"):
        assert load_dataset(spec(tmp_path)).image_shape


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ([[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], "not of one length"),
        ([[[1, None, 3]]], "empty numbers"),
        ([[[1, 2], [3, 4]], [[1, 2], [3, 4]]], "do not say which of them are channels"),
    ],
)
def test_lists_that_are_no_image_are_refused(tmp_path, cell, match):
    write(tmp_path / "test.parquet", pa.table({"image": pa.array([cell]), "label": [0]}))
    data = load_dataset(spec(tmp_path))
    with pytest.raises(CorruptImageError, match=match):
        data.image(0)


def test_files_that_are_no_parquet_or_damaged_are_refused_by_name(tmp_path):
    file = tmp_path / "test.parquet"
    write(file, hugging_face(), compression="NONE")
    whole = file.read_bytes()
    for damaged in (whole[:-20], b"PAR1", b"x" * 100, whole[:-40] + b"\xff" * 32 + whole[-8:]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"test\.parquet (is no Parquet file|has a damaged)"):
            load_dataset(spec(tmp_path))
    with pytest.raises(DatasetError, match="does not exist or is empty"):
        load_dataset(spec(tmp_path / "nowhere"))


def test_a_damaged_row_group_is_refused_by_file_and_number(tmp_path):
    file = tmp_path / "test.parquet"
    write(file, hugging_face(), compression="NONE", use_dictionary=False)
    chunk = pq.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    file.write_bytes(data)
    found = load_dataset(spec(tmp_path))
    assert found.image(0).shape == (3, 4, 5)
    with pytest.raises(DatasetError, match=r"test\.parquet is damaged in row group 1"):
        found.image(8)
