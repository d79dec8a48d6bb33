"""``diffcert config``: print the configuration reference."""

from typing import Annotated

import typer

from diffcert_ray.commands.screen import out


def config_command(
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="The JSON schema, for editors, instead")
    ] = False,
) -> None:
    """Print every key of a configuration: values, default, meaning.

    [dim]diffcert config --json-schema > diffcert.schema.json[/]
    """
    from diffcert_ray.config import reference

    text = reference.json_schema() if json_schema else reference.markdown()
    out.print(text, soft_wrap=True, markup=False, end="")
