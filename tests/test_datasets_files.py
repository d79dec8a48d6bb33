"""SVHN, downsampled ImageNet, image folders and label maps, from files in the real formats."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.datasets.decoding import decode_image
from diffcert_ray.datasets.pixels import UndecodableError
from diffcert_ray.errors import CorruptImageError, DatasetError

RANDOM = np.random.default_rng(11)


# --- SVHN


@pytest.fixture
def svhn(tmp_path):
    values = RANDOM.integers(0, 256, (32, 32, 3, 12), np.uint8)
    labels = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 1]], np.uint8).T
    savemat(tmp_path / "test_32x32.mat", {"X": values, "y": labels}, do_compression=True)
    return tmp_path, values


def test_svhn_images_stand_upright_and_label_10_is_the_digit_0(svhn):
    folder, values = svhn
    data = load_dataset({"name": "svhn", "path": str(folder)})
    assert data.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 1]
    assert data.class_names == tuple("0123456789")
    assert data.image_shape == (3, 32, 32)
    for image_id in (0, 11):
        for channel, row, column in ((0, 1, 2), (2, 31, 0)):
            expected = np.float32(values[row, column, channel, image_id]) / 255
            assert data.image(image_id)[channel, row, column] == expected


def test_svhn_files_in_another_format_are_refused(svhn):
    folder, values = svhn
    spec = {"name": "svhn", "path": str(folder)}
    file = folder / "test_32x32.mat"
    whole = file.read_bytes()
    for content, match in (
        (whole[:400], "cannot be read as a MATLAB 5 file"),
        (b"no MATLAB", "cannot be read as a MATLAB 5 file"),
    ):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=match):
            load_dataset(spec)
    savemat(file, {"X": values, "y": np.zeros((12, 1), np.uint8)})
    with pytest.raises(DatasetError, match="labels 0 to 0, not 1 to 10"):
        load_dataset(spec)
    savemat(file, {"X": values[..., :3], "y": np.ones((12, 1), np.uint8)})
    with pytest.raises(DatasetError, match="does not hold X"):
        load_dataset(spec)
    with pytest.raises(DatasetError, match=r"no file 'extra_32x32\.mat'"):
        load_dataset(spec | {"split": "extra"})


# --- downsampled ImageNet

REVERSED = list(range(999, -1, -1))


@pytest.fixture(params=[32, 64])
def imagenet(request, tmp_path):
    """Ten batches of 2 images and 6 validation images; rows, labels from 1."""
    side = request.param
    written = {}
    for name, count in [("val_data", 6), *((f"train_data_batch_{k}", 2) for k in range(1, 11))]:
        values = RANDOM.integers(0, 256, (count, 3 * side * side), np.uint8)
        labels = RANDOM.integers(1, 1001, count)
        arrays = {"data": values, "labels": labels}
        if name != "val_data":
            arrays["mean"] = values.mean(axis=0)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        written[name] = (values, labels)
    return f"imagenet{side}", tmp_path, written


def test_imagenet_without_a_label_map_is_refused_with_the_reason(imagenet):
    name, folder, _ = imagenet
    with pytest.raises(DatasetError, match=r"count from 1 in an order of their own.*map_clsloc"):
        load_dataset({"name": name, "path": str(folder), "split": "val"})


def test_imagenet_rows_are_planes_and_labels_are_mapped(imagenet):
    name, folder, written = imagenet
    side = int(name[-2:])
    spec = {"name": name, "path": str(folder), "split": "val", "label_map": REVERSED}
    data = load_dataset(spec)
    values, labels = written["val_data"]
    assert data.labels.tolist() == [1000 - label for label in labels]
    assert data.num_classes == 1000
    assert data.image_shape == (3, side, side)
    for image_id in range(6):
        bytes_ = np.rint(data.image(image_id) * 255).astype(np.uint8)
        assert np.array_equal(bytes_.ravel(), values[image_id])
    assert data.class_names[data.labels[0]] == str(labels[0])


def test_imagenet_training_batches_are_one_split_and_only_chosen_rows_are_kept(imagenet):
    name, folder, written = imagenet
    spec = {"name": name, "path": str(folder), "split": "train", "label_map": REVERSED}
    whole = load_dataset(spec)
    assert len(whole) == 20
    part = load_dataset(spec | {"ids": [19, 0, 7, 6]})
    assert part.pixels.shape[0] == 4
    for image_id in (19, 0, 7, 6):
        values = written[f"train_data_batch_{image_id // 2 + 1}"][0][image_id % 2]
        assert np.array_equal(np.rint(part.image(image_id) * 255).ravel(), values)
        assert part.image_sha(image_id) == whole.image_sha(image_id)
    assert part.fingerprint == whole.fingerprint
    (folder / "train_data_batch_9.npz").unlink()
    with pytest.raises(DatasetError, match=r"no file 'train_data_batch_9\.npz'"):
        load_dataset(spec | {"first": 1})


def test_imagenet_fingerprint_knows_pixels_labels_and_map(imagenet):
    name, folder, written = imagenet
    spec = {"name": name, "path": str(folder), "split": "val", "label_map": REVERSED}
    before = load_dataset(spec).fingerprint
    values, labels = written["val_data"]
    assert load_dataset(spec | {"label_map": list(range(1000))}).fingerprint != before
    for data, found in ((values + np.uint8(1), labels), (values, labels % 1000 + 1)):
        np.savez(folder / "val_data.npz", data=data, labels=found)
        assert load_dataset(spec).fingerprint != before
    np.savez(folder / "val_data.npz", data=values, labels=labels)
    assert load_dataset(spec).fingerprint == before


def test_imagenet_of_the_other_size_is_refused_naming_both(imagenet):
    name, folder, _ = imagenet
    other = {"imagenet64": "imagenet32", "imagenet32": "imagenet64"}[name]
    with pytest.raises(DatasetError, match="is of the other resolution"):
        load_dataset({"name": other, "path": str(folder), "split": "val", "label_map": REVERSED})


def test_an_npz_with_objects_or_damage_is_refused_and_nothing_of_it_runs(tmp_path):
    spec = {"name": "imagenet32", "path": str(tmp_path), "split": "val", "label_map": REVERSED}
    file = tmp_path / "val_data.npz"
    values = RANDOM.integers(0, 256, (3, 3072), np.uint8)

    class Touches:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    for arrays in (
        {"data": values, "labels": np.array([Touches(), 1, 2], dtype=object)},
        {"data": np.array([Touches()], dtype=object), "labels": np.array([1])},
        {"data": values, "labels": np.array([1.5, 2, 3])},
        {"data": values, "labels": np.array([1, 2])},
        {"data": values},
    ):
        np.savez(file, **arrays)
        with pytest.raises(DatasetError, match=r"val_data\.npz is damaged, or not a file of"):
            load_dataset(spec)
        assert not (tmp_path / "canary").exists()
    np.savez_compressed(file, data=values, labels=np.array([1, 2, 3]))
    assert len(load_dataset(spec)) == 3
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 50 + whole[150:]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"val_data\.npz is damaged"):
            load_dataset(spec)


def test_a_label_outside_the_classes_is_refused_by_id(tmp_path):
    values = np.zeros((3, 3072), np.uint8)
    np.savez(tmp_path / "val_data.npz", data=values, labels=np.array([1, 1001, 0]))
    spec = {"name": "imagenet32", "path": str(tmp_path), "split": "val", "label_map": REVERSED}
    with pytest.raises(
        DatasetError, match=r"image 1 of imagenet32 val has label 1001, .* 1 to 1000"
    ):
        load_dataset(spec)
    assert load_dataset(spec | {"first": 1}).labels.tolist() == [999]


# --- label maps


def test_map_clsloc_gives_the_order_of_sorted_wordnet_ids(tmp_path):
    # The distribution's order starts kit fox, English setter, husky; sorted, the tench is first.
    ids = [f"n{k:08d}" for k in RANDOM.permutation(1000) + 1440764]
    lines = [f"{wordnet_id} {k + 1} name_{wordnet_id}" for k, wordnet_id in enumerate(ids)]
    (tmp_path / "map_clsloc.txt").write_text("\n".join(lines) + "\n")
    labels = np.array([1, 500, 1000])
    np.savez(tmp_path / "val_data.npz", data=np.zeros((3, 3072), np.uint8), labels=labels)
    spec = {"name": "imagenet32", "path": str(tmp_path), "split": "val"}
    data = load_dataset(spec | {"label_map": str(tmp_path / "map_clsloc.txt")})
    for label, found in zip(labels, data.labels, strict=True):
        assert sorted(ids)[found] == ids[label - 1]
        assert data.class_names[found] == f"name_{ids[label - 1]}"
    explicit = {str(k + 1): sorted(ids).index(wordnet_id) for k, wordnet_id in enumerate(ids)}
    assert load_dataset(spec | {"label_map": explicit}).labels.tolist() == data.labels.tolist()
    for text, match in (("\n".join(lines[1:]), "999 lines"), ("a b c", "no table of")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DatasetError, match=match):
            load_dataset(spec | {"label_map": str(tmp_path / "bad.txt")})
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(spec | {"label_map": str(tmp_path / "missing.txt")})


def test_a_label_map_permutes_labels_and_names_and_changes_the_fingerprint():
    plain = load_dataset("digits")
    shifted = load_dataset({"name": "digits", "label_map": [*range(1, 10), 0]})
    assert shifted.labels.tolist() == [(k + 1) % 10 for k in plain.labels]
    assert shifted.class_names == tuple("9012345678")
    assert shifted.fingerprint != plain.fingerprint
    named = {str(k): (k + 1) % 10 for k in range(10)}
    mapped = load_dataset({"name": "digits", "label_map": named})
    assert mapped.fingerprint == shifted.fingerprint


def test_a_network_with_more_classes_is_met_by_map_and_count():
    spread = load_dataset({"name": "digits", "label_map": [100 * k for k in range(10)]})
    assert spread.num_classes == 901
    assert set(spread.labels) == {100 * k for k in range(10)}
    assert load_dataset({"name": "digits", "num_classes": 12}).num_classes == 12
    with pytest.raises(DatasetError, match="num_classes is 9, but the dataset has 10"):
        load_dataset({"name": "digits", "num_classes": 9})


@pytest.mark.parametrize(
    ("label_map", "match"),
    [
        ([0, 1, 2], "has 3 entries, the dataset 10"),
        ([0] * 10, "gives class 0 to two classes"),
        ([-1, *range(9)], "class -1 which is negative"),
        ({"0": 1}, "lacks '1'"),
        ({str(k): k for k in range(11)}, "has '10', which is no class"),
        ([0.5] * 10, "has 0.5: classes are whole numbers"),
    ],
)
def test_a_label_map_that_is_none_is_refused(label_map, match):
    with pytest.raises(DatasetError, match=match):
        load_dataset({"name": "digits", "label_map": label_map})


@pytest.mark.parametrize(
    "key", ["path", "image_column", "label_column", "id_column", "image_shape"]
)
def test_a_key_without_effect_is_refused(key):
    with pytest.raises(DatasetError, match=f"{key} means nothing to dataset 'digits'"):
        load_dataset({"name": "digits", key: "x"})


# --- image folders


def png(values: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Classes written out of order; grey and colour images; a file that is no image."""
    written = {}
    for name, count in (("zebra", 2), ("ant", 3)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for k in range(count):
            values = RANDOM.integers(0, 256, (5, 4, 3), np.uint8)
            if (name, k) == ("ant", 1):
                values = values[..., 0]
            (tmp_path / "val" / name / f"{k}.png").write_bytes(png(values))
            written[name, k] = values
    (tmp_path / "val" / "ant" / "notes.txt").write_text("no image")
    return tmp_path, written


def test_folder_classes_are_sorted_names_and_images_keep_their_size(folder):
    path, written = folder
    data = load_dataset({"name": "folder", "path": str(path), "split": "val"})
    assert data.class_names == ("ant", "zebra")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.image_shape == (3, 5, 4)
    expected = [written[key] for key in (("ant", 0), ("ant", 1), ("ant", 2), ("zebra", 0))]
    for image_id, values in enumerate(expected):
        colours = values if values.ndim == 3 else np.stack([values] * 3, axis=-1)
        assert np.array_equal(np.rint(data.image(image_id) * 255), colours.transpose(2, 0, 1))
    inside = load_dataset({"name": "folder", "path": str(path / "val"), "split": "all"})
    assert [inside.image_sha(i) for i in range(5)] == [data.image_sha(i) for i in range(5)]


def test_folder_part_and_fingerprint(folder):
    path, _ = folder
    spec = {"name": "folder", "path": str(path), "split": "val"}
    whole, part = load_dataset(spec), load_dataset(spec | {"ids": [4, 1]})
    assert part.labels.tolist() == [1, 0]
    assert part.image_sha(4) == whole.image_sha(4)
    assert part.fingerprint == whole.fingerprint
    (path / "val" / "ant" / "9.png").write_bytes(png(np.zeros((5, 4, 3), np.uint8)))
    assert load_dataset(spec).fingerprint != whole.fingerprint


def test_folder_of_grey_images_is_grey_only_when_said_so(tmp_path):
    (tmp_path / "test" / "a").mkdir(parents=True)
    grey = RANDOM.integers(0, 256, (4, 4), np.uint8)
    (tmp_path / "test" / "a" / "0.png").write_bytes(png(grey))
    spec = {"name": "folder", "path": str(tmp_path)}
    assert load_dataset(spec).image_shape == (3, 4, 4)
    data = load_dataset(spec | {"image_shape": (1, 4, 4)})
    assert np.array_equal(np.rint(data.image(0) * 255)[0], grey)
    colour = RANDOM.integers(0, 256, (4, 4, 3), np.uint8)
    (tmp_path / "test" / "a" / "0.png").write_bytes(png(colour))
    with pytest.raises(CorruptImageError, match=r"image 0 of folder test .*/a/0\.png: mode RGB"):
        load_dataset(spec | {"image_shape": (1, 4, 4)}).image(0)


def test_folder_that_is_not_there_is_refused(folder):
    path, _ = folder
    for spec, match in (
        ({"split": "test"}, "no folder .*test.*sub-folder"),
        ({"split": "val", "path": "s3://bucket/x"}, "read from a local path"),
        ({"split": "val", "path": str(path / "val")}, "no folder"),
        ({"split": "all", "path": str(path / "val" / "ant")}, "no class folder in"),
    ):
        with pytest.raises(DatasetError, match=match):
            load_dataset({"name": "folder", "path": str(path)} | spec)


def test_corrupt_images_of_a_folder_are_found_by_id(folder):
    path, _ = folder
    spec = {"name": "folder", "path": str(path), "split": "val"}
    whole = (path / "val" / "ant" / "2.png").read_bytes()
    (path / "val" / "ant" / "2.png").write_bytes(whole[:-30])
    (path / "val" / "zebra" / "0.png").write_bytes(b"")
    other_size = RANDOM.integers(0, 256, (6, 4, 3), np.uint8)
    (path / "val" / "zebra" / "1.png").write_bytes(png(other_size))
    data = load_dataset(spec)
    checked = check_images(data, data.ids)
    assert list(checked.corrupt) == [2, 3, 4]
    assert "image 4 is (3, 6, 4)" in checked.corrupt[4]
    assert checked.shas == {0: data.image_sha(0), 1: data.image_sha(1)}
    with pytest.raises(CorruptImageError, match=r'image 2 of folder val is corrupt.*"skip"'):
        data.image(2)


def test_a_missing_file_is_an_error_of_the_disk_and_not_a_corrupt_image(folder):
    path, _ = folder
    data = load_dataset({"name": "folder", "path": str(path), "split": "val"})
    (path / "val" / "zebra" / "0.png").unlink()
    with pytest.raises(FileNotFoundError):
        check_images(data, data.ids)


# --- decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_formats_give_the_exact_bytes(kind):
    values = RANDOM.integers(0, 256, (6, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode_image(file.getvalue(), 3), values.transpose(2, 0, 1))


def test_formats_and_modes_that_mean_no_plain_pixels_are_refused():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    rgba = png(RANDOM.integers(0, 256, (4, 4, 4), np.uint8))
    floats = png(RANDOM.random((4, 4)).astype(np.float32), "TIFF")
    for data, match in ((eps, "no PNG, JPEG"), (rgba, "transparent"), (floats, "32 bits")):
        with pytest.raises(UndecodableError, match=match):
            decode_image(data, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_is_undecodable_and_never_another_error(kind):
    good = png(RANDOM.integers(0, 256, (16, 16, 3), np.uint8), kind)
    random = np.random.default_rng(5)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(100):
            data = bytearray(good[: random.integers(1, len(good))] if trial % 3 == 0 else good)
            for position in random.integers(0, len(data), 3):
                data[position] = random.integers(0, 256)
            try:
                decode_image(bytes(data), 3)
            except UndecodableError:
                refused += 1
    assert refused > 15
