"""The command line: names the commands, and turns known failures into one line and an exit code."""

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer
from typer import rich_utils

from diffcert_ray.commands.attack import attack
from diffcert_ray.commands.bench import bench
from diffcert_ray.commands.certify import certify
from diffcert_ray.commands.compact import compact
from diffcert_ray.commands.config import config_command
from diffcert_ray.commands.convert import convert
from diffcert_ray.commands.doctor import doctor
from diffcert_ray.commands.exit_codes import BAD_USE, FAILED
from diffcert_ray.commands.export import export
from diffcert_ray.commands.log_lines import log_to
from diffcert_ray.commands.plan import plan
from diffcert_ray.commands.report import report
from diffcert_ray.commands.screen import err, escaped, out
from diffcert_ray.commands.status import status
from diffcert_ray.commands.terminal import adapt_streams, forget_impossible_width, no_style
from diffcert_ray.commands.train import train, train_classifier
from diffcert_ray.commands.tune import tune
from diffcert_ray.commands.verify import verify
from diffcert_ray.errors import ConfigError, StoreError

SHOWN_LINES = 3  # of a message that comes from elsewhere

app = typer.Typer(
    help="Certify how robust a diffusion classifier is: guaranteed radii, for whole datasets.\n\n"
    "With --debug any command logs what it does and shows where an error came from.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (certify, plan, status, report, export, verify, attack, convert, compact, bench):
    app.command()(command)
app.command()(doctor)
app.command("config")(config_command)
app.command()(tune)
app.command()(train)
app.command("train-classifier")(train_classifier)


def _say_version(asked: bool) -> None:
    if asked:
        out.print(f"diffcert_ray {metadata.version('diffcert_ray')}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say the version", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """What the program takes in place of a command; ``_say_version`` has already seen to it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; failures become one line, known ones with the remedy.

    Args:
        arguments: what follows the program's name; by default this process's.

    Raises:
        SystemExit: always, with the exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    level = "INFO" if debug else os.environ.get("DIFFCERT_LOG_LEVEL", "WARNING")
    adapt_streams()
    forget_impossible_width()
    if no_style():
        rich_utils.COLOR_SYSTEM = None  # of the help pages
    try:
        log_to(sys.stderr, level=level, all_libraries=debug)
        app(given, prog_name="diffcert", standalone_mode=True)
    except (ConfigError, ValueError) as error:
        sys.exit(_explain(error, BAD_USE, debug))
    except (StoreError, RuntimeError, OSError) as error:
        sys.exit(_explain(error, FAILED, debug))
    except Exception as error:  # noqa: BLE001 (a traceback is for those who ask for it)
        sys.exit(_explain(error, FAILED, debug, f"{type(error).__name__}: "))


def _explain(error: Exception, code: int, debug: bool, unexpected: str = "") -> int:
    if debug:
        raise error
    lines = (str(error) or type(error).__name__).strip().splitlines()
    text = unexpected + " ".join(line.strip() for line in lines[:SHOWN_LINES])
    if unexpected or len(lines) > SHOWN_LINES:
        text += " (unexpected: --debug shows where)" if unexpected else " (--debug shows all)"
    err.print(f"[bold red]error:[/] {escaped(text)}", soft_wrap=True)
    return code
