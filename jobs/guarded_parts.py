"""Parts of a measurement, each in a process with seconds of its own: one that fails costs itself.

An error of a GPU stays with its process, and a compiler can hang; so every part is forked, which
spares importing torch again, and ended with all that it started when its seconds are over. What it
finds is printed row by row, as tables in Markdown, and kept in a file after every row.
"""

import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXIT_S = 15.0  # that the system may take to end a process
LEAST_S = 4.0  # a part with less is not begun
WARNINGS_SHOWN = 6


@dataclass
class Report:
    """What one part finds.

    Args:
        path: the file.
        until: monotonic seconds at which the part is ended.
        after_step: called after every step.
    """

    path: Path
    until: float
    after_step: Callable[[], None] = lambda: None
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def table(self, title: str, *columns: str) -> None:
        """Begin a table."""
        self.tables.append({"title": title, "columns": columns, "rows": []})
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)

    def row(self, *values: Any) -> None:
        """Add a row to the last table."""
        self.tables[-1]["rows"].append(values)
        print(f"| {' | '.join(map(shown, values))} |", flush=True)
        self.keep()

    def note(self, text: str) -> None:
        """Say something in a line of its own."""
        self.notes.append(text)
        print(f"\n{text}", flush=True)
        self.keep()

    def keep(self) -> None:
        """Write the file."""
        kept = {"tables": self.tables, "notes": self.notes, "failures": self.failures}
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(kept, default=str), encoding="utf-8")
        os.replace(beside, self.path)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say what a step raises, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a device or a compiler raises
            self.failures.append(f"{name}: {said(error)}")
            print(f"\nFAILED {self.failures[-1]}\n{where(error)}", flush=True)
            self.keep()
        self.after_step()

    def has_time(self, needs_s: float, what: str) -> bool:
        """Whether so many seconds are left; says what is left out where they are not."""
        left = self.until - time.monotonic()
        if left < needs_s:
            self.note(f"Left out: {what}, about {needs_s:.0f} s; {left:.0f} s are left.")
        return left >= needs_s


@dataclass(frozen=True)
class Guarded:
    """A part.

    Args:
        do: what is done, with the report that it fills.
        limit_s: seconds that it may take.
        after_step: see ``Report``.
    """

    do: Callable[[Report], None]
    limit_s: float
    after_step: Callable[[], None] = lambda: None


def carry_out(
    parts: Mapping[str, Guarded], budget_s: float, output: Path, facts: Mapping[str, Any]
) -> bool:
    """Do the parts in their order.

    Args:
        parts: by name.
        budget_s: seconds of all together.
        output: a JSON file, written after every part.
        facts: what else it shall say.

    Returns:
        Whether all was done and nothing failed.
    """
    until, found = time.monotonic() + budget_s, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            limit_s = min(part.limit_s, until - time.monotonic())
            print(f"\n## {name}", flush=True)
            found[name] = {"ended": "left out: no time", "seconds": 0.0}
            if limit_s >= LEAST_S:
                found[name] = in_a_process(part, Path(folder) / f"{name}.json", limit_s)
            print(f"\n{name}: {found[name]['ended']}, {found[name]['seconds']} s", flush=True)
            output.write_text(json.dumps({**facts, "parts": found}, indent=1), encoding="utf-8")
    return all(part["ended"] == "done" for part in found.values())


def in_a_process(part: Guarded, path: Path, limit_s: float) -> dict[str, Any]:
    """Do a part in a process of its own; returns how it ended, seconds, and what it found."""
    began = time.monotonic()
    report = Report(path, began + limit_s, part.after_step)
    process = multiprocessing.get_context("fork").Process(target=_do, args=(part, report))
    process.start()
    process.join(limit_s)
    ended = "out of time" if process.is_alive() else "done"
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # what it started goes with it
    process.join(EXIT_S)
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if ended == "done" and process.exitcode:
        ended = f"died with exit code {process.exitcode}"
    elif ended == "done" and found.get("failures"):
        ended = "done, but for what failed"
    return {"ended": ended, "seconds": round(time.monotonic() - began, 1), **found}


def _do(part: Guarded, report: Report) -> None:
    os.setpgid(0, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        with report.step("part"):
            part.do(report)
    texts = dict.fromkeys(" ".join(str(warning.message).split())[:200] for warning in caught)
    for text in list(texts)[:WARNINGS_SHOWN]:
        report.note(f"Warning: {text}")
    report.keep()


def shown(value: Any) -> str:
    """A table's cell: numbers in four digits or in thousands, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def said(error: BaseException | None) -> str:
    """Type and beginning of the message of an error, in one line; "nothing" for None."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "nothing" if error is None else text[:300]


def where(error: BaseException) -> str:
    """The last lines of this repository that an error came through."""
    here = str(Path(__file__).parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(here)]
    return "\n".join(f"  {Path(f.filename).name}:{f.lineno} {f.line}" for f in frames[-3:])
