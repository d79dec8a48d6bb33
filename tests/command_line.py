"""The command line called in this process: what it prints, and its exit code."""

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from diffcert_ray.commands import screen
from diffcert_ray.commands.main import main

WIDTH = 120


@dataclass(frozen=True)
class Done:
    """How a command ended; an exception that is not SystemExit comes through as it is."""

    returncode: int
    stdout: str
    stderr: str


def diffcert(*arguments: str, cwd: Path) -> Done:
    """Run one command in a folder; what it changes of the process is put back."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    root, package = logging.getLogger(), logging.getLogger("diffcert_ray")
    handlers, levels = list(root.handlers), (root.level, package.level)
    widths = screen.out.width, screen.err.width
    screen.out.width = screen.err.width = WIDTH
    os.chdir(cwd)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        os.chdir(before)
        screen.out.width, screen.err.width = widths
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        package.setLevel(levels[1])
    return Done(code, out.getvalue(), err.getvalue())
