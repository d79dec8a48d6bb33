"""Arguments and options that several commands take."""

from typing import Annotated

import typer

from diffcert_ray.config import ConfigError, presets

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help=f"TOML file or preset: {', '.join(presets())}")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run folder or s3:// prefix")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Replace a setting; may be repeated"),
]
ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="A:B", help="Positions A..B-1 of the chosen images only"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines")]


def image_range(text: str | None) -> tuple[int, int] | None:
    """The value of --images; ConfigError says what is wrong with it."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit():
        raise ConfigError(f"--images {text!r} must be A:B with whole numbers, as in 0:10000")
    return int(start), int(stop)
