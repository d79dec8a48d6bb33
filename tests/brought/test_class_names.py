"""Classes that are known by name: numbers in names, what programs leave behind, other orders."""

import logging

import pytest
import torchvision

from diffcert_ray import certify, load_dataset
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import DatasetError
from tests.brought.inputs import (
    encoded,
    grey,
    image_folder,
    labels_by_level,
    of_folder,
    of_parquet,
    parquet,
)
from tests.worlds import settings, small_world

UP_TO_11 = [str(k) for k in range(12)]


# --- names that are numbers


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (UP_TO_11, "2 = 10"),  # CIFAR's classes, exported under their numbers
        ([str(k) for k in range(1, 103)], "1 = 10"),  # Flowers-102
        ([f"class_{k}" for k in range(12)], "2 = class_10"),
        ([f"{k}_cat{k}" for k in range(12)], "1 = 10_cat10"),
        (["c9", "c10"], "0 = c10"),
        (["-1", "-2", "0"], "0 = -1"),
        (["1.0", "2.0", "10.0"], "1 = 10.0"),
        (["0-2", "3-9", "10-19", "20-29", "more than 70"], "1 = 10-19"),  # ages, as in FairFace
        (["2", "10", "other"], "0 = 10"),
    ],
    ids=["0-11", "1-102", "class_0", "0_cat", "c10", "negative", "floats", "ages", "some"],
)
def test_folders_whose_numbers_sort_otherwise_than_their_names_are_asked_about(
    tmp_path, names, first
):
    image_folder(tmp_path, *names)
    with pytest.raises(DatasetError, match="class_order") as caught:
        of_folder(tmp_path)
    assert first in str(caught.value)
    by_name = of_folder(tmp_path, class_order="name")
    assert by_name.class_names == tuple(sorted(names))
    if "other" in names:
        with pytest.raises(DatasetError, match="there is none in 'other'"):
            of_folder(tmp_path, class_order="number")
        return
    by_number = of_folder(tmp_path, class_order="number")
    expected = sorted(names, key=float) if names[0] == "-1" else names
    assert by_number.class_names == tuple(expected)
    assert labels_by_level(by_name) == labels_by_level(by_number)  # each image keeps its folder
    assert by_name.fingerprint != by_number.fingerprint
    assert first in by_name.mapping
    assert (by_name.notes, by_number.notes) == ((), ())


@pytest.mark.parametrize(
    "names",
    [
        [str(k) for k in range(10)],
        [f"{k:03d}" for k in range(12)],
        [f"n{k:08d}" for k in (1440764, 2119789, 9)],
        ["cat", "dog", "10 euro", "2 euro"],  # no numbered classes: some have a number in the name
        ["A300B4", "707-320", "727-200", "DC-10", "DC-3", "Fokker 100"],
        ["ant"],
    ],
    ids=["digits", "padded", "wordnet", "coins", "aircraft", "one"],
)
def test_other_folders_are_taken_by_sorted_name_as_ever(tmp_path, names):
    image_folder(tmp_path, *names)
    assert of_folder(tmp_path).class_names == tuple(sorted(names))
    assert of_folder(tmp_path).fingerprint == of_folder(tmp_path, class_order="name").fingerprint


def test_the_listing_is_torchvisions(tmp_path):
    image_folder(tmp_path, *UP_TO_11, per_class=3)
    for extra in ("7/sub/b.png", "7/a.JPEG", "7/Sub/9.png"):
        (tmp_path / extra).parent.mkdir(exist_ok=True)
        (tmp_path / extra).write_bytes(encoded(grey(200)))
    theirs = torchvision.datasets.ImageFolder(str(tmp_path))
    ours = of_folder(tmp_path, class_order="name")
    assert ours.pixels._paths == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.class_names) == theirs.classes


def test_one_number_for_two_folders_has_no_order_by_number(tmp_path):
    image_folder(tmp_path, "1", "01", "2")
    with pytest.raises(DatasetError, match=r"'01' and '1' are one number"):
        of_folder(tmp_path, class_order="number")


def test_text_labels_in_parquet_are_asked_about_in_the_same_words(tmp_path):
    parquet(tmp_path / "all.parquet", UP_TO_11)
    with pytest.raises(DatasetError, match=r"2 = 10.*by number 0 = 0, 1 = 1, 2 = 2"):
        of_parquet(tmp_path)
    assert of_parquet(tmp_path, class_order="number").labels.tolist() == list(range(12))
    by_name = of_parquet(tmp_path, class_order="name")
    assert by_name.class_names == tuple(sorted(UP_TO_11))
    assert labels_by_level(by_name) == {10 + k: str(k) for k in range(12)}


def test_numbers_that_a_builder_listed_by_name_are_asked_about(tmp_path):
    """Hugging Face's imagefolder lists folders 0 to 11 as ClassLabel names 0, 1, 10, 11, 2."""
    listed = sorted(UP_TO_11)
    parquet(tmp_path / "all.parquet", list(range(12)), names=listed)
    with pytest.raises(DatasetError, match=r"as listed 0 = 0, 1 = 1, 2 = 10"):
        of_parquet(tmp_path)
    as_listed = of_parquet(tmp_path, class_order="name")
    assert as_listed.labels.tolist() == list(range(12))
    by_number = of_parquet(tmp_path, class_order="number")
    assert by_number.labels.tolist() == [int(name) for name in listed]
    assert labels_by_level(by_number) == labels_by_level(as_listed)


def test_an_order_means_nothing_to_numbers_without_names(tmp_path):
    parquet(tmp_path / "all.parquet", [0, 1, 2])
    with pytest.raises(DatasetError, match="means nothing to the labels"):
        of_parquet(tmp_path, class_order="name")
    with pytest.raises(DatasetError, match="class_order means nothing to dataset 'digits'"):
        load_dataset({"name": "digits", "class_order": "name"})


def test_an_order_need_not_be_said_where_a_mapping_names_every_class(tmp_path):
    image_folder(tmp_path, *UP_TO_11)
    numbers = {name: 11 - int(name) for name in UP_TO_11}
    data = of_folder(tmp_path, label_map=numbers)
    assert labels_by_level(data) == {k + 1: name for k, name in enumerate(UP_TO_11)}
    assert data.labels.tolist() == [11 - int(name) for name in sorted(UP_TO_11)]
    with pytest.raises(DatasetError, match="class_order"):
        of_folder(tmp_path, label_map=list(range(12)))  # a list goes by the order
    parquet(tmp_path / "all.parquet", [0, 1])
    mapped = of_parquet(tmp_path, label_map={"0": 1, "1": 0})
    assert mapped.labels.tolist() == [1, 0]
    with pytest.raises(DatasetError, match="class_order is 'size'"):
        of_folder(tmp_path, class_order="size")


def test_a_run_that_has_begun_is_not_asked_about_its_order(tmp_path):
    image_folder(tmp_path, *UP_TO_11)
    table = {"name": "folder", "path": str(tmp_path), "split": "all", "first": 3}
    before = load_config({"dataset": table}).dataset  # of a version that did not ask
    by_name = of_folder(tmp_path, class_order="name")
    for stored in (before.whole(), before.as_stored()):
        assert load_dataset(stored).fingerprint == by_name.fingerprint
    assert len(load_dataset(before.whole())) == 12
    assert load_config({"dataset": {"name": "digits"}}).dataset.whole().class_order is None


def test_some_folders_of_a_larger_network_are_not_taken_as_its_first_classes(tmp_path):
    image_folder(tmp_path / "some", "0", "5", "7")
    with pytest.raises(DatasetError, match=r'classes 0 to 2; .*label_map, as in {"0" = 0'):
        of_folder(tmp_path / "some", num_classes=10)
    image_folder(tmp_path / "imagenette", "n01440764", "n02102040")
    data = of_folder(tmp_path / "imagenette", num_classes=1000)
    assert "'n01440764' to 'n02102040': they are taken as the network's" in data.notes[0]
    image_folder(tmp_path / "first", "0", "1")
    assert of_folder(tmp_path / "first", num_classes=10).num_classes == 10
    mapped = of_folder(tmp_path / "some", num_classes=10, label_map={"0": 0, "5": 5, "7": 7})
    assert mapped.labels.tolist() == [0, 5, 7]


# --- what programs leave behind

LEFT_BEHIND = [
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/0.png",
    "@eaDir/0.png",
    "__pycache__/0.png",
    ".git/0.png",
    "$RECYCLE.BIN/0.png",
]
STRAY_FILES = ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".~lock.png", "0.png~", ".0.png"]


@pytest.mark.parametrize("left", LEFT_BEHIND)
@pytest.mark.parametrize("below", ["", "ant/"])
def test_folders_that_programs_leave_are_no_classes_and_hold_no_images(tmp_path, left, below):
    image_folder(tmp_path, "ant", "bee")
    clean = of_folder(tmp_path)
    (tmp_path / below / left).parent.mkdir()
    (tmp_path / below / left).write_bytes(encoded(grey(99)))
    data = of_folder(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert labels_by_level(data) == {1: "ant", 2: "bee"}
    assert (data.fingerprint, data.notes) == (clean.fingerprint, clean.notes)


@pytest.mark.parametrize("name", STRAY_FILES)
def test_stray_files_are_no_images_and_not_worth_a_word(tmp_path, name):
    image_folder(tmp_path, "ant", "bee")
    clean = of_folder(tmp_path)
    for place in (tmp_path, tmp_path / "ant"):
        (place / name).write_bytes(b"\x00\x05\x16\x07")
    data = of_folder(tmp_path)
    assert len(data) == 2
    assert (data.fingerprint, data.notes) == (clean.fingerprint, clean.notes)


def test_images_of_a_kind_that_is_not_read_are_counted_aloud(tmp_path, caplog):
    world, _ = small_world()
    path = tmp_path / "images"
    path.mkdir()
    for c, name in enumerate(("ant", "bee", "cat", "dog")):
        (path / name).mkdir()
        (path / name / "0.png").write_bytes(encoded(grey(c + 1)[..., 0]))
    for k in range(3):
        (path / "ant" / f"{k}.gif").write_bytes(b"GIF89a")
    (path / "bee" / "x.HEIC").write_bytes(b"")
    (path / "bee" / "n0144").write_bytes(b"")
    (path / "loose.png").write_bytes(encoded(grey(1)))
    data = of_folder(path, image_shape=[1, 4, 4])
    assert len(data) == 4
    unread, outside = data.notes
    assert "0 = ant, 1 = bee, 2 = cat, 3 = dog" in data.mapping
    assert "5 files" in unread
    assert "3 .gif, 1 .heic, 1 without an ending" in unread
    assert "1 images" in outside
    table = {"name": "folder", "path": str(path), "split": "all", "image_shape": [1, 4, 4]}
    for asked in ({}, {"class_order": "name"}):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            certify(settings(dataset=table | asked), tmp_path / "run", local=True, denoiser=world)
        level = {record.getMessage(): record.levelname for record in caplog.records}
        (said,) = [name for text, name in level.items() if data.mapping in text]
        assert said == ("WARNING" if asked else "INFO")  # aloud where it was asked about
        assert [name for text, name in level.items() if unread in text] == ["WARNING"]


def test_a_class_of_nothing_but_unread_kinds_is_refused_with_what_is_there(tmp_path):
    image_folder(tmp_path, "ant", "bee")
    (tmp_path / "bee" / "0.png").rename(tmp_path / "bee" / "0.avif")
    with pytest.raises(DatasetError, match=r"1 of 2 class folders .*'bee'.*1 \.avif"):
        of_folder(tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path):
    image_folder(tmp_path / "test", "ant", "bee")
    image_folder(tmp_path / "train", "ant", "bee")
    with pytest.raises(DatasetError, match="which are splits and no classes"):
        of_folder(tmp_path)
    assert len(of_folder(tmp_path, split="test")) == 2


def test_the_folder_of_an_archive_is_not_taken_for_one_class(tmp_path):
    image_folder(tmp_path / "animals", "ant", "bee")
    with pytest.raises(DatasetError, match=r"one sub-folder 'animals', whose images lie in 2"):
        of_folder(tmp_path)


# --- the same in Parquet


@pytest.mark.parametrize(
    "copy",
    [
        ".ipynb_checkpoints/test-0-checkpoint.parquet",
        "__MACOSX/._test-0.parquet",
        "._test-0.parquet",
        ".cache/huggingface/test-0.parquet",
        "_temporary/0/test-0.parquet",
        "_delta_log/0.checkpoint.parquet",
    ],
)
def test_files_that_programs_leave_are_no_rows(tmp_path, copy):
    parquet(tmp_path / "test-0.parquet", [0, 1])
    clean = of_parquet(tmp_path)
    parquet(tmp_path / copy, [1, 1, 1])
    data = of_parquet(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert data.fingerprint == clean.fingerprint
    assert any(copy in note for note in data.notes)


def test_labels_that_are_stray_folders_are_no_class_and_their_rows_no_images(tmp_path):
    labels = ["bee", ".ipynb_checkpoints", "ant", "__MACOSX", "bee"]
    parquet(tmp_path / "all.parquet", labels)
    data = of_parquet(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert data.ids.tolist() == [0, 2, 4]  # an image keeps its row
    assert labels_by_level(data) == {10: "bee", 12: "ant", 14: "bee"}
    assert any("2 rows are left out" in note for note in data.notes)
    names = [".ipynb_checkpoints", "ant", "bee"]
    parquet(tmp_path / "all.parquet", [1, 0, 2, 1], names=names)
    data = of_parquet(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert data.ids.tolist() == [0, 2, 3]
    assert data.labels.tolist() == [0, 1, 0]
    assert any("1 rows are left out" in note for note in data.notes)


def test_files_that_name_their_classes_in_another_order_are_taken_by_name(tmp_path):
    parquet(tmp_path / "test-0.parquet", [0, 1, 2], names=["ant", "bee", "cat"])
    parquet(tmp_path / "test-1.parquet", [0, 1, 2, 0], names=["cat", "ant", "bee"])
    data = of_parquet(tmp_path)
    assert data.labels.tolist() == [0, 1, 2, 2, 0, 1, 2]
    assert any("1 of 2 files name their classes in another order" in n for n in data.notes)
    assert of_parquet(tmp_path, ids=[6, 0, 3]).labels.tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("names", "match"),
    [(["ant", "bee", "dog"], r"test-1\.parquet has 3 names .*'cat', 'dog'"), (None, "no names")],
)
def test_files_that_name_other_classes_are_refused(tmp_path, names, match):
    parquet(tmp_path / "test-0.parquet", [0, 1, 2], names=["ant", "bee", "cat"])
    parquet(tmp_path / "test-1.parquet", [0, 1, 2], names=names)
    with pytest.raises(DatasetError, match=match):
        of_parquet(tmp_path)
