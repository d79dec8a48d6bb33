"""The public names: there from now on, documented, and cheap to import."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

import diffcert_ray
from diffcert_ray import ABSTAIN, Classifier, errors, load_dataset
from diffcert_ray.errors import ConfigError
from tests.worlds import small_world

SIGNATURES = {
    "certificate": ["n_a", "n", "sigma", "n_b", "alpha", "bound"],
    "certified_accuracy": ["certificates", "radii"],
    "certify": ["config", "run"],
    "load_dataset": ["spec", "storage_options"],
    "load_denoiser": ["source"],
    "open_run": ["address"],
}


def test_the_public_names_are_pinned():
    assert sorted(diffcert_ray.__all__) == [
        "ABSTAIN",
        "Certificate",
        "CheckpointError",
        "Classifier",
        "ConfigError",
        "CorruptImageError",
        "Dataset",
        "DatasetError",
        "Denoiser",
        "LogError",
        "PixelsError",
        "PoolError",
        "Run",
        "StoreError",
        "TrainingError",
        "VotesError",
        "certificate",
        "certified_accuracy",
        "certify",
        "load_dataset",
        "load_denoiser",
        "open_run",
    ]
    assert ABSTAIN == -1


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_public_function_keeps_its_first_arguments(name):
    parameters = list(inspect.signature(getattr(diffcert_ray, name)).parameters)
    assert parameters[: len(SIGNATURES[name])] == SIGNATURES[name]


@pytest.mark.parametrize("name", diffcert_ray.__all__)
def test_every_public_name_is_documented(name):
    public = getattr(diffcert_ray, name)
    text = inspect.getdoc(public) or ""
    if inspect.isclass(public) and issubclass(public, Exception):
        assert text
        assert public.__module__ == "diffcert_ray.errors"
    elif callable(public):
        assert "Args:" in text or "Attributes:" in text


def test_every_error_of_the_package_is_importable_from_it():
    own = {n for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, Exception)}
    assert own == {name for name in diffcert_ray.__all__ if name.endswith("Error")}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffcert_ray.nothing  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import diffcert_ray; assert diffcert_ray.__version__",
        "import diffcert_ray.commands.main",
        "from diffcert_ray import certificate, certified_accuracy, open_run, load_dataset",
        "import diffcert_ray.storage.store, diffcert_ray.votes.stages, diffcert_ray.report.files, "
        "diffcert_ray.run.vote_rows",
        "import diffcert_ray.run.certify, diffcert_ray.run.estimate, diffcert_ray.run.verify",
    ],
)
def test_planning_storing_and_reporting_import_neither_torch_nor_ray(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'ray'}} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_classifiers_votes_are_addressed_and_repeatable():
    world, data = small_world()
    classifier = Classifier(world, sigma=0.25, settings={"noise_levels": {"levels": 24}})
    image, image_id = data.image(100), 100
    votes = classifier.votes(image, image_id, "select", 0, 30)
    assert votes.shape == (30,)
    assert set(votes) <= set(range(world.num_classes))
    again = Classifier(world, sigma=0.25, settings={"noise_levels": {"levels": 24}})
    assert np.array_equal(again.votes(image, image_id, "select", 10, 20), votes[10:20])
    assert not np.array_equal(again.votes(image, image_id, "estimate", 0, 30), votes)
    assert again.nfe > 0


def test_logits_rank_the_true_class_of_a_clean_image_first():
    import torch

    world, data = small_world(images=20)
    classifier = Classifier(world, sigma=0.25, method="dc")
    u = torch.from_numpy(data.pixels) * 2 - 1
    found = classifier.logits(u, draws=30).argmax(dim=1).numpy()
    exact = world.squared_distances(u.double()).argmin(dim=1).numpy()
    assert (found == exact).mean() >= 0.95


def test_a_classifier_refuses_an_image_of_another_shape():
    world, _ = small_world()
    with pytest.raises(ConfigError, match=r"\(1, 3, 3\).*\(1, 4, 4\)"):
        Classifier(world, sigma=0.25).votes(np.zeros((1, 3, 3)), 0, "select", 0, 1)


def test_load_dataset_is_the_datasets_own():
    assert len(load_dataset({"name": "digits", "first": 3})) == 3
