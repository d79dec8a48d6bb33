"""Published datasets in their own files, local and never downloaded: MNIST's family, MedMNIST,
STL-10 and Tiny ImageNet."""

import gzip
import struct

import numpy as np
import pytest
import torchvision

from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.medmnist import CLASSES
from diffcert_ray.datasets.mnist import EMNIST
from diffcert_ray.errors import DatasetError, PixelsError
from tests.brought.inputs import encoded, grey, labels_by_level

RANDOM = np.random.default_rng(31)


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder, start, images, labels, *, packed=False, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        name = f"{start}-{kind}"
        name = name.replace("-idx", ".idx") if dotted else name
        data = idx(np.asarray(values, np.uint8))
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)


IMAGES = RANDOM.integers(0, 256, (12, 28, 28)).astype(np.uint8)
LABELS = np.array([7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6])


def assert_images_are(data, images):
    for image_id, expected in enumerate(images):
        found = np.rint(data.image(image_id) * 255).astype(np.uint8)
        assert np.array_equal(found, expected)


# --- MNIST and those in its files


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("place", ["", "raw", "{}/raw", "{}"])
def test_idx_files_are_read_wherever_they_are_unpacked(tmp_path, name, packed, place):
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
    write_idx(tmp_path / place.format(folder), "t10k", IMAGES, LABELS, packed=packed)
    write_idx(tmp_path / place.format(folder), "train", IMAGES[:5], LABELS[:5], packed=packed)
    data = load_dataset({"name": name, "path": str(tmp_path)})
    assert data.labels.tolist() == LABELS.tolist()
    assert (data.image_shape, data.num_classes) == ((1, 28, 28), 10)
    assert_images_are(data, IMAGES[:, None])
    assert len(load_dataset({"name": name, "path": str(tmp_path), "split": "train"})) == 5


def test_it_is_what_torchvision_reads(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw", "t10k", IMAGES, LABELS)
    write_idx(tmp_path / "FashionMNIST" / "raw", "train", IMAGES[:5], LABELS[:5])
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path), train=False)
    data = load_dataset({"name": "fashion-mnist", "path": str(tmp_path)})
    assert data.labels.tolist() == theirs.targets.tolist()
    assert list(data.class_names) == theirs.classes
    assert_images_are(data, theirs.data.numpy()[:, None])


def test_names_with_a_dot_are_known_and_packing_is_told_by_content(tmp_path):
    write_idx(tmp_path, "t10k", IMAGES, LABELS, dotted=True)
    plain = load_dataset({"name": "mnist", "path": str(tmp_path)})
    packed = tmp_path / "t10k-images.idx3-ubyte"
    packed.write_bytes(gzip.compress(packed.read_bytes()))
    again = load_dataset({"name": "mnist", "path": str(tmp_path)})
    assert again.fingerprint == plain.fingerprint


def test_the_folder_of_another_of_them_is_refused(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw", "t10k", IMAGES, LABELS)
    with pytest.raises(DatasetError, match=r"is the folder of FashionMNIST, and .*'mnist'"):
        load_dataset({"name": "mnist", "path": str(tmp_path / "FashionMNIST" / "raw")})
    spec = {"name": "fashion-mnist", "path": str(tmp_path / "FashionMNIST")}
    assert len(load_dataset(spec)) == 12
    write_idx(tmp_path / "MNIST" / "FashionMNIST" / "raw", "t10k", IMAGES, LABELS)
    assert len(load_dataset(spec | {"path": str(tmp_path / "MNIST")})) == 12
    with pytest.raises(DatasetError, match=r"neither t10k-images-idx3-ubyte nor .*downloaded"):
        load_dataset({"name": "mnist", "path": str(tmp_path)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d[:-1], "should hold 9408 bytes.* holds only 9407"),
        (lambda d: d + b"\0", "and holds more"),
        (lambda d: gzip.compress(d)[:-9], "is damaged"),
        (lambda d: b"\0\0\x0d\3" + d[4:], "holds type 13 of 3 dimensions"),
        (lambda d: b"\x89PNG" + d, "does not begin as IDX files do"),
        (lambda d: d[:4] + b"\xff" * 4 + d[8:], "says that it has the shape"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, change, match):
    write_idx(tmp_path, "t10k", IMAGES, LABELS)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte.*" + match):
        load_dataset({"name": "mnist", "path": str(tmp_path)})


def test_labels_of_another_dataset_are_refused(tmp_path):
    write_idx(tmp_path, "t10k", IMAGES, np.arange(12) + 30)
    with pytest.raises(DatasetError, match="labels 30 to 41"):
        load_dataset({"name": "mnist", "path": str(tmp_path)})
    write_idx(tmp_path, "t10k", IMAGES, LABELS[:5])
    with pytest.raises(DatasetError, match="12 images of mnist test and 5 labels"):
        load_dataset({"name": "mnist", "path": str(tmp_path)})


@pytest.mark.parametrize(
    ("variant", "classes", "first"),
    [("balanced", 47, 0), ("bymerge", 47, 0), ("byclass", 62, 0), ("letters", 26, 1),
     ("digits", 10, 0), ("mnist", 10, 0)],
)  # fmt: skip
def test_emnist_stands_upright_and_letters_count_from_a(tmp_path, variant, classes, first):
    labels = np.arange(12) % classes + first
    labels[-1] = classes - 1 + first
    write_idx(tmp_path, f"emnist-{variant}-test", IMAGES, labels, packed=True)
    spec = {"name": "emnist", "path": str(tmp_path), "variant": variant}
    data = load_dataset(spec)
    assert data.num_classes == classes
    assert data.labels.tolist() == (labels - first).tolist()
    assert_images_are(data, IMAGES.swapaxes(1, 2)[:, None])
    assert "upright" in data.notes[0]
    stored = load_dataset(spec | {"upright": False})
    assert_images_are(stored, IMAGES[:, None])
    assert (stored.notes, stored.labels.tolist()) == ((), data.labels.tolist())
    assert stored.fingerprint != data.fingerprint


def test_names_of_emnist_are_torchvisions():
    theirs = torchvision.datasets.EMNIST.classes_split_dict
    for variant, names in EMNIST.items():
        expected = [name for name in theirs[variant] if name != "N/A"]
        assert list(names) == [n.upper() if variant == "letters" else n for n in expected]
    assert EMNIST["balanced"][10] == "A"
    assert EMNIST["balanced"][36] == "a"
    with pytest.raises(DatasetError, match=r"variant is needed.*balanced, bymerge"):
        load_dataset({"name": "emnist", "path": "x"})
    with pytest.raises(DatasetError, match="variant means nothing to dataset 'mnist'"):
        load_dataset({"name": "mnist", "path": "x", "variant": "digits"})


# --- MedMNIST


def medmnist(file, variant, images, **replaced):
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % len(CLASSES[variant])
    arrays = {
        f"{split}_{what}": values
        for split in ("train", "val", "test")
        for what, values in (("images", images), ("labels", labels))
    }
    np.savez(file, **(arrays | replaced))
    return labels[:, 0]


@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize("size", ["", "_64"])
def test_every_2d_set_of_medmnist_with_one_class_an_image_is_read(tmp_path, variant, size):
    side = 64 if size else 28
    colours = variant in ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
    shape = (13, side, side, 3) if colours else (13, side, side)
    images = RANDOM.integers(0, 256, shape).astype(np.uint8)
    labels = medmnist(tmp_path / f"{variant}{size}.npz", variant, images)
    expected = images.transpose(0, 3, 1, 2) if colours else images[:, None]
    for keys in (
        {"path": str(tmp_path), "variant": f"{variant}{size}"},
        {"path": str(tmp_path / f"{variant}{size}.npz")},
    ):
        data = load_dataset({"name": "medmnist", **keys})
        assert data.labels.tolist() == labels.tolist()
        assert data.class_names == CLASSES[variant]
        assert_images_are(data, expected)
    assert len(load_dataset({"name": "medmnist", "split": "val", **keys})) == 13


@pytest.mark.parametrize(
    ("variant", "match"),
    [
        ("chestmnist", "any number of 14 findings each"),
        ("organmnist3d", "its images are volumes"),
        ("nodulemnist3d_64", "its images are volumes"),
        ("pathmnst", "did you mean 'pathmnist'"),
        (None, "variant is needed"),
    ],
)
def test_sets_without_one_class_an_image_are_refused_with_the_reason(tmp_path, variant, match):
    with pytest.raises(DatasetError, match=match):
        load_dataset({"name": "medmnist", "path": str(tmp_path), "variant": variant})


def test_files_of_medmnist_that_are_not_what_they_say_are_refused(tmp_path):
    images = RANDOM.integers(0, 256, (5, 28, 28)).astype(np.uint8)
    file = tmp_path / "breastmnist.npz"
    spec = {"name": "medmnist", "path": str(file)}
    for arrays, error, match in (
        ({"test_images": images / 255}, PixelsError, "fetch it again"),
        ({"test_images": images[..., None].repeat(28, 3)}, DatasetError, "it is no 2D set"),
        ({"test_labels": np.full((5, 1), 7)}, DatasetError, "labels 7 to 7, but breastmnist has 2"),
        ({"test_labels": np.zeros((5, 14))}, DatasetError, "one whole number for each"),
        ({"test_images": np.array([object()])}, DatasetError, "is damaged"),
    ):
        medmnist(file, "breastmnist", images, **arrays)
        with pytest.raises(error, match=match):
            load_dataset(spec)
    with pytest.raises(DatasetError, match=r"is breastmnist, and dataset\.variant 'octmnist'"):
        load_dataset(spec | {"variant": "octmnist"})
    file.write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"breastmnist\.npz is damaged"):
        load_dataset(spec)


# --- STL-10


def test_stl10_stands_upright_and_labels_count_from_0(tmp_path):
    upright = RANDOM.integers(0, 256, (11, 3, 96, 96)).astype(np.uint8)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "test_X.bin").write_bytes(np.ascontiguousarray(upright.swapaxes(2, 3)).tobytes())
    labels = np.array([*range(1, 11), 3], np.uint8)
    (folder / "test_y.bin").write_bytes(labels.tobytes())
    data = load_dataset({"name": "stl10", "path": str(tmp_path)})
    assert data.labels.tolist() == [*range(10), 2]
    assert_images_are(data, upright)
    theirs, _ = torchvision.datasets.STL10._STL10__loadfile(
        type("Their", (), {"root": str(tmp_path), "base_folder": "stl10_binary"})(),
        "test_X.bin",
        "test_y.bin",
    )
    assert_images_are(data, theirs)
    (folder / "test_y.bin").write_bytes(labels[:5].tobytes())
    with pytest.raises(DatasetError, match="5 labels lie beside it"):
        load_dataset({"name": "stl10", "path": str(tmp_path)})
    with pytest.raises(DatasetError, match=r"has no file 'train_X\.bin'"):
        load_dataset({"name": "stl10", "path": str(folder), "split": "train"})


# --- Tiny ImageNet

WORDNET = [f"n{k:08d}" for k in (1443537, 2124075, 7734744)]


def tiny_imagenet(root):
    """Three classes; wnids.txt is not sorted, as in the distribution."""
    root.mkdir()
    (root / "wnids.txt").write_text("\n".join([WORDNET[2], WORDNET[0], WORDNET[1]]) + "\n")
    for c, wordnet_id in enumerate(WORDNET):
        images = root / "train" / wordnet_id / "images"
        images.mkdir(parents=True)
        (images / f"{wordnet_id}_0.JPEG").write_bytes(encoded(grey(c + 1, 64), "JPEG", quality=100))
    images = root / "val" / "images"
    images.mkdir(parents=True)
    lines = []
    for k, c in enumerate([2, 0, 1, 0]):
        (images / f"val_{k}.JPEG").write_bytes(encoded(grey(50 + k, 64), "JPEG", quality=100))
        lines.append(f"val_{k}.JPEG\t{WORDNET[c]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    return {50: WORDNET[2], 51: WORDNET[0], 52: WORDNET[1], 53: WORDNET[0]}


@pytest.mark.parametrize("moved", [False, True], ids=["annotated", "class folders"])
def test_tiny_imagenet_is_read_as_unpacked_and_as_people_move_it(tmp_path, moved):
    root = tmp_path / "tiny-imagenet-200"
    expected = tiny_imagenet(root)
    (root / "val" / "images" / "._val_0.JPEG").write_bytes(b"")
    spec = {"name": "tiny-imagenet", "path": str(tmp_path), "split": "val"}
    if moved:
        for k, wordnet_id in enumerate(expected.values()):
            (root / "val" / wordnet_id).mkdir(exist_ok=True)
            file = root / "val" / "images" / f"val_{k}.JPEG"
            file.rename(root / "val" / wordnet_id / file.name)
    data = load_dataset(spec)
    assert data.class_names == tuple(sorted(WORDNET))
    assert data.image_shape == (3, 64, 64)
    assert labels_by_level(data) == expected
    train = load_dataset(spec | {"split": "train", "path": str(root)})
    assert labels_by_level(train) == {k + 1: name for k, name in enumerate(WORDNET)}
    assert "sorted WordNet ids" in train.notes[0]


def test_tiny_imagenet_that_is_not_whole_is_refused(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    tiny_imagenet(root)
    spec = {"name": "tiny-imagenet", "path": str(tmp_path), "split": "val"}
    with pytest.raises(DatasetError, match="split 'test' of tiny-imagenet has no labels"):
        load_dataset(spec | {"split": "test"})
    with pytest.raises(DatasetError, match="has no folder val or train"):
        load_dataset(spec | {"path": str(root / "test")})
    (root / "val" / "images" / "val_9.JPEG").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"does not name val_9\.JPEG"):
        load_dataset(spec)
    (root / "val" / "images" / "val_9.JPEG").unlink()
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DatasetError, match=r"names val_1\.JPEG, which is not there"):
        load_dataset(spec)
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DatasetError, match=r"no val_annotations\.txt"):
        load_dataset(spec)
