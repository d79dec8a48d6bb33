"""The presets of the paper's rows: valid, planned, and run on narrow networks of their family."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from typer.testing import CliRunner

from diffcert_ray import certify
from diffcert_ray.checkpoints.load import save_denoiser
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.run.plan import plan_of

PRESETS = sorted((Path(__file__).parents[1] / "jobs" / "paper").glob("*.toml"))
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "folder": 1000}


def network(path: Path, classes: int, resolution: int = 32, family: str = "SongUNet") -> str:
    """A narrow DDPM++ or ADM network with random weights, in a file."""
    configuration = EdmConfiguration(
        model_type=family,
        img_resolution=resolution,
        img_channels=3,
        label_dim=classes,
        model_channels=4,
        num_heads=1 if family == "DhariwalUNet" else None,
        channel_mult=(1, 1),
        num_blocks=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = EdmDenoiser(configuration)
    save_denoiser(path, denoiser, {"made by": "a test"})
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Four images in the real format of each dataset, and a network for each number of classes."""
    folder = tmp_path_factory.mktemp("paper")
    rng = np.random.default_rng(0)
    for name, labels, file in (
        ("cifar10", 1, "test_batch.bin"),
        ("cifar100", 2, "test.bin"),
    ):
        rows = rng.integers(0, 256, (512, labels + 3072), dtype=np.uint8)
        rows[:, :labels] %= 10
        (folder / name).mkdir()
        rows.tofile(folder / name / file)
    (folder / "svhn").mkdir()
    pixels = rng.integers(0, 256, (32, 32, 3, 512), dtype=np.uint8)
    digits = rng.integers(1, 11, (512, 1), dtype=np.uint8)
    scipy.io.savemat(folder / "svhn" / "test_32x32.mat", {"X": pixels, "y": digits})
    for number in range(512):  # as ImageNet, in a folder for each class
        where = folder / "folder" / "val" / f"n{number % 2:08d}"
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            where / f"{number}.png"
        )
    for classes in (0, 10, 100):
        network(folder / f"{classes}.safetensors", classes)
    network(folder / "1000.safetensors", 1000, 8, "DhariwalUNet")
    network(folder / "0-large.safetensors", 0, 16, "DhariwalUNet")
    return folder


def overrides(preset: Path, files: Path) -> list[str]:
    """The preset's own files and sizes replaced by small ones."""
    config = load_config(preset)
    name = config.dataset.name
    changed = [
        f"dataset.path={files / name}",
        f"model.checkpoint={files / f'{CLASSES[name]}.safetensors'}",
        "dataset.sample=2",
        f"noise_levels.levels={9 if config.noise_levels.weights == 'reference' else 2}",
        "votes.sigmas=[0.25]",
        "votes.n0=1",
        "votes.n=2",
        "votes.unit=2",
        "votes.radii=[0.0]",
        f"numerics.batch={128 if name == 'folder' else 32}",
        "sift.threshold_levels=1",
    ]
    if config.model.unconditional is not None:
        large = "" if config.model.resize is None else "-large"
        changed.append(f"model.unconditional={files / f'0{large}.safetensors'}")
    return changed


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_of_the_paper_names_its_command_files_and_settings(preset):
    text, config = preset.read_text("utf-8"), load_config(preset)
    assert config.name == preset.stem
    assert f"diffcert certify jobs/paper/{preset.name}" in text
    assert config.model.checkpoint in text.split("[dataset]")[0]
    assert (config.votes.n0, config.votes.n, config.votes.alpha) == (100, 10_000, 0.001)
    assert config.votes.sigmas == (0.25, 0.5, 1.0)
    assert config.dataset.sample == 512


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_of_the_paper_asks_for_512_images(preset, files):
    config = load_config(preset, [f"dataset.path={files / load_config(preset).dataset.name}"])
    data = load_dataset(config.dataset)
    assert len(plan_of(config, data).image_ids) == 512
    assert data.image_shape == ((3, 16, 16) if data.name == "folder" else (3, 32, 32))
    assert data.num_classes == CLASSES[config.dataset.name]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_of_the_paper_is_planned_and_runs(preset, files, tmp_path):
    small = [*overrides(preset, files), "model.check_denoising=false"]  # random weights
    arguments = [part for change in small for part in ("--set", change)]
    planned = CliRunner().invoke(app, ["plan", str(preset), *arguments])
    assert planned.exit_code == 0, planned.output
    assert "2 images" in planned.output
    run = certify(preset, tmp_path / "run", overrides=small, local=True)
    assert run.outcome.complete
    assert len(run.certificates()) == 2
