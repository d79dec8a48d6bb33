"""What README, docs/, CONTRIBUTING and the heads of jobs/ show is real: commands, options, code."""

import argparse
import inspect
import re
import shlex
import shutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from diffcert_ray import certify, load_dataset
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import RUN_PRESETS, load_config, presets
from diffcert_ray.config.training import (
    CLASSIFIERS,
    DENOISERS,
    load_classifier_training,
    load_denoiser_training,
)
from diffcert_ray.run.stored import open_run
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA, UNIT_SCHEMA
from tests.edited_parts import copied_part

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
COMMANDS = typer.main.get_command(app)
TINY = ["dataset.first=2", "votes.n0=2", "votes.n=8", "votes.unit=4", "votes.radii=[0.0]",
        "noise_levels.levels=4", "numerics.batch=8", "plain.draws=8", "plain.unit=4"]  # fmt: skip
PLACEHOLDERS = (
    "my.toml", "my-training.toml", "carlini.toml", "tuned/digits/tuned.toml", "CONFIG", "FILE",
)  # fmt: skip
"""Configurations that stand for the reader's own."""
LOADERS = {
    "train": (DENOISERS, load_denoiser_training),
    "train-classifier": (CLASSIFIERS, load_classifier_training),
}
"""Where the presets of a command lie, and what reads them, where they are not of runs."""


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def everywhere(language: str) -> list[str]:
    return [code for page in PAGES for code in blocks(page, language)]


def lines_of(path: Path) -> list[str]:
    """Indented and fenced lines, what stands between backticks, and "#   command" heads."""
    text = re.sub(r"\n(?=\S[^\n]*`$)", " ", path.read_text("utf-8"))
    text = re.sub(r" \\\n +", " ", text)
    if path.suffix == ".toml":
        return re.findall(r"^#   +(\S.*)$", text, re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    return [*re.findall(r"^    (\S.*)$", text, re.MULTILINE), *spans]


def shown(program: str) -> list[str]:
    """Every line that runs a program, without its comment and optional parts' brackets."""
    files = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("jobs/**/*.toml"))]
    files += sorted(ROOT.glob("diffcert_ray/presets/**/*.toml"))
    lines = [line for file in files for line in lines_of(file)]
    bare = [re.sub(r"^([A-Z_]+=\S+ )+|  +\d.*$|\s+#.*$", "", line).strip() for line in lines]
    clean = [re.sub(r"\[([^]\d][^]]*)\]", r"\1", line) for line in bare]
    return list(dict.fromkeys(line for line in clean if line.split(" ")[0] == program))


def examples() -> list[str]:
    """The command lines in the commands' own --help."""
    found = []
    for command in every_command().values():
        found += re.findall(r"\[dim\](diffcert .*?)\[/\]", command.help or "")
    return found


def every_command() -> dict:
    found = {}
    for name, command in COMMANDS.commands.items():
        below = getattr(command, "commands", {})
        found |= {f"{name} {n}": c for n, c in below.items()} or {name: command}
    return found


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The values of a line's arguments and options as the command line reads them; nothing runs."""
    read: dict = {}
    for command in every_command().values():
        monkeypatch.setattr(command, "callback", lambda **values: read.update(values))
    COMMANDS.main(shlex.split(line)[1:], prog_name="diffcert", standalone_mode=False)
    return read


def test_there_is_enough_to_look_at():
    assert len(shown("diffcert")) > 60
    assert len(shown("python")) >= 15
    assert len(examples()) >= 10


@pytest.mark.parametrize("line", [*shown("diffcert"), *examples()])
def test_a_shown_command_has_these_arguments_and_its_configuration(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = line.split()
    if len(words) < 3 and words[-1] != "config":
        options = [name for option in COMMANDS.params for name in option.opts]
        assert words[-1] in [*COMMANDS.commands, *options]
        return
    values = parsed(line.replace("...", "").split(" > ")[0], monkeypatch)
    config = values.get("config")
    if "overrides" in values and config not in PLACEHOLDERS:
        folder, load = LOADERS.get(words[1], (RUN_PRESETS, load_config))
        assert config in presets(folder) or Path(config).is_file()
        load(config, values["overrides"] or ())


# --- what can run on a small run does


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The reader's folder: a finished tiny run under the names that the pages use."""
    folder = tmp_path_factory.mktemp("reader")
    run = certify("digits", folder / "runs" / "digits", overrides=TINY, local=True)
    assert run.outcome.complete
    for name in ("other", "digits-demo", "new", "old", "mine"):
        shutil.copytree(folder / "runs" / "digits", folder / "runs" / name)
    return folder


RUNNABLE = ("config", "plan", "status", "report", "export", "verify", "compact", "certify")
NOT_HERE = re.compile(
    r"s3://|--address|my\.toml|carlini\.toml|\bFILE\b|jobs/|\bRUN\b|\.tsv|certify digits-|tuned/"
    r"|--json \S+\.json"
)


def runnable() -> list[str]:
    """What a small run can show; of lines that differ in the run's name only, one."""
    found = {}
    for line in [*shown("diffcert"), *examples()]:
        words = line.split()
        enough = len(words) > 2 or line == "diffcert config"
        if enough and words[1] in RUNNABLE and not NOT_HERE.search(line):
            found.setdefault(re.sub(r"runs/\S+", "runs/digits", line), line)
    return list(found.values())


@pytest.mark.parametrize("line", runnable())
def test_a_shown_command_runs_on_a_small_run(place, line, monkeypatch):
    monkeypatch.chdir(place)
    words = shlex.split(line.split(" > ")[0])[1:]
    if words[0] in ("plan", "certify"):
        words += [part for one in TINY for part in ("--set", one)]
    if words[0] == "certify":
        words += ["--local"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output


@pytest.mark.parametrize("code", everywhere("python"))
def test_a_shown_python_block_runs(place, code, monkeypatch, capsys):
    """With fewer votes, and the small settings for each certify()."""
    monkeypatch.chdir(place)
    code = code.replace("local=True", "local=True, overrides=TINY")
    code = code.replace('"runs/mine"', '"runs/digits"').replace("1000", "20").replace("100)", "4)")
    code = code.replace("RUN/", "runs/digits/")
    names = {"TINY": TINY, "pandas": pd, "certify": certify, "__name__": "readme"}
    if "dataset=" in code:
        names["TINY"] = [one for one in TINY if not one.startswith("dataset")]
    code = code.replace('"digits-quick", "runs/digits"', '"digits", "runs/digits"')
    exec(compile(code, "a page", "exec"), names)
    if "print(" in code:
        assert capsys.readouterr().out


def test_pandas_and_sql_read_each_unit_once(place, monkeypatch):
    monkeypatch.chdir(place)
    (pandas_line,) = [code for code in everywhere("python") if "pandas.read_parquet" in code]
    (sql,) = everywhere("sql")
    unit = next(Path("runs/old/units").glob("*.parquet"))
    copied_part(unit, "again")
    expected = len(open_run("runs/digits").units())
    assert len(eval(pandas_line.replace("RUN", "runs/old"), {"pandas": pd})) == expected
    assert len(duckdb.sql(sql.replace("RUN", "runs/old")).fetchall()) == expected


def test_the_shown_configurations_are_valid_and_the_own_images_are_found(place, monkeypatch):
    monkeypatch.chdir(place)
    (own,) = blocks(ROOT / "README.md", "toml")
    others = [code for page in PAGES[1:] for code in blocks(page, "toml")]
    digits = load_dataset({"name": "digits", "first": 20})
    for image_id, label in zip(digits.ids, digits.labels, strict=True):
        file = place / "my-images" / str(label) / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(digits.image(int(image_id))[0] * 255).astype(np.uint8)).save(file)
    (place / "my.toml").write_text(own)
    config = load_config("my.toml")
    data = load_dataset(config.dataset)
    assert len(data) == 20
    assert data.image_shape == (1, 8, 8)
    assert len(others) >= 2
    for other in map(tomllib.loads, others):
        if "training" not in other:
            load_config(other)
        elif "classifier" in other:
            load_classifier_training(other)
        else:
            load_denoiser_training(other)


# --- jobs and make


class Read(Exception):
    """A job's arguments have been read; carries them."""


def job_line(line: str) -> list[str]:
    return [word for word in shlex.split(line.replace("FILE", "jobs/ablation.toml"))[1:]]


def in_jobs() -> list[str]:
    """The command lines in the jobs' own docstrings."""
    found = []
    for job in sorted((ROOT / "jobs").glob("*.py")):
        head = job.read_text("utf-8").split('"""')[1]
        found += re.findall(r"^    (python jobs/.*)$", head, re.MULTILINE)
    return [re.sub(r"  +\d.*$|[\[\]]", "", line).strip() for line in found]


@pytest.mark.parametrize("line", dict.fromkeys([*shown("python"), *in_jobs()]))
def test_a_shown_job_exists_and_reads_its_arguments(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "jobs")
    script, *words = job_line(line)
    assert (ROOT / script).is_file()
    module = import_module(script.removesuffix(".py").replace("/", "."))
    parse = argparse.ArgumentParser.parse_args
    known = argparse.ArgumentParser.parse_known_args

    def read(self, args=None, namespace=None, by=parse):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", known)
        by(self, args, namespace)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    monkeypatch.setattr(
        argparse.ArgumentParser,
        "parse_known_args",
        lambda self, args=None, namespace=None: read(self, args, namespace, known),
    )
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Read):
        module.main(words) if inspect.signature(module.main).parameters else module.main()


def test_shown_make_targets_exist():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    named = {line.split()[1] for line in shown("make") if len(line.split()) > 1}
    assert {"demo", "test"} <= named <= targets


# --- the other way round


@pytest.mark.parametrize("name", every_command())
def test_every_command_is_in_the_readme_and_every_option_explained(name):
    assert f"diffcert {name}" in README
    command = every_command()[name]
    assert len((command.help or "").splitlines()[0]) > 10
    missing = [p.name for p in command.params if not getattr(p, "help", None)]
    assert missing == []


def test_named_files_of_the_repository_exist():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = re.findall(r"`((?:tests|jobs|cluster|diffcert_ray)/[\w/.-]+)", text)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def columns() -> str:
    """The tables that docs/output.md holds between its columns:begin and columns:end."""

    def kind(of: object) -> str:
        return re.sub(r"list<\w+: (.*)>", r"list of \1", str(of))

    parts = []
    for folder, schema in (("certificates", CERTIFICATE_SCHEMA), ("units", UNIT_SCHEMA)):
        rows = [
            f"| `{field.name}` | {kind(field.type)} | {field.metadata[b'unit'].decode()} |"
            for field in schema
        ]
        parts.append("\n".join([f"| {folder}/ | type | unit or meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def test_the_page_of_output_holds_the_columns_of_the_schemas():
    text = (ROOT / "docs" / "output.md").read_text("utf-8")
    assert text.split("<!-- columns:begin -->\n")[1].split("<!-- columns:end -->")[0] == columns()
