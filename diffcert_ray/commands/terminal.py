"""Terminals as they come: no UTF-8, no colour, no width, a reader that has gone.

Nothing that happens to the screen may change how a command ends: its work is done by then.
"""

import codecs
import os
import sys
from collections.abc import Mapping

from rich.console import Console

NARROWEST = 20
"""Columns of the narrowest terminal that text is wrapped for."""
PLAIN = {"≥": ">=", "≤": "<=", "σ": "sigma", "α": "alpha", "…": "...", "×": "x", "→": "->"}
"""Words for the signs of the output where a terminal does not have them."""
_PLAIN_ERRORS = "diffcert-plain"


class Screen(Console):
    """A terminal that goes on being silent once its reader has gone."""

    def on_broken_pipe(self) -> None:
        """Print nothing from now on; the command ends as it would have."""
        self.quiet = True
        self._buffer.clear()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what the stream still holds is flushed at exit
        os.close(nowhere)


def screen(*, stderr: bool = False, environ: Mapping[str, str] = os.environ) -> Screen:
    """Where a command prints, as the environment wants it.

    Args:
        stderr: print there in place of stdout.
        environ: NO_COLOR that is not empty means no escape code for any style, bold and italics
            among them; a COLUMNS that is no possible width counts as not set.
    """
    if no_style(environ):
        return Screen(
            stderr=stderr, highlight=False, color_system=None, _environ=_with_width(environ)
        )
    return Screen(stderr=stderr, highlight=False, _environ=_with_width(environ))


def no_style(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether NO_COLOR asks for text alone (no-color.org: it is set and not empty)."""
    return bool(environ.get("NO_COLOR"))


def adapt_streams() -> None:
    """Let stdout and stderr take every sign: those that their encoding lacks become words."""
    codecs.register_error(_PLAIN_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_PLAIN_ERRORS)


def forget_impossible_width() -> None:
    """Take COLUMNS out of the environment where it is no width, for the libraries that read it."""
    if "COLUMNS" in os.environ and "COLUMNS" not in _with_width(os.environ):
        del os.environ["COLUMNS"]


def in_signs_of(encoding: str, text: str) -> str:
    """The text as it will stand on a terminal with this encoding."""
    codecs.register_error(_PLAIN_ERRORS, _replaced)
    return text.encode(encoding, _PLAIN_ERRORS).decode(encoding)


def _with_width(environ: Mapping[str, str]) -> dict[str, str]:
    kept = dict(environ)
    columns = kept.get("COLUMNS", "")
    if columns and not (columns.isascii() and columns.isdigit() and int(columns) >= NARROWEST):
        del kept["COLUMNS"]
    return kept


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in missing), error.end
