"""CIFAR-10 and CIFAR-100 in both published versions, from small files in the real formats."""

import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest

from diffcert_ray.datasets import load_dataset
from diffcert_ray.errors import DatasetError

ROWS = 5  # in each file


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its str, as the published files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value):
        data = value.encode("latin-1") if isinstance(value, str) else value
        short = len(data) < 256
        length = bytes([len(data)]) if short else struct.pack("<i", len(data))
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + length + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_python2_str


def python2_pickle(path, value):
    with open(path, "wb") as file:
        Python2Pickler(file, 2).dump(value)
    # numpy's name of the time.
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def batches(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels [N, 3072] and labels of each file."""
    random = np.random.default_rng(3)
    classes = 10 if name == "cifar10" else 100
    files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    files = files if name == "cifar10" else ["train", "test"]
    return {
        file: (
            random.integers(0, 256, (ROWS, 3072), np.uint8),
            random.integers(0, classes, ROWS),
        )
        for file in files
    }


def class_names(name: str) -> list[str]:
    return [f"class {k}".replace(" ", "_") for k in range(10 if name == "cifar10" else 100)]


def write_binary(folder, name):
    for file, (values, labels) in batches(name).items():
        coarse = [(labels // 5).astype(np.uint8)[:, None]] if name == "cifar100" else []
        records = np.concatenate([*coarse, labels.astype(np.uint8)[:, None], values], axis=1)
        assert records.shape[1] == (3073 if name == "cifar10" else 3074)
        (folder / f"{file}.bin").write_bytes(records.tobytes())
    names = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / names).write_text("\n".join(class_names(name)) + "\n\n")


def write_python(folder, name):
    key = "labels" if name == "cifar10" else "fine_labels"
    for file, (values, labels) in batches(name).items():
        content = {"batch_label": "a batch", key: labels.tolist(), "data": values}
        content["filenames"] = [f"image_{k}.png" for k in range(ROWS)]
        python2_pickle(folder / file, content)
    meta, names = (
        ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    )
    python2_pickle(folder / meta, {names: class_names(name), "num_vis": 3072})


WRITERS = {"bin": write_binary, "python": write_python}


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.mark.parametrize("version", WRITERS)
def test_images_labels_and_names_are_those_of_the_files(tmp_path, name, version):
    WRITERS[version](tmp_path, name)
    written = batches(name)
    tests = [f for f in written if f.startswith("test")]
    for split, files in (("test", tests), ("train", [f for f in written if f not in tests])):
        data = load_dataset({"name": name, "split": split, "path": str(tmp_path)})
        values = np.concatenate([written[f][0] for f in files])
        assert data.ids.tolist() == list(range(len(values)))
        assert data.labels.tolist() == np.concatenate([written[f][1] for f in files]).tolist()
        assert data.class_names == tuple(class_names(name))
        assert data.image_shape == (3, 32, 32)
        for image_id in (0, len(values) - 1):
            image = data.image(image_id)
            assert image.dtype == np.float32
            # A row is the red, the green and the blue plane, each in rows of 32.
            assert image[1, 2, 3] == np.float32(values[image_id, 1024 + 2 * 32 + 3]) / 255
            assert np.array_equal(np.rint(image * 255).ravel(), values[image_id])
        assert np.array_equal(np.asarray(data.pixels)[-1], data.image(len(values) - 1))


def test_both_versions_are_the_same_dataset(tmp_path, name):
    found = []
    for version, write in WRITERS.items():
        folder = tmp_path / version
        folder.mkdir()
        write(folder, name)
        found.append(load_dataset({"name": name, "path": str(folder)}))
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].image_sha(3) == found[1].image_sha(3)
    train = load_dataset({"name": name, "path": str(tmp_path / "bin"), "split": "train"})
    assert train.fingerprint != found[0].fingerprint


@pytest.mark.parametrize(
    ("name", "version", "unpacked"),
    [
        ("cifar10", "bin", "cifar-10-batches-bin"),
        ("cifar10", "python", "cifar-10-batches-py"),
        ("cifar100", "bin", "cifar-100-binary"),
        ("cifar100", "python", "cifar-100-python"),
    ],
)
def test_the_folder_that_the_archive_was_unpacked_in_will_do(tmp_path, name, version, unpacked):
    (tmp_path / unpacked).mkdir()
    WRITERS[version](tmp_path / unpacked, name)
    assert len(load_dataset({"name": name, "path": str(tmp_path)})) == ROWS


def test_a_part_of_the_split_keeps_ids_and_fingerprint(tmp_path, name):
    write_binary(tmp_path, name)
    whole = load_dataset({"name": name, "path": str(tmp_path)})
    part = load_dataset({"name": name, "path": str(tmp_path), "every": 2})
    assert part.ids.tolist() == [0, 2, 4]
    assert part.image_sha(4) == whole.image_sha(4)
    assert part.fingerprint == whole.fingerprint


def refused(path, match, name="cifar10", split="test"):
    with pytest.raises(DatasetError, match=match):
        load_dataset({"name": name, "path": str(path), "split": split})


def test_a_file_cut_short_is_refused_with_its_size(tmp_path):
    write_binary(tmp_path, "cifar10")
    file = tmp_path / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, rf"test_batch\.bin has {5 * 3073 - 1} bytes, .* no multiple of 3073")


def test_a_label_without_a_class_is_refused_by_row(tmp_path):
    write_binary(tmp_path, "cifar10")
    file = tmp_path / "test_batch.bin"
    data = bytearray(file.read_bytes())
    data[2 * 3073] = 10
    file.write_bytes(data)
    refused(tmp_path, "row 2 has label 10, but there are 10 classes")


def test_a_folder_without_the_files_is_refused_with_what_it_needs(tmp_path):
    refused(tmp_path, r"neither test_batch\.bin .* nor test_batch .*cifar-10-batches-bin")
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_3.bin").unlink()
    refused(tmp_path, r"no file 'data_batch_3\.bin'", split="train")
    refused(tmp_path, "use 'test', 'train' of cifar10", split="all")
    with pytest.raises(DatasetError, match=r"'cifar10' needs dataset\.path"):
        load_dataset("cifar10")


def test_a_python_batch_of_another_dataset_is_refused(tmp_path):
    write_python(tmp_path, "cifar10")
    for content in ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 2]}, [1, 2]):
        python2_pickle(tmp_path / "test_batch", content)
        refused(tmp_path, "test_batch (does not hold 'data'|holds no dictionary)")
    python2_pickle(tmp_path / "test_batch", {"data": np.zeros((1, 3072)), "labels": [1]})
    refused(tmp_path, "published files have uint8")
