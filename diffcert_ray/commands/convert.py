"""``diffcert convert``: turn a checkpoint into safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from diffcert_ray.commands.arguments import JsonOption
from diffcert_ray.commands.screen import out, print_json
from diffcert_ray.commands.storage_options import StorageOption, storage_options


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="File or address of any known format")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write")],
    config: Annotated[
        Path | None, typer.Option(help="JSON with what the checkpoint does not say of itself")
    ] = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint (.pkl of EDM, .pt of EDM or OpenAI) into safetensors, running no code.

    [dim]diffcert convert edm-cifar10-32x32-cond-vp.pkl cifar10.safetensors[/]
    """
    from diffcert_ray.checkpoints.configuration_text import read_json
    from diffcert_ray.checkpoints.conversion import convert as convert_checkpoint

    settings = None if config is None else read_json(config, Path(checkpoint))
    converted = convert_checkpoint(checkpoint, output, settings, storage_options(storage))
    if as_json:
        print_json(vars(converted) | {"output": str(converted.output)})
        return
    shape = "x".join(str(n) for n in converted.image_shape)
    out.print(f"format      {converted.format}")
    out.print(f"network     {converted.network}, {converted.preconditioning} preconditioning")
    out.print(f"image       {shape}")
    out.print(f"classes     {converted.classes or 'none (unconditional)'}")
    out.print(f"parameters  {converted.parameters:,}")
    out.print(f"sha256      {converted.source_sha256} (of what was read)", soft_wrap=True)
    out.print(f"written     {converted.output}", soft_wrap=True)
    out.print(f"sha256      {converted.output_sha256}", soft_wrap=True)
