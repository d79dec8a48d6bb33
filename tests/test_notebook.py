"""The notebook under jobs/ runs from top to bottom; progress is seen in and out of IPython."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from diffcert_ray.notebook import NotebookProgress
from diffcert_ray.pool.local import PoolState
from diffcert_ray.run.loop import Progress

NOTEBOOK = Path(__file__).parents[1] / "jobs" / "certify_one_image.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
SMALL = {
    "n0": 3,
    "n": 20,
    "overrides": [
        "dataset.first=2", "votes.n0=2", "votes.n=8", "votes.radii=[0.0]", "noise_levels.levels=4",
        "numerics.batch=8",
    ],
}  # fmt: skip


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(SMALL) <= set(names)
                names |= SMALL
    plt.close("all")
    said = capsys.readouterr().out
    assert f"class {names['label']} (label 9): {names['n_a']} of 20 votes" in said
    assert "2/2 images" in said
    assert names["rows"]["n"].tolist() == [8, 8]
    curve = names["curve"]["certified_accuracy"]
    assert curve.iloc[0] >= curve.iloc[-1] == 0
    assert names["run"].outcome.complete


def test_the_stored_notebook_has_no_outputs():
    assert all(cell.get("outputs", []) == [] for cell in CELLS)
    assert NOTEBOOK.stat().st_size < 10_000


def progress(images: int) -> Progress:
    return Progress(images, 3, images * 10, 30, 100, 50.0, 12.0, PoolState(live=1))


def test_outside_a_notebook_a_line_is_written_now_and_then():
    now, stream = [0.0], io.StringIO()
    show = NotebookProgress(stream, clock=lambda: now[0])
    for images, seconds in ((0, 0), (1, 5), (2, 11), (3, 12), (3, 13)):
        now[0] = seconds
        show(progress(images))
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["0/3", "2/3", "3/3"]


def test_in_a_notebook_one_line_is_updated(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(("update", data, raw)))

    def display(data, raw, display_id):
        shown.append(("new", data, raw))
        return handle

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython, displays.display = lambda: object(), display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    show = NotebookProgress(io.StringIO())
    show(progress(1))
    show(progress(2))
    assert [kind for kind, _, _ in shown] == ["new", "update"]
    assert "2/3 images" in shown[1][1]["text/plain"]
    assert all(raw for _, _, raw in shown)


def test_ipython_is_not_imported_for_it():
    NotebookProgress(io.StringIO())
    if "IPython" in sys.modules:
        pytest.skip("another test has imported IPython")
    assert not any(name.startswith("IPython") for name in sys.modules)
