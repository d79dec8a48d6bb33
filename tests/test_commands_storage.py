"""Commands on a run that needs storage options: moto's server, credentials in a file only."""

import os

import pytest
from typer.testing import CliRunner

from diffcert_ray.commands.main import app
from diffcert_ray.commands.storage_options import storage_options, with_storage_options
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import loading
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.stored import open_run
from tests.s3_server import BUCKET, s3_server

RUN = f"s3://{BUCKET}/quick"
TINY = ["--set", "dataset.first=1", "--set", "votes.n0=2", "--set", "votes.n=4", "--set",
        "votes.radii=[0.0]", "--set", "noise_levels.levels=4", "--set",
        "numerics.batch=8"]  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A file of storage options; without it nothing reaches the server."""
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.delenv(name)
        place = tmp_path_factory.mktemp("options")
        patch.setenv("HOME", str(place))
        patch.chdir(place)
        (place / "s3.toml").write_text(
            f'endpoint_url = "{address}"\nkey = "OPTION-ACCESS"\nsecret = "OPTION-SECRET"\n'
        )
        yield ["--storage-options", "s3.toml"]


def said(*arguments: str) -> str:
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def run(options):
    said("certify", "digits-quick", *TINY, "--local", "--run", RUN, *options)
    return open_run(RUN, storage_options(options[1:]))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["status"], "1 of 1 certified"),
        (["verify", "--sample", "1"], "no difference"),
        (["export", "--output", "logs"], "sigma-0.25.tsv"),
        (["report"], f"report: {RUN}/report/index.html"),
        (["compact"], "parts taken over"),
    ],
)
def test_a_command_reaches_a_run_with_the_options_of_a_file(run, options, command, shown):
    name, *further = command
    assert shown in said(name, RUN, *further, *options)


def test_without_the_options_the_run_is_not_reached(run, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = CliRunner().invoke(app, ["status", RUN])
    assert found.exit_code == 1


def test_the_report_of_a_start_that_continues_reads_the_dataset_with_the_options(
    run, options, monkeypatch
):
    asked = []
    load = loading.load_dataset
    monkeypatch.setattr(
        "diffcert_ray.report.sources.load_dataset",
        lambda spec, options=None: asked.append(options) or load(spec, options),
    )
    said("certify", "digits-quick", *TINY, "--local", "--run", RUN, *options)
    assert [given["key"] for given in asked] == ["OPTION-ACCESS"] * 2  # labels, and pictures


def test_the_options_are_neither_stored_nor_shown(run, options):
    location = run.store.location
    names = [
        "run.toml",
        *(n for f in ("units", "certificates", "report") for n in location.list(f)),
    ]
    assert len(names) > 3
    stored = b"".join(location.read(name) for name in names)
    assert b"OPTION-" not in stored
    assert "OPTION-" not in repr(run)
    assert "OPTION-" not in repr(with_storage_options(load_config("digits"), options[1:]))


def test_keys_and_values_are_read_as_toml_and_later_ones_win(tmp_path):
    (tmp_path / "o.toml").write_text('profile = "a"\n[client_kwargs]\nregion_name = "x"\n')
    found = storage_options(
        [os.fspath(tmp_path / "o.toml"), "profile=b", "anon=true", "client_kwargs.verify=false"]
    )
    kwargs = {"region_name": "x", "verify": False}
    assert found == {"profile": "b", "client_kwargs": kwargs, "anon": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gone.toml", "cannot be read"),
        ("=SECRET", "must be KEY=VALUE"),
        ("a.=SECRET", "must be KEY=VALUE"),
        ("broken.toml", "not valid TOML"),
    ],
)
def test_bad_options_are_refused_without_their_values(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("key = SECRET")
    with pytest.raises(ConfigError, match=message) as caught:
        storage_options([given])
    assert "SECRET" not in str(caught.value)
