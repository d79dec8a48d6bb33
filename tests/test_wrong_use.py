"""Wrong uses of the command line: one or two lines with the remedy, never a traceback."""

from pathlib import Path

import click
import pyarrow as pa
import pytest
import typer

from diffcert_ray.commands.arguments import complete_config, complete_run
from diffcert_ray.commands.main import app
from diffcert_ray.errors import StoreError
from diffcert_ray.storage.store import RunStore
from tests.command_line import diffcert


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files that are not what they should be."""
    (tmp_path / "bad.toml").write_text("name = [")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "locked.toml").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other.toml").write_text('name = "x"\n[vote]\nn = 3\n')
    for name, document in (("broken", "x = ["), ("foreign", "x = 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.toml").write_text(document)
    (tmp_path / "log.tsv").write_text("what is this\n")
    (tmp_path / "sigma-0.25.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.pkl").write_bytes(b"garbage")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "remedy"),
    [
        ("certify gone.toml", 2, "presets: digits"),
        ("certify folder.toml", 2, "give the TOML file itself"),
        ("certify bad.toml", 2, "not valid TOML"),
        ("certify latin.toml", 2, "saved as UTF-8"),
        ("certify other.toml", 2, "did you mean 'votes'"),
        ("certify digits --set votes.n", 2, "as in votes.n=1000"),
        ("certify digits --set votes.n=abc", 2, "give a whole number"),
        ("certify digits --set votes=3", 2, "as in votes.KEY=VALUE"),
        ("certify digits --set votes.sigmas=0.25", 2, "as in votes.sigmas=[0.25]"),
        ("certify digits --set name.x.y=3", 2, "is a value, not a table"),
        ("certify digits --set dataset.name=nope", 2, "known are digits"),
        ("certify digits --set method.name=dc2", 2, "'dc'"),
        ("certify digits --images 5:2", 2, "use 0 <= start < stop <= 100"),
        ("certify digits --run nope://x", 1, "give a local path, an s3:// address"),
        ("certify digits --run s3://", 2, "give a path or s3://b/prefix"),
        ("status gone", 1, "check the address"),
        ("status empty", 1, "check the address"),
        ("status file", 1, "check the address"),
        ("status broken", 2, "restore it from a copy"),
        ("status foreign", 2, "restore it from a copy"),
        ("verify empty", 1, "check the address"),
        ("attack empty", 1, "check the address"),
        ("export empty", 1, "check the address"),
        ("compact empty", 1, "check the address"),
        ("report log.tsv", 2, "tab-separated columns"),
        ("report gone.tsv", 2, "check the address"),
        ("report sigma-0.25.tsv", 2, "that it is text"),
        ("convert x.pkl out.safetensors", 2, "those read are"),
        ("convert gone.pkl out.safetensors", 2, "give the path of a checkpoint"),
        ("plan digits --price abc", 2, "as in spot=0.35"),
    ],
)
def test_a_wrong_use_is_one_or_two_lines_with_the_remedy(line, code, remedy, place):
    before = sorted(place.rglob("*"))
    done = diffcert(*line.split(), cwd=place)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "line", ["nonsense", "certify", "certify digits --nonsense", "plan d --workers 0"]
)
def test_what_the_parser_refuses_names_the_help(line, place):
    done = diffcert(*line.split(), cwd=place)
    assert done.returncode == 2
    assert "--help' for help" in done.stderr


def test_a_file_that_may_not_be_read_is_named_with_the_remedy(place, monkeypatch):
    def refuse(path: Path, *arguments: object) -> str:  # a superuser may read anything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    done = diffcert("certify", "locked.toml", cwd=place)
    assert done.returncode == 2
    assert "locked.toml (Permission denied): make it readable" in done.stderr


def test_a_damaged_part_is_named_with_the_remedy(place):
    document = b"x = 1\n"
    store = RunStore.create(str(place / "run"), document)
    store.location.create("units/part-a-000000.parquet", b"PAR1 and then nothing")
    with pytest.raises(StoreError, match="--recompute-damaged"):
        store.units()


def test_an_error_that_nobody_foresaw_is_one_line_too(place, monkeypatch):
    def fail(*arguments: object) -> pa.Table:
        raise KeyError("row")

    monkeypatch.setattr(RunStore, "open", fail)
    done = diffcert("status", "empty", cwd=place)
    assert done.returncode == 1
    assert done.stderr == "error: KeyError: 'row' (unexpected: --debug shows where)\n"
    with pytest.raises(KeyError):
        diffcert("status", "empty", "--debug", cwd=place)


def commands(group: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command under a group, as the words that call it."""
    if not hasattr(group, "commands"):
        return [path]
    return [one for name, sub in group.commands.items() for one in commands(sub, (*path, name))]


@pytest.mark.parametrize("words", commands(typer.main.get_command(app)), ids=" ".join)
def test_the_help_of_every_command_has_an_example_of_it(words, tmp_path):
    done = diffcert(*words, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert " ".join(["diffcert", *words, ""]) in " ".join(done.stdout.split())


def test_a_shell_completes_configurations_by_presets_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    for name in ("digital.toml", "notes.txt", "jobs/one.toml"):
        (tmp_path / name).write_text("")
    assert complete_config("digi") == [
        "digits", "digits-classify", "digits-demo", "digits-denoise-classify", "digits-local",
        "digits-quick", "digits-sequential", "digital.toml",
    ]  # fmt: skip
    assert complete_config("j") == ["jobs/"]
    assert complete_config("jobs/") == ["jobs/one.toml"]
    assert complete_config("gone/") == []
    argument = typer.main.get_command(app).commands["certify"].params[0]
    offered = argument.shell_complete(click.Context(click.Command("certify")), "digits-q")
    assert [one.value for one in offered] == ["digits-quick"]


def test_a_shell_completes_runs_by_folders_that_hold_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b", "elsewhere/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.toml").write_text("")
    (tmp_path / "runs/no-run").mkdir()
    assert complete_run("") == ["runs/a", "runs/b"]
    assert complete_run("runs/b") == ["runs/b"]
    assert complete_run("elsewhere/") == ["elsewhere/c"]
    assert complete_run("gone/x") == []
