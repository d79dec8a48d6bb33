"""Pixels that are not in [0, 1]: refused wherever they enter, with range, cause and remedy."""

import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat
from torch import nn

from diffcert_ray import Classifier, Dataset, PixelsError, certify, load_dataset
from diffcert_ray.config.training import load_denoiser_training
from diffcert_ray.datasets import check_images
from diffcert_ray.datasets.pixel_scale import TOLERANCE, as_pixels
from diffcert_ray.errors import ConfigError, CorruptImageError, DatasetError
from diffcert_ray.tools.exact_worlds import gaussian_world
from diffcert_ray.tools.training import train_denoiser
from tests.test_datasets_files import png
from tests.worlds import settings, small_world

IMAGES, SHAPE = 5, (1, 4, 4)
LEVELS = np.random.default_rng(7).integers(2, 255, (IMAGES, *SHAPE)).astype(np.uint8)
LEVELS[:, 0, 0, :2] = 0, 255  # every image has black and white
GOOD = LEVELS.astype(np.float32) / np.float32(255)
WORLD, WORLD_DATA = small_world()
NAMES = tuple("abcd")

WRONG = {
    # what: pixels, the range seen, the cause, the remedy
    "levels as float32": (GOOD * 255, "from 0 to 255", "grey levels", "divide by 255"),
    "levels as float64": (LEVELS.astype(float), "from 0 to 255", "grey levels", "divide by 255"),
    "levels as float16": (LEVELS.astype("f2"), "from 0 to 255", "grey levels", "divide by 255"),
    "resized levels": (GOOD * 270 - 8, "from -8 to 262", "grey levels", "divide by 255"),
    "-1 to 1": (2 * GOOD - 1, "from -1 to 1", r"\[-1, 1\]", r"\(x \+ 1\) / 2"),
    "standardised": (
        (GOOD - 0.4) / np.float32(0.2), "from -2 to 3", "standardised", r"x \* std \+ mean"
    ),
    "centred": (GOOD - np.float32(0.5), r"from -0\.5 to 0\.5", "centred", r"x \+ 0\.5"),
    "levels less 128": (GOOD * 255 - 128, "from -128 to 127", "less 128", "divide by 255"),
    "16 bits": (LEVELS.astype(np.uint16) * 257, "from 0 to 65535", "8 bits", "divide by .*65535"),
    "16 levels": (np.rint(GOOD * 16), "from 0 to 16", "grey levels", r"\(16 for scikit-learn"),
    "int64 levels": (LEVELS.astype(np.int64), "from 0 to 255", "whole", r"astype\(np\.uint8\)"),
    "int8": (LEVELS.astype(np.int16) - 128, "from -128 to 127", "less 128", "divide by 255"),
    "int64 0 and 1": (
        (LEVELS > 99).astype(int), "from 0 to 1", r"0\.\.255", r"astype\(np\.float32\)"
    ),
    "bool": (LEVELS > 99, "from 0 to 1", "truth values", r"astype\(np\.float32\)"),
    "uint8 0 and 1": (
        (LEVELS > 99).astype(np.uint8), "from 0 to 1", r"0\.\.255", r"astype\(np\.float32\)"
    ),
    "NaN": (np.where(GOOD == 1, np.nan, GOOD), "are NaN or inf", "division by", "repair"),
    "NaN only": (np.full_like(GOOD, np.nan), "no other", "division by", "repair"),
    "inf": (np.where(GOOD == 1, np.inf, GOOD), "are NaN or inf", "division by", "repair"),
    "NaN in levels": (
        np.where(GOOD == 1, np.nan, GOOD * 255), "are NaN or inf", "division by", "divide by 255"
    ),
    "overshoot": (
        GOOD * np.float32(1.1) - np.float32(0.05), r"from -0\.05", "resizing", r"np\.clip\(x, 0, 1"
    ),
    "beyond all scales": (GOOD * 1e30, "1e[+]30", "no scale", r"\[0, 1\]"),
    "beyond float32": (GOOD.astype(float) * 1e300, "1e[+]300", "no scale", r"\[0, 1\]"),
}  # fmt: skip


class Lazy:
    """Pixels that are read when asked for, as an own reader would give them."""

    def __init__(self, pixels):
        self._pixels = pixels

    shape = property(lambda self: self._pixels.shape)

    def __getitem__(self, position):
        return self._pixels[position]


def dataset(pixels, ids=None) -> Dataset:
    ids = np.arange(10, 10 + IMAGES) if ids is None else ids
    labels = np.arange(len(ids)) % 4
    return Dataset("own", "test", ids, labels, pixels, NAMES, "own pixels")


def parquet(folder, pixels, **keys) -> dict:
    """A dataset table for nested lists of the numbers as they are, H x W."""
    rows = pa.array(pixels[:, 0].tolist())
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 2, 3, 0]}), folder / "test.parquet")
    return {"name": "parquet", "path": str(folder), **keys}


def run_in(folder, tables=None, **options):
    asked = settings(votes={"n0": 4, "n": 8, "unit": 4, "radii": [0.0]}) | (tables or {})
    return certify(asked, folder / "run", local=True, denoiser=WORLD, **options)


def classifier() -> Classifier:
    return Classifier(WORLD, sigma=0.25, settings={"noise_levels": {"levels": 24}})


ENTRIES = {
    "certify": lambda x, folder: run_in(folder, dataset=dataset(x)),
    "certify, lazily": lambda x, folder: run_in(folder, dataset=dataset(Lazy(x))),
    "check_images": lambda x, folder: check_images(d := dataset(x), d.ids),
    "Dataset.image": lambda x, folder: dataset(x).image(11),
    "Dataset.image_sha": lambda x, folder: dataset(x).image_sha(11),
    "votes": lambda x, folder: classifier().votes(x[1], 11, "select", 0, 2),
    "predict one": lambda x, folder: classifier().predict(x[1], n=2),
    "predict": lambda x, folder: classifier().predict(x, n=2),
    "Parquet": lambda x, folder: run_in(folder, tables={"dataset": parquet(folder, x) | GREY}),
    "Parquet, skipping": lambda x, folder: run_in(
        folder, tables={"dataset": parquet(folder, x, on_corrupt="skip") | GREY}
    ),
}
GREY = {"num_classes": 4}
BY_TYPE = {"int64 levels", "bool", "uint8 0 and 1", "int64 0 and 1"}
"""What Parquet takes as grey levels, or asks about otherwise: tested on their own."""


@pytest.mark.parametrize(
    ("entry", "what"),
    [(e, w) for e in ENTRIES for w in WRONG if "Parquet" not in e or w not in BY_TYPE],
)
def test_wrong_pixels_are_refused_with_range_cause_and_remedy(what, entry, tmp_path):
    pixels, seen, cause, remedy = WRONG[what]
    with pytest.raises(PixelsError) as caught:
        ENTRIES[entry](pixels, tmp_path)
    said = str(caught.value)
    for wanted in (seen, cause, remedy):
        assert re.search(wanted, said), f"{said!r} lacks {wanted!r}"
    if entry.startswith(("certify", "Dataset", "check", "Parquet")):
        assert re.search(r"image \d+|dataset own", said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_right_pixels_pass_bit_for_bit(dtype):
    given = GOOD.astype(dtype)
    expected = given.astype("<f4")
    data = dataset(given)
    for position, image_id in enumerate(data.ids):
        found = data.image(image_id)
        assert found.dtype == np.float32
        assert found.astype("<f4").tobytes() == expected[position].tobytes()
    assert check_images(data, data.ids).corrupt == {}


def test_uint8_is_divided_by_255_wherever_floats_are_taken(tmp_path):
    known = classifier()
    votes = [known.votes(x[2], 7, "estimate", 0, 12) for x in (LEVELS, GOOD)]
    assert np.array_equal(*votes)
    found = [known.predict(x, n=12, alpha=0.2) for x in (LEVELS, GOOD)]
    assert np.array_equal(*found)
    ways = (LEVELS, Lazy(LEVELS), GOOD, Lazy(GOOD))
    runs = []
    for number, way in enumerate(ways):
        (tmp_path / str(number)).mkdir()
        runs.append(run_in(tmp_path / str(number), dataset=dataset(way)))
    first, *others = (run.units() for run in runs)
    assert LEVELS.flags.writeable
    for other in others:
        assert other["image_sha"].tolist() == first["image_sha"].tolist()
        for column in ("classes", "counts"):
            assert list(map(list, other[column])) == list(map(list, first[column]))


def test_levels_of_a_dark_image_are_no_question_beside_brighter_ones():
    levels = LEVELS.copy()
    levels[2] = LEVELS[2] > 99  # 0 and 1 only
    data = dataset(levels)
    assert data.image(12).max() == np.float32(1) / 255
    assert len(check_images(data, data.ids).corrupt) == 0
    classifier().predict(levels, n=2)
    with pytest.raises(PixelsError, match="0 and 1 only"):
        classifier().votes(levels[2], 12, "select", 0, 2)
    black = dataset(np.zeros_like(LEVELS))  # 0 is 0 on every scale
    assert black.image(10).max() == 0


def test_rounding_of_float32_is_taken_as_it_is_and_more_is_refused():
    below, above = np.float32(-1e-7), np.float32(1.0000001)
    pixels = np.where(GOOD == 0, below, np.where(GOOD == 1, above, GOOD))
    assert np.array_equal(as_pixels(pixels), pixels)  # not clipped
    assert as_pixels(pixels).min() == below
    assert np.array_equal(as_pixels(np.full(SHAPE, 1 + 1e-12)), np.ones(SHAPE))
    for value in (-1.01 * TOLERANCE, 1 + 1.2 * TOLERANCE, -1e-3, 1.001):
        with pytest.raises(ValueError, match=r"np\.clip"):
            as_pixels(np.where(GOOD == 1, np.float32(value), GOOD))


@pytest.mark.parametrize("lazily", [False, True])
def test_a_few_wrong_images_are_counted_and_the_first_named(tmp_path, lazily):
    pixels = GOOD.copy()
    pixels[[1, 3]] = 2 * pixels[[1, 3]] - 1
    pixels[1, 0, 0, 0] = -0.5  # its own range would say less than that of both
    data = dataset(Lazy(pixels) if lazily else pixels, ids=np.array([70, 60, 50, 40, 30]))
    with pytest.raises(PixelsError, match=r"2 of 5 images .*: image 40 has pixels.*\[-1, 1\]"):
        run_in(tmp_path, dataset=data)
    assert run_in(tmp_path, dataset=data, images=(0, 1)).outcome.complete  # 70 is all right
    with pytest.raises(PixelsError, match=r"2 of 5 images .*: image 1 has pixels"):
        classifier().predict(pixels, n=2)
    assert data.image(70).max() == 1
    with pytest.raises(PixelsError, match=r"image 40 of own test has pixels from -1 to 1"):
        data.image(40)


def test_whole_numbers_in_parquet_are_grey_levels_but_not_0_and_1(tmp_path):
    data = load_dataset(parquet(tmp_path, LEVELS.astype(np.int64)))
    assert all(np.array_equal(data.image(i), GOOD[i]) for i in range(IMAGES))
    for number, pixels in enumerate(((LEVELS > 99).astype(int), GOOD / np.float32(255))):
        (tmp_path / str(number)).mkdir()
        table = parquet(tmp_path / str(number), pixels, on_corrupt="skip") | GREY
        with pytest.raises(PixelsError, match=r"brightest .* is 0\.00392.*255 twice; store 0 and"):
            run_in(tmp_path / str(number), tables={"dataset": table})
    (tmp_path / "truth").mkdir()
    truth = parquet(tmp_path / "truth", LEVELS > 99)
    with pytest.raises(PixelsError, match="truth values"):
        load_dataset(truth).image(0)


def test_pictures_whose_levels_are_0_and_1_are_asked_about(tmp_path):
    (tmp_path / "test" / "a").mkdir(parents=True)
    spec = {"name": "folder", "path": str(tmp_path), "image_shape": SHAPE}
    for k, levels in enumerate(LEVELS[:3, 0]):
        (tmp_path / "test" / "a" / f"{k}.png").write_bytes(png((levels > 99).astype(np.uint8)))
    data = load_dataset(spec)
    with pytest.raises(PixelsError, match=r"brightest pixel of all 3 images is 0\.00392"):
        check_images(data, data.ids)
    (tmp_path / "test" / "a" / "1.png").write_bytes(png(LEVELS[1, 0]))
    assert len(check_images(data, data.ids).shas) == 3


def test_an_archive_of_0_and_1_is_asked_about(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (6, 3072)).astype(np.uint8)
    data = load_dataset(archive(tmp_path, rows))
    with pytest.raises(PixelsError, match=r"brightest pixel of all 6 images is 0\.00392"):
        check_images(data, data.ids)


def archive(folder, rows) -> dict:
    np.savez(folder / "val_data.npz", data=rows, labels=np.arange(1, len(rows) + 1))
    spec = {"name": "imagenet32", "path": str(folder), "split": "val"}
    return spec | {"label_map": list(range(1000))}


def pickled(folder, rows) -> dict:
    content = {"data": rows, "labels": [0] * len(rows)}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    return {"name": "cifar10", "path": str(folder)}


def matlab(folder, rows) -> dict:
    images = rows.reshape(-1, 3, 32, 32).transpose(2, 3, 1, 0)
    savemat(folder / "test_32x32.mat", {"X": images, "y": np.ones((len(rows), 1))})
    return {"name": "svhn", "path": str(folder)}


@pytest.mark.parametrize("written", [archive, pickled, matlab])
@pytest.mark.parametrize(
    ("scale", "seen"),
    [
        (lambda x: x, r"from 0 to 1 \(float32\)"),
        (lambda x: x * 255, r"from 0 to 255 \(float32\)"),
        (lambda x: x.astype(float) * 2 - 1, r"from -1 to 1 \(float64\)"),
        (lambda x: (x * 255).astype(np.int64), r"from 0 to 255 \(int64\)"),
    ],
)
def test_published_files_of_other_numbers_are_refused_with_range_and_remedy(
    tmp_path, written, scale, seen
):
    rows = np.linspace(0, 1, 2 * 3072, dtype=np.float32).reshape(2, 3072)
    with pytest.raises(PixelsError, match=rf"{tmp_path}/.* has pixels {seen}, where .* uint8"):
        load_dataset(written(tmp_path, scale(rows)))


# --- channel order


def colour(pixels_shape):
    return np.random.default_rng(1).random(pixels_shape, np.float32)


class Mean(nn.Module):
    """A classifier that takes images of any shape, as one with pooling may."""

    def forward(self, x):
        return x.flatten(1).mean(1)[:, None] * x.new_tensor([1.0, -1.0, 0.5, 0.0])


COLOUR_WORLD = gaussian_world(4, 192, 0.3, 0.25, 0, image_shape=(3, 8, 8))


def with_colours(shape, folder, denoiser=COLOUR_WORLD, **method):
    data = dataset(colour((IMAGES, *shape)))
    tables = settings(votes={"n0": 4, "n": 8, "unit": 4, "radii": [0.0]}, **method)
    return certify(tables, folder / "run", local=True, denoiser=denoiser, dataset=data,
                   classifier=Mean() if method else None)  # fmt: skip


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: with_colours((8, 8, 3), folder),
        lambda folder: with_colours((8, 8, 3), folder, None, method={"name": "classify"}),
        lambda folder: with_colours((8, 8, 3), folder, method={"name": "denoise-classify"}),
        lambda _: Classifier(COLOUR_WORLD, sigma=0.25).votes(colour((8, 8, 3)), 0, "select", 0, 1),
        lambda _: Classifier(COLOUR_WORLD, sigma=0.25).predict(colour((2, 8, 8, 3)), n=1),
        lambda _: Classifier(None, sigma=0.25, method="classify", classifier=Mean()).predict(
            colour((8, 8, 1)), n=1
        ),
        lambda _: classifier().votes(colour((4, 4, 1)), 0, "select", 0, 1),  # 4 may be channels
        lambda folder: run_in(folder, dataset=dataset(colour((IMAGES, 4, 4, 1)))),
    ],
    ids=["certify", "classify", "denoise", "votes", "predict", "no network", "4", "certify 4"],
)
def test_channels_last_are_refused_with_the_remedy(use, tmp_path):
    with pytest.raises(PixelsError, match=r"has shape .*, probably height x width x channels, .*"
                       r"transpose, x\.transpose\(2, 0, 1\)"):  # fmt: skip
        use(tmp_path)
    assert not (tmp_path / "run").exists()


def test_channels_first_and_shapes_that_the_network_takes_pass(tmp_path):
    assert with_colours((3, 8, 8), tmp_path).outcome.complete
    thin = gaussian_world(4, 16, 0.3, 0.25, 0, image_shape=(2, 2, 4))
    Classifier(thin, sigma=0.25).votes(colour((2, 2, 4)), 0, "select", 0, 1)
    vector = Classifier(None, sigma=0.25, method="classify", classifier=Mean())
    vector.predict(colour((16, 1, 1)), n=1)
    vector.predict(colour((3, 8, 8)), n=1)


def test_other_shapes_are_refused_as_before():
    for shape in ((3, 3, 3), (4, 4), (), (1, 1, 4, 4)):
        with pytest.raises(ConfigError, match="image has shape"):
            classifier().votes(colour(shape), 0, "select", 0, 1)
    with pytest.raises(ConfigError, match="image has shape"):
        classifier().predict(colour((4, 4)), n=1)


# --- datasets that are none


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pixels": GOOD[:, 0]}, r"shape \(5, 4, 4\).*x\[:, None\]"),
        ({"pixels": GOOD[:4]}, r"5 ids, 5 labels and pixels \(4, 1, 4, 4\)"),
        ({"labels": np.zeros(4, int)}, "5 ids, 4 labels"),
        ({"ids": np.array([1, 2, 3, 2, 4])}, "has id 2 twice"),
        ({"pixels": GOOD.astype("c8")}, "complex64: give real numbers"),
        ({"pixels": GOOD.astype(str)}, "not numbers"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changed, match):
    parts = {"ids": np.arange(5), "labels": np.zeros(5, int), "pixels": GOOD} | changed
    with pytest.raises(DatasetError, match=match):
        Dataset("own", "test", **parts, class_names=NAMES, fingerprint="x").image(1)


def test_only_what_cannot_be_decoded_is_skipped(tmp_path):
    images = [png(levels) for levels in LEVELS[:, 0]]
    images[3] = images[3][:30]
    table = pa.table({"image": images, "label": [0, 1, 2, 3, 0]})
    pq.write_table(table, tmp_path / "test.parquet")
    spec = {"name": "parquet", "path": str(tmp_path), "image_shape": SHAPE}
    data = load_dataset(spec)
    assert list(check_images(data, data.ids).corrupt) == [3]
    with pytest.raises(CorruptImageError):
        data.image(3)


def test_no_network_learns_from_pixels_on_another_scale(tmp_path):
    ten = tuple(map(str, range(10)))
    pixels = np.random.default_rng(0).random((3, 1, 8, 8), np.float32) * 16
    data = Dataset("own", "test", np.arange(3), np.arange(3), pixels, ten, "x")
    with pytest.raises(PixelsError, match="own test: 3 of 3 images are not in"):
        train_denoiser(load_denoiser_training("digits"), tmp_path, dataset=data)
    assert not (tmp_path / "model.safetensors").exists()


def test_small_worlds_are_themselves_in_range():
    assert as_pixels(WORLD_DATA.pixels) is WORLD_DATA.pixels
