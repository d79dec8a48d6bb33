"""Datasets: stable ids, a split that never moves, and selections."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffcert_ray.datasets import load_dataset

# Pinned: another value means that stored runs and the shipped model no longer fit the dataset.
TEST_FINGERPRINT = "985cfc0d94927b74856d916cdd17800ab0f7aab41319863dc83c982042274f05"
TRAIN_FINGERPRINT = "7c6a7bc0267354a5c092ea45ac5d87def11ab367da27023d86caebb26910c197"


@pytest.fixture(scope="module")
def published():
    return load_digits()


def test_digits_fingerprints_are_pinned():
    assert load_dataset("digits").fingerprint == TEST_FINGERPRINT
    assert load_dataset({"name": "digits", "split": "train"}).fingerprint == TRAIN_FINGERPRINT


def test_digits_train_and_test_are_disjoint_and_complete():
    train = load_dataset({"name": "digits", "split": "train"})
    test = load_dataset({"name": "digits", "split": "test"})
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train.ids, *test.ids]) == list(range(1797))
    assert sorted(load_dataset({"name": "digits", "split": "all"}).ids) == list(range(1797))


def test_digits_test_split_has_each_class_in_proportion(published):
    shares = np.bincount(published.target) * 360 / 1797
    counts = np.bincount(load_dataset("digits").labels)
    assert (np.abs(counts - shares) < 1).all()


def test_digits_image_is_the_published_row_scaled_to_0_1(published):
    test = load_dataset("digits")
    for image_id in test.ids[::37]:
        image = test.image(image_id)
        assert image.dtype == np.float32
        assert image.shape == test.image_shape == (1, 8, 8)
        assert np.array_equal(image[0] * 16, published.images[image_id])
        assert test.labels[test.position(image_id)] == published.target[image_id]
    assert test.pixels.min() == 0.0
    assert test.pixels.max() == 1.0
    assert test.num_classes == 10
    assert test.class_names == tuple("0123456789")


def test_image_sha_is_the_hash_of_the_pixels():
    test = load_dataset("digits")
    image_id = int(test.ids[5])
    expected = hashlib.sha256(test.image(image_id).tobytes()).hexdigest()[:16]
    assert test.image_sha(image_id) == expected
    assert len({test.image_sha(i) for i in test.ids}) == len({i.tobytes() for i in test.pixels})


def test_selections_take_the_images_they_say():
    test = load_dataset("digits")
    some = [int(i) for i in test.ids[[7, 3, 300]]]
    for selector, expected in (
        ({"first": 5}, test.ids[:5]),
        ({"every": 100}, test.ids[[0, 100, 200, 300]]),
        ({"ids": some}, np.array(some)),
    ):
        part = load_dataset({"name": "digits", "split": "test", **selector})
        assert part.ids.tolist() == expected.tolist()
        for image_id in part.ids:
            assert np.array_equal(part.image(image_id), test.image(image_id))
            label = part.labels[part.position(image_id)]
            assert label == test.labels[test.position(image_id)]
        assert part.fingerprint == test.fingerprint


def test_sample_is_seeded_without_repeats_and_grows_at_the_end():
    def ids(number, seed):
        spec = {"name": "digits", "sample": number, "seed": seed}
        return load_dataset(spec).ids.tolist()

    assert ids(50, 1) == ids(50, 1)
    assert ids(50, 1) != ids(50, 2)
    assert ids(100, 1)[:50] == ids(50, 1)
    assert sorted(ids(360, 1)) == load_dataset("digits").ids.tolist()
    # A sample of 180 of ascending ids has mean position 179.5 +- 5.4: 4 standard deviations,
    # false alarm 6e-5 (and the seed is fixed).
    positions = np.searchsorted(load_dataset("digits").ids, ids(180, 1))
    assert abs(positions.mean() - 179.5) < 4 * 104 / np.sqrt(180) / np.sqrt(2)


def test_specification_may_be_an_object_and_unset_keys_do_not_count():
    @dataclasses.dataclass
    class Spec:
        name: str = "digits"
        split: str = "test"
        first: int | None = 3
        sample: int | None = None

    assert load_dataset(Spec()).ids.tolist() == load_dataset("digits").ids[:3].tolist()


def test_pixels_cannot_be_changed_by_accident():
    test = load_dataset("digits")
    with pytest.raises(ValueError, match="read-only"):
        test.image(test.ids[0])[0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "digit"}, "did you mean 'digits'"),
        ({"name": "mnist-of-mars"}, "known are digits"),
        ({"name": "digits", "split": "valid"}, "'valid' is not known: use 'train'"),
        ({"name": "digits", "frist": 3}, "did you mean 'first'"),
        ({"name": "digits", "first": 361}, "361 but digits test has 360 images"),
        ({"name": "digits", "sample": 2000}, "2000 but digits test has 360 images"),
        ({"name": "digits", "first": 0}, "at least 1"),
        ({"name": "digits", "every": 2.5}, "at least 1"),
        (
            {"name": "digits", "first": 3, "every": 2},
            "dataset.first and dataset.every exclude each other",
        ),
        ({"name": "digits", "first": 3, "seed": 2}, "seed is only for"),
        ({"name": "digits", "ids": []}, "at least one"),
        ({"name": "digits", "ids": [1797]}, "1797 is not in digits test"),
        (7, "not by int"),
    ],
)
def test_unusable_specification_is_refused_with_the_remedy(spec, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(spec)


def test_repeated_ids_are_refused():
    image_id = int(load_dataset("digits").ids[0])
    with pytest.raises(ValueError, match="none twice"):
        load_dataset({"name": "digits", "ids": [image_id, image_id]})


def test_unknown_image_id_is_refused():
    part = load_dataset({"name": "digits", "first": 3})
    with pytest.raises(ValueError, match="not among the 3 chosen images"):
        part.image(int(load_dataset("digits").ids[10]))


def test_loading_a_dataset_does_not_import_torch():
    code = (
        "import sys; from diffcert_ray.datasets import load_dataset; load_dataset('digits'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
