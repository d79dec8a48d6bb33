"""Progress in a notebook: one line that is updated in place, or lines of text elsewhere."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO

from diffcert_ray.commands.progress import LINE_S, progress_line
from diffcert_ray.run.loop import Progress


class NotebookProgress:
    """What ``certify(..., on_progress=NotebookProgress())`` shows of a run in a notebook.

    Inside IPython the cell shows one line that changes. Elsewhere a line is written every ten
    seconds; IPython is never imported.

    Args:
        stream: where lines are written to outside IPython; by default sys.stdout.
        clock: seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._clock = stream, clock
        self._display = _display_of_notebook()
        self._shown: Any = None
        self._written_at: float | None = None
        self._written = ""

    def __call__(self, progress: Progress) -> None:
        """Show where the run stands.

        Args:
            progress: as the run gives it about once a second.
        """
        line = progress_line(progress)
        if self._display is None:
            self._write(line, done=progress.images_done == progress.images_total)
        elif self._shown is None:
            self._shown = self._display({"text/plain": line}, raw=True, display_id=True)
        else:
            self._shown.update({"text/plain": line}, raw=True)

    def _write(self, line: str, *, done: bool) -> None:
        now, stream = self._clock(), self._stream or sys.stdout
        due = done or self._written_at is None or now - self._written_at >= LINE_S
        if due and line != self._written:
            stream.write(f"{line}\n")
            stream.flush()
            self._written_at, self._written = now, line


def _display_of_notebook() -> Any:
    """IPython's ``display`` where this process is a notebook's or IPython's, else None."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return None
    return import_module("IPython.display").display
