"""Arguments and options that several commands take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from diffcert_ray.config.loading import RUN_PRESETS, presets
from diffcert_ray.errors import ConfigError

RUNS_FOLDER = "runs"


def complete_config(incomplete: str) -> list[str]:
    """What a shell offers for CONFIG: presets, TOML files, and folders on the way to some.

    Args:
        incomplete: what has been typed, as "dig" or "jobs/pl".
    """
    return completion(RUN_PRESETS)(incomplete)


def completion(presets_folder: str) -> Callable[[str], list[str]]:
    """What a shell offers, as a function of what has been typed, where presets lie in a folder."""

    def complete(incomplete: str) -> list[str]:
        typed = Path(incomplete)
        folder = typed if incomplete.endswith("/") else typed.parent
        known = (p for p in presets(presets_folder) if p.startswith(incomplete))
        return [*known, *_paths(folder, incomplete)]

    return complete


def complete_run(incomplete: str) -> list[str]:
    """What a shell offers for RUN: folders that hold a run, under runs/ and where one has typed.

    Args:
        incomplete: what has been typed, as "" or "runs/di".
    """
    from diffcert_ray.storage.store import RUN_DOCUMENT

    typed = Path(incomplete)
    folders = {Path(RUNS_FOLDER), typed if incomplete.endswith("/") else typed.parent}
    runs = {
        str(document.parent)
        for folder in folders
        for document in _listed(folder, f"*/{RUN_DOCUMENT}")
    }
    return sorted(run for run in runs if run.startswith(incomplete))


def _paths(folder: Path, incomplete: str) -> list[str]:
    paths = _listed(folder, "*")
    names = [f"{p}/" if p.is_dir() else str(p) for p in paths if p.is_dir() or p.suffix == ".toml"]
    return sorted(n for n in names if n.startswith(incomplete) and not Path(n).name.startswith("."))


def _listed(folder: Path, pattern: str) -> list[Path]:
    """What matches in a folder; nothing where it is missing or must not be read."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help=f"TOML file or preset: {', '.join(presets())}",
        autocompletion=complete_config,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run folder or s3:// prefix", autocompletion=complete_run),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Replace a setting; may be repeated"),
]
PriceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]PRICE", help="Price of a worker like this one for an hour; repeatable"
    ),
]
ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="A:B", help="Positions A..B-1 of the chosen images only"),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar='"auto"|HOST:PORT',
        help="Compute on a worker of this Ray cluster, in place of this process",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines")]


def prices_of(given: Sequence[str] | None) -> dict[str, float]:
    """The values of --price, by the name of the machines; ConfigError says what is wrong."""
    found = {}
    for text in given or ():
        name, _, number = text.rpartition("=")
        try:
            found[name or "worker"] = float(number)
        except ValueError:
            raise ConfigError(
                f"--price {text!r} must be a number, or NAME=NUMBER, as in spot=0.35"
            ) from None
    return found


def image_range(text: str | None) -> tuple[int, int] | None:
    """The value of --images; ConfigError says what is wrong with it."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit():
        raise ConfigError(f"--images {text!r} must be A:B with whole numbers, as in 0:10000")
    return int(start), int(stop)
