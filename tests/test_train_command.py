"""``diffcert train`` as a program: killed, stopped, continued; without Ray; what it prints."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file

from diffcert_ray.commands.exit_codes import BAD_USE, DONE, INCOMPLETE
from diffcert_ray.config.loading import load_config, presets
from diffcert_ray.config.training import CLASSIFIERS, DENOISERS, load_denoiser_training
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.loss_curve import loss_picture
from diffcert_ray.tools.training import train_denoiser
from tests.command_line import diffcert
from tests.trainings import folder_of, stripes
from tests.waiting import wait_for

LIMIT_S = 60.0
WITHOUT = "import sys; sys.modules |= dict.fromkeys(({names}))\n"
MAIN = "from diffcert_ray.commands.main import main; main(sys.argv[1:])"
SETTINGS = """
name = "mine"
[dataset]
path = "images"
image_shape = [1, 8, 8]
[network]
model_channels = 4
channel_mult = [1]
[training]
steps = {steps}
batch = 8
warmup_steps = 2
device = "cpu"
checkpoint_minutes = 1e-9
"""


@pytest.fixture
def place(tmp_path):
    """A reader's folder: images, and a configuration."""
    folder_of(stripes(), tmp_path / "images")
    (tmp_path / "my.toml").write_text(SETTINGS.format(steps=500))
    (tmp_path / "short.toml").write_text(SETTINGS.format(steps=3))
    return tmp_path


def program(*arguments: str, cwd: Path, without: tuple[str, ...] = ()) -> subprocess.Popen:
    """The command line in a process that lacks some packages."""
    code = WITHOUT.format(names=repr(without)) if without else "import sys\n"
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code + MAIN, *arguments],
        cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, INCOMPLETE), (signal.SIGKILL, -9)])
def test_a_killed_training_is_continued_by_the_same_command_to_the_same_bits(place, number, code):
    words = ("train", "my.toml", "--output", "out")
    started = program(*words, cwd=place)
    state = place / "out" / "state.safetensors"
    wait_for(state.exists, LIMIT_S)
    started.send_signal(number)
    _, said = started.communicate(timeout=LIMIT_S)
    assert started.returncode == code, said
    assert not (place / "out" / "model.safetensors").exists()
    if number == signal.SIGTERM:
        assert "the same command continues" in said
    done = diffcert(*words, "--set", "training.checkpoint_minutes=5", cwd=place)
    assert done.returncode == DONE, done.stderr
    settings = load_denoiser_training(
        place / "my.toml",
        (f"dataset.path={place / 'images'}", "training.checkpoint_minutes=5"),
    )
    whole = train_denoiser(settings, place / "whole")
    expected, found = load_file(whole.model), load_file(place / "out" / "model.safetensors")
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "train-classifier"])
def test_a_machine_without_ray_and_arrow_trains(place, command):
    if command == "train-classifier":
        text = (place / "short.toml").read_text().split("[network]")
        (place / "short.toml").write_text(text[0] + "[training]" + text[1].split("[training]")[1])
    without = ("ray", "pyarrow", "pandas", "scipy", "matplotlib", "sklearn", "s3fs", "jinja2")
    started = program(command, "short.toml", cwd=place, without=without)
    printed, said = started.communicate(timeout=LIMIT_S)
    assert started.returncode == DONE, said
    assert printed == "models/mine/model.safetensors\n"


def test_the_folder_gets_the_model_the_curve_and_its_picture(place):
    done = diffcert("train", "short.toml", cwd=place)
    assert done.returncode == DONE, done.stderr
    folder = place / "models" / "mine"
    assert done.stdout == "models/mine/model.safetensors\n"
    rows = (folder / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate,held_out_loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    picture = (folder / "loss.svg").read_text()
    assert picture.startswith("<svg")
    assert "steps" in picture
    last = done.stderr.splitlines()[-1]
    assert last.startswith("progress step=3 steps=3 loss=")
    assert "seconds_left=0" in last


def test_the_picture_shows_both_losses():
    picture = loss_picture([1, 2, 3], [4.0, 2.0, 1.0], [math.nan, 3.0, 2.5])
    root = ElementTree.fromstring(picture)
    circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert [line.text for line in root.iter("{http://www.w3.org/2000/svg}title")] == [
        "loss", "held-out loss"
    ]  # fmt: skip
    assert len(circles) == 2
    assert float(circles[0].get("cy")) < float(circles[1].get("cy"))  # 3 stands above 2.5
    alone = ElementTree.fromstring(loss_picture([1], [0.0]))
    assert not alone.findall(".//{http://www.w3.org/2000/svg}circle")


def test_quiet_says_the_result_alone(place):
    done = diffcert("train", "short.toml", "--quiet", cwd=place)
    assert (done.returncode, done.stderr) == (DONE, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "gone.toml"), "presets: digits"),
        (("train", "short.toml", "--set", "training.stepps=3"), "did you mean 'steps'"),
        (("train", "short.toml", "--set", "netwrk.family=adm"), "did you mean 'network'"),
        (("train", "short.toml", "--set", "training.batch=0"), "training.batch is 0"),
        (("train", "short.toml", "--set", "dataset.split=gone"), "there is no folder"),
        (("train", "digits-quick"), "no configuration file or preset 'digits-quick'"),
        (("train-classifier", "short.toml"), "unknown key 'network'"),
    ],
)
def test_wrong_use_is_one_line_with_the_remedy(place, arguments, said):
    done = diffcert(*arguments, cwd=place)
    assert done.returncode == BAD_USE
    assert said in " ".join(done.stderr.split())
    assert not (place / "models" / "mine" / "model.safetensors").exists()


def test_presets_of_trainings_are_none_of_runs():
    assert "digits" in presets(DENOISERS)
    assert "digits" in presets(CLASSIFIERS)
    assert set(presets()) >= {"digits", "digits-quick"}
    assert not any("training" in name for name in presets())
    with pytest.raises(ConfigError):
        load_config("training/digits")


def test_every_shipped_training_is_valid():
    for name in presets(DENOISERS):
        assert load_denoiser_training(name).name
