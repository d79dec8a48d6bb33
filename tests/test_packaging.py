"""The distributions: built as a release is, installed outside the tree, tested where unpacked."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ("diffcert_ray", "tests", "jobs", "cluster", "docs", ".ci", "*.toml", "*.txt", "*.md",
          "*.in", "*.yml", "*.cff", "LICENSE", "Makefile", ".gitignore")  # fmt: skip
QUICK = "tests/test_jobs_kernel_limit.py"
"""A test that is quick and needs the package and jobs/."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """What Python prints, started in a folder that is not this tree, with one folder to import."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    env |= {} if path is None else {"PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is made from it."""
    source = tmp_path_factory.mktemp("source") / "tree"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for path in [path for pattern in SOURCE for path in ROOT.glob(pattern)]:
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=ignored)
        else:
            shutil.copy(path, source)
    dist = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(dist), str(source), cwd=dist)
    return dist


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def files_of_the_package() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "diffcert_ray").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith("METADATA"))
        metadata = archive.read(about).decode()
        scripts = archive.read(about.replace("METADATA", "entry_points.txt")).decode()
    package = {name for name in names if not name.startswith("diffcert_ray-")}
    assert package == files_of_the_package()
    assert {
        "diffcert_ray/py.typed",
        "diffcert_ray/presets/digits-demo.toml",
        "diffcert_ray/models/digits.safetensors",
        "diffcert_ray/models/classifiers/digits.safetensors",
        "diffcert_ray/report/published.toml",
        "diffcert_ray/report/templates/report.html",
    } <= package
    assert "diffcert = diffcert_ray.commands.main:main" in scripts
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_runs_outside_the_tree(wheel, tmp_path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", "--target", str(installed), str(wheel), cwd=elsewhere)  # fmt: skip
    said = python("-m", "diffcert_ray", "--version", cwd=elsewhere, path=installed)
    assert said == f"diffcert_ray {version}\n"
    code = (
        "import sys, diffcert_ray\n"
        "from diffcert_ray.commands import main\n"
        "from diffcert_ray.config.loading import load_config\n"
        "assert load_config('digits-demo').name == 'digits-demo'\n"
        "print(diffcert_ray.__version__, diffcert_ray.__file__, main.__file__)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    given, *files = python("-c", code, cwd=elsewhere, path=installed).split()
    assert given == version
    assert [Path(file).is_relative_to(installed) for file in files] == [True, True]


def test_the_tests_of_the_source_distribution_run_where_it_is_unpacked(built, tmp_path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", QUICK, cwd=unpacked)
    assert re.search(r"\d+ passed", said)
    code = "import diffcert_ray, tests; print(diffcert_ray.__file__, tests.__file__)"
    files = python("-c", code, cwd=unpacked).split()
    assert all(Path(file).is_relative_to(unpacked) for file in files)
    for name in ("jobs/submit.py", "cluster/aws.yaml", "constraints.txt", "docs", "tests/golden"):
        assert (unpacked / name).exists(), name
