"""A run over a dataset with corrupt images: it stops, or it skips them and says so."""

import logging

import numpy as np
import pytest
from PIL import Image

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.errors import ConfigError, DatasetError
from diffcert_ray.run.certify import certify
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.preflight import check_plan
from diffcert_ray.run.stored import open_run
from tests.test_datasets_files import png
from tests.worlds import settings, small_world

CORRUPT = [2, 3]


@pytest.fixture
def folder(tmp_path):
    """The images of an exact world as PNG files, two of them damaged."""
    world, data = small_world()
    grey = np.rint(np.clip(np.asarray(data.pixels)[:, 0], 0, 1) * 255).astype(np.uint8)
    for name in data.class_names:
        (tmp_path / "images" / "test" / name).mkdir(parents=True)
    for k, (image, label) in enumerate(zip(grey, sorted(data.labels), strict=True)):
        content = png(image)
        file = tmp_path / "images" / "test" / str(label) / f"{k}.png"
        file.write_bytes(content[:30] if k in CORRUPT else content)
    for name in data.class_names:  # torchvision wants an image in each class
        extra = tmp_path / "images" / "test" / name / "z.png"
        extra.write_bytes(png(grey[0]))
    table = {"name": "folder", "path": str(tmp_path / "images"), "image_shape": [1, 4, 4]}
    return world, tmp_path, table


def corrupt_ids(table) -> list[int]:
    data = load_dataset(load_config({"dataset": table}).dataset)
    return list(check_images(data, data.ids).corrupt)


def test_a_run_stops_at_corrupt_images_before_any_work(folder):
    world, path, table = folder
    first, second = corrupt_ids(table)
    with pytest.raises(ConfigError, match=rf"2 of \d+ images .* \(image_id {first}, {second}\)"):
        certify(settings(dataset=table), path / "run", local=True, denoiser=world)
    assert not (path / "run").exists()


def test_a_run_that_skips_them_warns_and_counts_them_as_abstentions(folder, caplog):
    world, path, table = folder
    bad = corrupt_ids(table)
    config = settings(dataset=table | {"on_corrupt": "skip"}, votes={"radii": [0.0]})
    with caplog.at_level(logging.WARNING):
        run = certify(config, path / "run", local=True, denoiser=world)
    assert "2 of 10 images cannot be read" in caplog.text
    assert run.outcome.complete
    assert run.outcome.unreadable == bad
    rows = run.certificates()
    assert len(rows) == 10
    unread = rows[rows["nfe"] == 0]
    assert unread["image_id"].tolist() == bad
    assert unread["abstained"].all()
    assert not unread["correct"].any()
    assert (unread["n"] == 0).all()
    assert sorted(run.units()["image_id"].unique()) == sorted(set(range(10)) - set(bad))
    # They stay in the denominator.
    accuracy = certified_accuracy(rows, [0.0])["certified_accuracy"].iloc[0]
    assert accuracy == rows["correct"].sum() / 10


def test_starting_again_adds_nothing_and_still_says_which_were_skipped(folder):
    world, path, table = folder
    config = settings(dataset=table | {"on_corrupt": "skip"})
    first = certify(config, path / "run", local=True, denoiser=world)
    rows = first.store.certificates().num_rows
    again = certify(config, path / "run", local=True, denoiser=world)
    assert again.outcome.unreadable == corrupt_ids(table)
    assert open_run(path / "run").store.certificates().num_rows == rows


def test_an_image_that_can_be_read_again_gets_its_certificate(folder, monkeypatch):
    world, path, table = folder
    config = settings(dataset=table | {"on_corrupt": "skip"})
    bad = corrupt_ids(table)
    certify(config, path / "run", local=True, denoiser=world)
    # Bytes repaired in place: names and sizes, and so the fingerprint, are the same.
    from diffcert_ray.datasets import image_folder

    decode = image_folder.decode_pixels
    good = png(np.full((4, 4), 128, np.uint8))
    monkeypatch.setattr(
        image_folder,
        "decode_pixels",
        lambda data, *how: decode(good if len(data) == 30 else data, *how),
    )
    run = certify(config, path / "run", local=True, denoiser=world)
    assert run.outcome.unreadable == []
    rows = run.certificates()
    assert len(rows) == 10
    assert (rows[rows["image_id"].isin(bad)]["nfe"] > 0).all()


def test_only_the_asked_range_is_read(folder):
    world, path, table = folder
    first = corrupt_ids(table)[0]
    run = certify(
        settings(dataset=table), path / "run", local=True, denoiser=world, images=(0, first)
    )
    assert run.outcome.complete
    assert run.outcome.unreadable == []


def test_a_run_of_nothing_but_corrupt_images_is_refused_either_way(folder):
    world, path, table = folder
    table |= {"on_corrupt": "skip", "ids": corrupt_ids(table)}
    with pytest.raises(ConfigError, match=r"2 of 2 images cannot be read|none of the 2 chosen"):
        certify(settings(dataset=table), path / "run", local=True, denoiser=world)


def test_colours_for_a_grey_network_are_refused_naming_both_and_the_remedy(folder):
    world, _, table = folder
    config = load_config(settings(dataset={k: v for k, v in table.items() if k != "image_shape"}))
    data = load_dataset(config.dataset)
    with pytest.raises(ConfigError, match=r"are \(3, 4, 4\).*takes \(1, 4, 4\).*image_shape"):
        check_plan(config, plan_of(config, data), data, world)
    fewer = load_dataset(dict(table) | {"num_classes": 5})
    with pytest.raises(ConfigError, match=r"has 5 classes, the network .* 4.*label_map"):
        check_plan(config, plan_of(config, fewer), fewer, world)


def test_images_that_are_replaced_while_the_run_starts_are_never_voted_on(folder):
    world, path, table = folder
    config = settings(dataset=table | {"on_corrupt": "skip"})

    def replaced(run):  # by others of the same names and sizes: the fingerprint stays
        file = next((path / "images").rglob("z.png"))
        content, pixels = file.read_bytes(), np.array(Image.open(file))
        others = (png(pixels + np.uint8(k)) for k in range(1, 256))
        file.write_bytes(next(other for other in others if len(other) == len(content)))

    with pytest.raises(DatasetError, match=r"image \d+ has pixels") as caught:
        certify(config, path / "run", local=True, denoiser=world, on_start=replaced)
    refused = int(str(caught.value).split()[1])
    assert refused not in set(open_run(path / "run").units()["image_id"])
