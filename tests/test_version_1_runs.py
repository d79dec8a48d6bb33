"""A run of method version 1, stored by the program of that time: it is read, and not continued.

golden/run_version_1 holds three digits, two of them compacted with their sources deleted.
"""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffcert_ray import open_run
from diffcert_ray.commands.main import app
from diffcert_ray.config import identity
from diffcert_ray.errors import StoreError
from diffcert_ray.run.verify import verify_run

GOLDEN = Path(__file__).parent / "golden" / "run_version_1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the run, seen by a program of a later method version."""
    monkeypatch.setattr(identity, "METHOD_VERSION", max(2, identity.METHOD_VERSION))
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def diffcert(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, " ".join(done.output.split())


def test_its_rows_are_read(folder):
    run = open_run(folder)
    assert run.document.method_version == 1
    assert run.certificates()["image_id"].tolist() == [9, 11, 15]
    assert sorted(set(run.units()["image_id"])) == [9, 11, 15]


def test_report_status_and_export_read_it_and_report_says_its_version(folder):
    code, said = diffcert("report", folder)
    assert code == 0
    assert "is of method version 1" in said
    assert "hold in real arithmetic only" in said
    code, said = diffcert("status", folder)
    assert (code, "3 of 3 certified" in said) == (0, True)
    assert diffcert("export", folder, "--output", folder / "logs")[0] == 0


def test_verify_recomputes_its_certificates_and_says_that_no_vote_can_be_cast_again(folder):
    found = verify_run(open_run(folder), sample=5)
    assert (found.certificates, found.units, found.differences) == (3, 0, [])
    code, said = diffcert("verify", folder)
    assert code == 0
    assert "of method version 1, and this program casts votes of another one" in said


@pytest.mark.parametrize("command", ["certify", "attack"])
def test_it_is_neither_continued_nor_attacked(folder, command):
    before = sorted(folder.rglob("*"))
    words = ["attack", folder]
    if command == "certify":
        config = folder.parent / "again.toml"
        config.write_text(
            'name = "version-1"\ndataset = {name = "digits", first = 3}\n'
            "noise_levels = {levels = 6}\n"
            "votes = {sigmas = [0.25], n0 = 4, n = 20, unit = 10, radii = [0.0, 0.1]}\n"
        )
        words = ["certify", config, "--run", folder, "--local", "--quiet"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code != 0
    message = str(done.exception) + done.output
    assert "votes are of method version 1" in message
    assert "give another run folder" in message
    assert sorted(folder.rglob("*")) == before


def test_its_damage_is_named_without_a_remedy_that_it_does_not_have(folder):
    part = next((folder / "units").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(StoreError, match=rf"{part.name}.*cannot cast the run's votes again"):
        open_run(folder).units()
