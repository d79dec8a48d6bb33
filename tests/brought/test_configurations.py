"""Configurations as people write them: marks of editors, true for a number, numbers without end,
and paths that are meant from the file's own folder."""

import dataclasses
import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from diffcert_ray import certify, load_dataset
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets.labels import class_numbers
from diffcert_ray.errors import ConfigError, DatasetError
from diffcert_ray.run.stored import open_run
from tests.brought.inputs import encoded, image_folder


def test_a_toml_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "my.toml"
    file.write_bytes('name = "mine"\n[votes]\nn = 300\n'.encode("utf-8-sig"))
    assert load_config(file).votes.n == 300


def test_json_and_label_maps_that_begin_with_one_are_read(tmp_path):
    (tmp_path / "model.json").write_bytes(json.dumps({"label_dim": 10}).encode("utf-8-sig"))
    config = load_config({"model": {"config": str(tmp_path / "model.json")}})
    assert config.model.config == {"label_dim": 10}
    lines = "n02 1 bee\nn01 2 ant\n"
    (tmp_path / "map.txt").write_bytes(lines.encode("utf-8-sig"))
    numbers, names = class_numbers(str(tmp_path / "map.txt"), ("a", "b"), 1)
    assert (numbers.tolist(), names) == ([1, 0], ("ant", "bee"))


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"votes": {"n": True}}, "votes.n is True"),
        ({"votes": {"alpha": False}}, "votes.alpha is False"),
        ({"votes": {"sigmas": [True]}}, r"votes.sigmas is \[True\]"),
        ({"dataset": {"first": True}}, "dataset.first is True"),
        ({"dataset": {"label_map": [True, False]}}, "dataset.label_map"),
        ({"dataset": {"label_map": {"ant": True}}}, "dataset.label_map"),
        ({"execution": {"actors": True}}, "execution.actors is True"),
    ],
)
def test_true_is_no_number(tables, key):
    with pytest.raises(ConfigError, match=key):
        load_config(tables)


def test_true_is_still_a_truth_value():
    assert load_config({"numerics": {"compile": True}}).numerics.compile is True


@pytest.mark.parametrize(
    "override",
    [
        "votes.n=100000000000000000000000",
        "votes.n=1e23",
        "votes.n0=9999999999999",
        "plain.draws=1e12",
    ],
)
def test_a_number_of_votes_that_never_ends_is_refused(override):
    with pytest.raises(ConfigError, match=r"(equal to|give) 1000000000"):
        load_config({}, [override])


def test_a_sigma_that_leaves_nothing_of_an_image_is_refused():
    tables = {"method": {"name": "classify"}, "votes": {"sigmas": [1e23]}}
    with pytest.raises(ConfigError, match=r"votes\.sigmas\.0 is 1e\+23: .* equal to 100"):
        load_config(tables)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A configuration beside its images, and a process that is in another folder."""
    image_folder(tmp_path / "work" / "images" / "test", "ant", "bee")
    file = tmp_path / "work" / "my.toml"
    file.write_text('[dataset]\nname = "folder"\npath = "images"\n')
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return tmp_path, file


def test_a_relative_path_of_images_is_meant_from_the_configurations_folder(elsewhere):
    tmp_path, file = elsewhere
    config = load_config(file)
    assert config.dataset.path == str(tmp_path / "work" / "images")
    assert len(load_dataset(config.dataset)) == 2
    image_folder(tmp_path / "other" / "images" / "test", "ant")
    assert len(load_dataset(load_config(file).dataset)) == 2  # not what happens to be here
    assert load_config(os.path.relpath(file)).dataset == config.dataset


def test_a_path_that_is_not_there_or_is_typed_is_meant_from_here(elsewhere):
    tmp_path, file = elsewhere
    assert load_config(file, ["dataset.path=images"]).dataset.path == "images"
    (tmp_path / "work" / "images").rename(tmp_path / "other" / "images")
    assert len(load_dataset(load_config(file).dataset)) == 2
    assert load_config({"dataset": {"path": "images"}}).dataset.path == "images"


def test_a_label_map_beside_the_configuration_is_found(elsewhere):
    tmp_path, file = elsewhere
    (tmp_path / "work" / "map.txt").write_text("n02 0 ant\nn01 1 bee\n")
    file.write_text(file.read_text() + 'label_map = "map.txt"\n')
    assert load_dataset(load_config(file).dataset).labels.tolist() == [1, 0]


# --- a run that was made elsewhere


@pytest.fixture
def moved_run(tmp_path, monkeypatch):
    """A run of one digit among ten class folders, whose images have moved since."""
    monkeypatch.chdir(tmp_path)
    digits = load_dataset("digits")
    for k in range(10):
        (tmp_path / "there" / "test" / str(k)).mkdir(parents=True)
        image = digits.image(int(digits.ids[digits.labels == k][0]))
        levels = np.rint(image[0] * 255).astype(np.uint8)
        (tmp_path / "there" / "test" / str(k) / "0.png").write_bytes(encoded(levels))
    (tmp_path / "my.toml").write_text(
        '[dataset]\nname = "folder"\npath = "there"\nimage_shape = [1, 8, 8]\nfirst = 1\n'
        "[noise_levels]\nlevels = 8\n[votes]\nn0 = 4\nn = 8\nunit = 8\nradii = [0.0]\n"
    )
    certify("my.toml", tmp_path / "run", local=True)
    (tmp_path / "there").rename(tmp_path / "here")
    return tmp_path


def test_a_run_made_elsewhere_is_verified_with_the_images_that_are_here(moved_run):
    def verify(*options):
        return CliRunner().invoke(app, ["verify", str(moved_run / "run"), *options])

    lost = verify()
    assert isinstance(lost.exception, DatasetError)
    assert "--dataset-path" in str(lost.exception)
    found = verify("--dataset-path", str(moved_run / "here"))
    assert found.exit_code == 0, found.output
    assert "no difference" in found.output
    (moved_run / "here" / "test" / "0" / "0.png").write_bytes(encoded(np.zeros((8, 8), np.uint8)))
    other = verify("--dataset-path", str(moved_run / "here"))
    assert "the data has changed" in str(other.exception)


def test_a_label_map_that_is_a_file_is_looked_for_beside_the_images(moved_run):
    document = open_run(moved_run / "run").document
    dataset = document.config.dataset.model_copy(update={"label_map": "/gone/map.txt"})
    config = document.config.model_copy(update={"dataset": dataset})
    document = dataclasses.replace(document, config=config)
    here = moved_run / "here"
    assert document.with_dataset_path(str(here)).config.dataset.label_map == "/gone/map.txt"
    (here / "map.txt").write_text("n01 0 a\n")
    moved = document.with_dataset_path(str(here)).config.dataset
    assert (moved.path, moved.label_map) == (str(here), str(here / "map.txt"))
