"""``diffcert config``: print the configuration reference."""

from typing import Annotated

import typer

from diffcert_ray.commands.screen import out
from diffcert_ray.errors import ConfigError


def config_command(
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="The JSON schema, for editors, instead")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="The keys of train and train-classifier instead")
    ] = False,
) -> None:
    """Print every key of a configuration: values, default, meaning.

    [dim]diffcert config --training[/]
    [dim]diffcert config --json-schema > diffcert.schema.json[/]
    """
    from diffcert_ray.config import reference

    if training and json_schema:
        raise ConfigError("--training and --json-schema: the schema is of runs; leave one out")
    if training:
        text = reference.training_markdown()
    else:
        text = reference.json_schema() if json_schema else reference.markdown()
    out.print(text, soft_wrap=True, markup=False, end="")
