"""Glyphs: the part that ships, the part that the job makes, and fonts that are in one part only."""

import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.errors import DatasetError

# Pinned: another value means that stored runs no longer fit the dataset.
TEST_FINGERPRINT = "17ad324927995d73596bf683bbccdf5e0dacf9eb6e26b738fcefeb1ec7aa2934"
SHIPPED = Path(str(resources.files("diffcert_ray.datasets"))) / "shipped"
FONTS = tomllib.loads(
    (Path(__file__).parents[1] / "jobs" / "glyph_fonts.toml").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def stored():
    with np.load(SHIPPED / "glyphs-test.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def training_file(folder: Path, stored: dict, **changed) -> dict:
    """Writes six images as a training part; its specification."""
    part = {"images": stored["images"][:6], "labels": stored["labels"][:6]}
    arrays = {**part, "syllables": stored["syllables"], **changed}
    np.savez_compressed(folder / "glyphs-train.npz", **{k: v for k, v in arrays.items() if len(v)})
    return {"name": "glyphs", "split": "train", "path": str(folder)}


def test_the_shipped_part_has_every_class_by_every_face():
    test = load_dataset("glyphs")
    assert test.fingerprint == TEST_FINGERPRINT
    assert (len(test), test.num_classes, test.image_shape) == (4000, 1000, (1, 16, 16))
    assert (np.bincount(test.labels, minlength=1000) == 4).all()
    assert test.ids.tolist() == list(range(4000))
    assert (SHIPPED / "glyphs-test.npz").stat().st_size < 2 * 2**20


def test_pixels_are_the_stored_levels_and_the_darkest_is_full_ink(stored):
    test = load_dataset({"name": "glyphs", "every": 97})
    check_images(test, test.ids)
    for image_id in test.ids:
        image = test.image(image_id)
        assert image.dtype == np.float32
        assert (image.min(), image.max()) == (0, 1)
        assert np.array_equal(image[0], stored["images"][image_id] / np.float32(255))
        assert test.labels[test.position(image_id)] == stored["labels"][image_id]


def test_glyphs_are_centred_and_fill_the_image(stored):
    inked = stored["images"] > 20
    lengths = []
    for axis in (1, 2):
        reached = inked.any(axis=axis)
        first, last = reached.argmax(axis=1), 15 - reached[:, ::-1].argmax(axis=1)
        assert (np.abs(first - (15 - last)) <= 1).all()
        lengths.append(last - first + 1)
    assert np.maximum(*lengths).min() >= 15


def test_classes_are_called_by_their_syllables_and_no_two_images_are_one(stored):
    test = load_dataset("glyphs")
    assert test.class_names == tuple(stored["syllables"])
    assert all("가" <= name <= "힣" and len(name) == 1 for name in test.class_names)
    assert len({image.tobytes() for image in stored["images"]}) == 4000


def test_the_first_images_are_a_fair_part(stored):
    faces = np.bincount(stored["faces"][:200], minlength=4)
    assert faces.min() > 30  # 50 expected; below 31 at random once in 1,000
    assert len(set(stored["labels"][:200])) > 160


def test_no_family_is_in_both_parts(stored):
    of_test = {name for name, said in FONTS.items() if said["part"] == "test"}
    assert set(stored["face_families"]) == of_test
    assert len(of_test) >= 2
    files = [file for said in FONTS.values() for file in said["files"]]
    assert len(files) == len(set(files))
    drawings = {said["face"] for said in FONTS.values() if said["part"] == "test"}
    for said in FONTS.values():
        for drawing in drawings if said["part"] == "train" else ():
            squeezed = drawing.replace(" ", "").removesuffix("KR")
            assert not any(file.startswith(squeezed) for file in said["files"])


def test_every_font_is_named_with_its_licence_beside_the_data(stored):
    said = " ".join((SHIPPED / "GLYPHS-LICENCES.txt").read_text("utf-8").split())
    for face in stored["face_names"]:
        assert face.removesuffix(" Bold").removesuffix(" Regular") in said
    for family in FONTS.values():
        assert family["face"].split(" ")[0] in said
        assert family["licence"] in ("OFL-1.1", "Apache-2.0", "Baekmuk")
    for text in ("SIL OPEN FONT LICENSE", "NAVER Corporation", "Adobe", "Kim Jeong-Hwan"):
        assert text in said


def test_the_training_part_is_read_from_the_folder_of_the_job(tmp_path, stored):
    spec = training_file(tmp_path, stored)
    train = load_dataset(spec)
    assert train.labels.tolist() == stored["labels"][:6].tolist()
    assert np.array_equal(train.image(4)[0], stored["images"][4] / np.float32(255))
    assert train.fingerprint != load_dataset("glyphs").fingerprint
    training_file(tmp_path, stored, labels=stored["labels"][1:7])
    assert load_dataset(spec).fingerprint != train.fingerprint


def test_a_missing_training_part_names_the_job_that_makes_it(tmp_path):
    spec = {"name": "glyphs", "split": "train"}
    with pytest.raises(DatasetError, match=r"needs dataset\.path.*jobs/make_glyphs\.py FOLDER"):
        load_dataset(spec)
    with pytest.raises(DatasetError, match=r"no file 'glyphs-train\.npz'.*jobs/make_glyphs\.py"):
        load_dataset(spec | {"path": str(tmp_path)})


def test_a_path_without_effect_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="means nothing to split 'test'"):
        load_dataset({"name": "glyphs", "path": str(tmp_path)})
    with pytest.raises(DatasetError, match="use 'test', 'train' of glyphs"):
        load_dataset({"name": "glyphs", "split": "val"})


def test_a_damaged_or_foreign_training_part_is_refused_and_nothing_of_it_runs(tmp_path, stored):
    class Touches:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    objects = np.array([Touches()] * 6, dtype=object)
    for changed in (
        {"images": stored["images"][:6].astype(np.float32)},
        {"images": stored["images"][:6, :8]},
        {"images": stored["images"][:5]},
        {"labels": stored["labels"][:6] + 1000},
        {"labels": stored["labels"][:6] * 1.0},
        {"labels": objects},
        {"syllables": stored["syllables"][:999]},
        {"syllables": np.array(["가"] * 1000)},
        {"syllables": np.array([])},
    ):
        spec = training_file(tmp_path, stored, **changed)
        with pytest.raises(DatasetError, match=r"glyphs-train\.npz is damaged, or not a file of"):
            load_dataset(spec)
    assert not (tmp_path / "canary").exists()
    with pytest.raises(DatasetError, match="other classes than the test part"):
        load_dataset(training_file(tmp_path, stored, syllables=stored["syllables"][::-1]))
    training_file(tmp_path, stored)
    file = tmp_path / "glyphs-train.npz"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100] + b"\xff" * 50 + whole[150:]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"glyphs-train\.npz is damaged"):
            load_dataset(spec)
