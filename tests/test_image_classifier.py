"""The classifier's file: found, hashed, opened without running anything, held to the dataset."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from diffcert_ray.checkpoints.image_classifier import (
    ImageClassifier,
    digits_convnet,
    load_classifier,
    shipped_classifiers,
)
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import CheckpointError, ConfigError
from diffcert_ray.run.preflight import check_plan


def config_of(method: str = "classify", **classifier):
    model = classifier.pop("model", {})
    return load_config(
        {"method": {"name": method}, "classifier": classifier, "model": model,
         "dataset": {"first": 20}, "votes": {"radii": [0.0]}}
    )  # fmt: skip


def check(config, **objects):
    from diffcert_ray.run.plan import plan_of

    data = load_dataset(config.dataset)
    weights_of(config, objects.get("denoiser"), objects.get("classifier"))
    check_plan(config, plan_of(config, data), data, **objects)


def file_of(folder, name: str = "net.safetensors", classes: int = 10):
    save_file(digits_convnet(classes).state_dict(), folder / name)
    return folder / name


@pytest.mark.parametrize("preset", ["digits-classify", "digits-denoise-classify"])
def test_a_preset_asks_for_the_images_and_votes_of_the_diffusion_classifier(preset, tmp_path):
    there = f"classifier.checkpoint={file_of(tmp_path)}"
    config, other = load_config(preset, [there]), load_config("digits")
    assert config.dataset == other.dataset
    assert config.votes == other.votes
    assert config.model == other.model
    check(config)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"epoch": 3, "state_dict": d}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_torch_file_gives_the_same_logits_as_its_network(wrap, prefix, tmp_path):
    network = digits_convnet()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pt")
    config = config_of(checkpoint=str(tmp_path / "net.pt"), architecture="digits-convnet")
    x = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_classifier(config, 10, (1, 8, 8))(x), network(x))


def test_a_torchvision_network_is_built_by_name_for_the_datasets_classes(tmp_path):
    network = models.shufflenet_v2_x0_5(weights=None, num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    config = config_of(
        checkpoint=str(tmp_path / "net.safetensors"), architecture="shufflenet_v2_x0_5",
        mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4],
    )  # fmt: skip
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    seen = (x - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).reshape(3, 1, 1)
    loaded = load_classifier(config, 7, (3, 32, 32))
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(seen))


def test_a_given_network_is_copied_and_not_changed():
    network = digits_convnet().train()
    ImageClassifier(network, dtype="bfloat16")
    assert network.training
    assert next(network.parameters()).dtype == torch.float32


def test_the_weights_identity_is_the_files_hash(tmp_path):
    path = file_of(tmp_path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_of(config_of(checkpoint=str(path))) == {"classifier": expected}
    weights = weights_of(config_of("denoise-classify", checkpoint=str(path)))
    assert set(weights) == {"classifier", "denoiser"}
    assert weights["denoiser"] == weights_of(load_config({}))["denoiser"]


def test_a_pinned_hash_of_another_file_is_refused(tmp_path):
    config = config_of(checkpoint=str(file_of(tmp_path)), sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"classifier\.sha256 is 0{64}, but the file"):
        weights_of(config)


def test_a_worker_with_another_file_than_the_drivers_is_refused(tmp_path):
    config = config_of(checkpoint=str(file_of(tmp_path)), architecture="digits-convnet")
    with pytest.raises(CheckpointError, match="another file than the driver"):
        WorkerSpec(config, {"classifier": "0" * 64}).load("w")


def test_a_missing_classifier_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r'"classify" needs a classifier: set classifier\.ch'):
        check(config_of())
    with pytest.raises(CheckpointError, match=r"no-file\.pt' is no file: give the path"):
        check(config_of(checkpoint=str(tmp_path / "no-file.pt")))


def test_another_number_of_classes_is_refused_naming_both(tmp_path):
    path = file_of(tmp_path, classes=7)
    config = config_of(checkpoint=str(path), architecture="digits-convnet")
    with pytest.raises(
        CheckpointError, match=r"head\.weight is \(7, 1024\), not \(10, 1024\).*num_classes"
    ):
        check(config)
    with pytest.raises(ConfigError, match=r"returns \(1, 7\).*it must be \(1, 10\)"):
        check(config_of(), classifier=digits_convnet(7))


def test_a_classifier_of_other_images_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(ConfigError, match=r"cannot take images \(1, 8, 8\)"):
        check(config_of(), classifier=network)
    with pytest.raises(ConfigError, match=r"2 numbers of mean or std.*1 channels"):
        check(config_of(mean=[0.1, 0.2]), classifier=digits_convnet())


def test_an_unknown_architecture_or_other_tensors_are_refused(tmp_path):
    path = str(file_of(tmp_path))
    with pytest.raises(ConfigError, match=r"architecture is 'resnet51'.*torchvision\.models"):
        check(config_of(checkpoint=path, architecture="resnet51"))
    with pytest.raises(ConfigError, match="architecture is 'fcn_resnet50'"):
        check(config_of(checkpoint=path, architecture="fcn_resnet50"))
    with pytest.raises(CheckpointError, match=r"is missing, not .* more; name the architecture"):
        check(config_of(checkpoint=path, architecture="alexnet"))


class Hostile:
    """Its pickle asks for a folder to be made."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": Hostile(tmp_path / "made")}, tmp_path / "net.pt")
    config = config_of(checkpoint=str(tmp_path / "net.pt"), architecture="digits-convnet")
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        check(config)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x10" + 7 * b"\0" + b"{ no"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "net.pt").write_bytes(content)
    config = config_of(checkpoint=str(tmp_path / "net.pt"), architecture="digits-convnet")
    with pytest.raises(CheckpointError, match=r"refused by torch's|is damaged"):
        check(config)


def test_a_network_that_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "net.pt")
    config = config_of(checkpoint=str(tmp_path / "net.pt"), architecture="digits-convnet")
    with pytest.raises(CheckpointError, match="no plain state dict"):
        check(config)


def test_a_denoiser_of_other_images_is_refused(tmp_path):
    from tests.worlds import small_world

    path = str(file_of(tmp_path))
    config = config_of("denoise-classify", checkpoint=path, architecture="digits-convnet")
    with pytest.raises(ConfigError, match=r"are \(1, 8, 8\).*takes \(1, 4, 4\)"):
        check(config, denoiser=small_world()[0])
    world, _ = small_world(dimensions=64)
    world.has_unconditional = False
    with pytest.raises(ConfigError, match="without label dropout"):
        check(config, denoiser=world)


def test_a_resize_is_refused():
    with pytest.raises(ConfigError, match=r"model\.resize .* leave it out"):
        config_of("denoise-classify", checkpoint="net.pt", model={"resize": "area"})


def test_the_shipped_classifier_knows_noisy_digits():
    config = load_config("digits-classify")
    data = load_dataset(config.dataset)
    classifier = load_classifier(config, 10, (1, 8, 8))
    x = torch.from_numpy(np.array(data.pixels))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        correct = classifier(x + 0.25 * noise).argmax(1) == torch.tensor(data.labels)
    assert correct.float().mean() > 0.85


def test_the_shipped_file_says_how_it_was_made():
    with safe_open(shipped_classifiers()["digits"], "pt") as file:
        about = json.loads(file.metadata()["diffcert_ray_classifier"])
    assert about["architecture"] == "digits-convnet"
    assert about["recipe"]["sigma"] == 0.25
    assert about["dataset"] == "digits train"
