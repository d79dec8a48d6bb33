"""The house: what stands at the top of the package, and how often code asks which kind it is."""

import ast
from pathlib import Path

import fsspec

import diffcert_ray
from diffcert_ray import certify
from tests.s3_server import BUCKET, s3_server
from tests.worlds import settings, small_world

PACKAGE = Path(diffcert_ray.__file__).parent
MOST_AT_THE_TOP = 8
MOST_ASKING = 8
DEFINITION = ("config/tables.py", "run/kind.py")
"""Where the kind of a run is defined and chosen; everything else has to ask."""
KINDS = {"DiffusionBase", "TrainedBase", "LossItem", "Item", "Plan", "PlainPlan", "VoteRuns",
         "LossRuns", "Stages", "LossStages", "StoredLosses", "DoneUnits"}  # fmt: skip
"""Classes of one kind of run: who looks for one of them asks which kind it is."""


def asks_for_the_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "kind_name"
    if isinstance(node, ast.Match):
        return any(isinstance(n, ast.MatchClass) for case in node.cases for n in ast.walk(case))
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if called and node.func.id == "isinstance":
        return any(isinstance(n, ast.Name) and n.id in KINDS for n in ast.walk(node.args[1]))
    return False


def test_few_modules_stand_at_the_top_of_the_package():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP


def test_few_places_ask_which_kind_of_run_it_is():
    sites = [
        f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in DEFINITION
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if asks_for_the_kind(node)
    ]
    assert 0 < len(sites) <= MOST_ASKING, sites


def test_the_folder_of_a_run_is_opened_once_per_start(monkeypatch):
    world, data = small_world()
    tables = settings(votes={"sigmas": [0.25], "n0": 4, "n": 8, "unit": 4, "radii": [0.0]})
    made, make = [], fsspec.filesystem

    def counted(protocol, **options):
        made.append(protocol)
        return make(protocol, **options)

    with s3_server() as server:
        monkeypatch.setattr(fsspec, "filesystem", counted)
        tables["execution"] = {"storage_options": {"endpoint_url": server}}
        for start in ("new", "continued"):
            made.clear()
            run = certify(tables, f"s3://{BUCKET}/run", local=True, denoiser=world, dataset=data)
            assert run.outcome.complete
            assert made == ["s3"], f"{start}: {len(made)} clients"
