"""The job that trains network families alike and compares what they certify."""

import tomllib
from pathlib import Path

import pandas as pd
import pytest
import tomli_w

from diffcert_ray.checkpoints.files import read_configuration
from diffcert_ray.errors import ConfigError
from diffcert_ray.tools.training.networks import digits_configuration
from jobs.ablation import main

FILE = Path(__file__).parents[1] / "jobs" / "ablation.toml"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("ddpmpp", ("SongUNet", "positional", "standard")),
        ("ncsnpp", ("SongUNet", "fourier", "residual")),
        ("adm", ("DhariwalUNet", "positional", "standard")),
    ],
)
def test_each_family_has_its_network(network, expected):
    found = digits_configuration(network, 8)
    assert (found.model_type, found.embedding_type, found.encoder_type) == expected
    assert found.model_channels == 8


def test_another_family_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"network.family is 'unet'.*ddpmpp.*ncsnpp.*adm"):
        digits_configuration("unet", 8)


def test_networks_are_trained_once_and_certify_the_same_images(tmp_path, capsys):
    tables = tomllib.loads(FILE.read_text("utf-8"))
    tables["training"] = {"steps": 2, "batch": 8}
    tables["networks"] = {"ddpmpp": [4], "adm": [4]}
    tables["run"]["dataset"] = {"name": "digits", "first": 2}
    tables["run"]["noise_levels"]["levels"] = 4
    tables["run"]["votes"] |= {"n0": 2, "n": 12, "radii": [0.0]}
    config, out = tmp_path / "ablation.toml", tmp_path / "out"
    config.write_text(tomli_w.dumps(tables))
    arguments = ["--config", str(config), "--output", str(out), "--local"]
    assert main(arguments) == 0
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert set(made) == {"ddpmpp-4-2x8.safetensors", "adm-4-2x8.safetensors"}
    assert read_configuration(str(out / "adm-4-2x8.safetensors")).model_type == "DhariwalUNet"
    table = pd.read_csv(out / "ablation.csv")
    assert list(table["network"]) == ["ddpmpp", "adm"]
    assert (table["nfe_per_vote"] > 0).all()
    assert (table["seconds_per_image"] > 0).all()
    capsys.readouterr()
    assert main(arguments) == 0
    assert made == {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    again = pd.read_csv(out / "ablation.csv").drop(columns="seconds_per_image")
    assert again.equals(table.drop(columns="seconds_per_image"))
    assert "adm" in capsys.readouterr().out


def test_radii_out_of_reach_are_refused_before_any_training(tmp_path):
    tables = tomllib.loads(FILE.read_text("utf-8"))
    tables["run"]["votes"] |= {"n": 100, "radii": [0.5]}
    config = tmp_path / "ablation.toml"
    config.write_text(tomli_w.dumps(tables))
    with pytest.raises(ConfigError, match="at most radius"):
        main(["--config", str(config), "--output", str(tmp_path / "out"), "--local"])
    assert not (tmp_path / "out").exists()
