"""Edits of a run folder: whether report and verify notice, as docs/guarantees.md says."""

import shutil
from pathlib import Path

import pytest

from diffcert_ray import open_run
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import StoreError
from diffcert_ray.report.sources import open_sources
from diffcert_ray.run.verify import verify_run
from tests.tampering import Edit, edits, images, made

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
BEGIN, END = "<!-- tampering:begin -->\n", "<!-- tampering:end -->"
EVERYTHING = 10**6


def report_says(run: Path) -> str:
    """What `diffcert report` does with a run: "refuses", "INCOMPLETE", or nothing."""
    try:
        sources = open_sources([str(run)])
    except (StoreError, ValueError):
        return "refuses"
    return "INCOMPLETE" if any(one.unfinished for one in sources.series) else "-"


def verify_says(run: Path) -> str:
    """What `diffcert verify` does with a run."""
    try:
        found = verify_run(open_run(run), sample=EVERYTHING)
    except (StoreError, ValueError):
        return "refuses"
    return "difference" if found.differences else "INCOMPLETE" if found.missing else "-"


def row(edit: Edit, report: str, verify: str) -> str:
    return f"| {edit.what} | {report} | {verify} | {edit.why_not} |"


@pytest.fixture
def one_worker(monkeypatch):
    """Networks loaded once for all copies of the run."""
    load = WorkerSpec.load
    known: dict = {}

    def loaded(spec: WorkerSpec, name: str, **options):
        key = spec.config.model_dump_json(include={"votes", "noise_levels", "numerics"})
        if key not in known:
            known[key] = load(spec, name, **options)
        return known[key]

    monkeypatch.setattr(WorkerSpec, "load", loaded)


@pytest.mark.timeout(600)
def test_the_table_of_tampering_says_what_is_noticed(tmp_path, one_worker):
    dataset = images(tmp_path / "images")
    run, other = made(tmp_path / "run", dataset), made(tmp_path / "other", dataset, seed=1)
    assert (report_says(run), verify_says(run)) == ("-", "-")
    lines = ["| edit of the run folder | `report` | `verify` | why not |", "|---|---|---|---|"]
    unexplained = []
    for edit in edits(other):
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        edit.apply(copy)
        found = report_says(copy), verify_says(copy)
        shutil.rmtree(copy)
        lines.append(row(edit, *found))
        if ("-" in found) != bool(edit.why_not):
            unexplained.append(lines[-1])
    assert not unexplained, "\n".join(unexplained)
    assert len(lines) >= 32
    made_now = "\n".join(lines) + "\n"
    held = PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    assert held == made_now, made_now
