"""The job that looks at a GPU, tried on a CPU, and the processes that its parts run in."""

import json
import subprocess
import sys
from pathlib import Path

JOBS = Path(__file__).parent.parent / "jobs"

PARTS = """
import subprocess, sys, time
from pathlib import Path
from guarded_parts import Guarded, carry_out

def fails(report):
    report.table("A", "x")
    with report.step("first"):
        raise ValueError("no such thing")
    report.row(1)

def hangs(report):
    report.table("B", "x")
    report.row(1234.5)
    subprocess.run(["sleep", "100"])  # holds the output open

def dies(report):
    import os
    os._exit(3)

def late(report):
    if report.has_time(50.0, "the rest"):
        report.row("never")

parts = {f.__name__: Guarded(f, 4.0) for f in (fails, hangs, dies, late)}
sys.exit(carry_out(parts, 60.0, Path(sys.argv[1]), {"format": 1}))
"""


def test_votes_and_lack_of_memory_are_looked_at_on_a_cpu(tmp_path):
    output = tmp_path / "found.json"
    job = [sys.executable, JOBS / "gpu_check.py", "--device", "cpu", "--small"]
    job += ["--parts", "votes,memory", "--output", output]
    ran = subprocess.run(job, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = json.loads(output.read_text())["parts"]
    assert {name: part["ended"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    votes, kinds = parts["votes"]["tables"]
    assert [row[4] for row in votes["rows"] if "float32" in row[1]] == [0, 0]  # none differs
    assert len(votes["rows"]) == 10
    assert len(kinds["rows"]) == 4
    memory = parts["memory"]
    raised = [row[2].split(":")[0] for row in memory["tables"][0]["rows"]]
    assert raised == ["OutOfMemoryError", "nothing", "PoolError"]  # a worker names the batch
    assert any("after 15 tries on 16 workers: every item fails" in n for n in memory["notes"])
    assert "| an item of the engine | 64 | OutOfMemoryError: " in ran.stdout
    assert any("a batch of numerics.batch = " in note for note in memory["notes"])


def test_a_part_that_fails_hangs_or_dies_costs_only_itself(tmp_path):
    output = tmp_path / "found.json"
    script = [sys.executable, "-c", PARTS, output]
    ran = subprocess.run(script, cwd=JOBS, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr  # carry_out says that not all was done
    found = json.loads(output.read_text())
    ended = {name: part["ended"] for name, part in found["parts"].items()}
    assert ended == {
        "fails": "done, but for what failed",
        "hangs": "out of time",
        "dies": "died with exit code 3",
        "late": "done",
    }
    assert found["parts"]["fails"]["failures"] == ["first: ValueError: no such thing"]
    assert found["parts"]["hangs"]["tables"][0]["rows"] == [[1234.5]]
    assert found["parts"]["late"]["notes"] == ["Left out: the rest, about 50 s; 4 s are left."]
    assert "| 1,234 |" in ran.stdout
