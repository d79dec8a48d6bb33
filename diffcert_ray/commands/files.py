"""Rewrite files: checkpoints into safetensors, many parts into few."""

from pathlib import Path
from typing import Annotated

import typer

from diffcert_ray.commands.arguments import JsonOption, RunArgument
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
    found = convert_checkpoint(checkpoint, output, settings, storage_options(storage))
    if as_json:
        print_json(vars(found) | {"output": str(found.output)})
        return
    shape = "x".join(str(n) for n in found.image_shape)
    out.print(f"format      {found.format}")
    out.print(f"network     {found.network}, {found.preconditioning} preconditioning")
    out.print(f"image       {shape}")
    out.print(f"classes     {found.classes or 'none (unconditional)'}")
    out.print(f"parameters  {found.parameters:,}")
    out.print(f"sha256      {found.source_sha256} (of what was read)", soft_wrap=True)
    out.print(f"written     {found.output}", soft_wrap=True)
    out.print(f"sha256      {found.output_sha256}", soft_wrap=True)


def compact(
    run: RunArgument,
    delete_sources: Annotated[
        bool, typer.Option(help="Delete the part files that the compaction has taken over")
    ] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Rewrite a run's many small unit files as few large ones; the run may go on meanwhile.

    [dim]diffcert compact s3://bucket/run1[/]
    """
    from diffcert_ray.run.stored import open_run
    from diffcert_ray.storage.compaction import compact as compact_store

    done = compact_store(
        open_run(run, storage_options(storage)).store, delete_sources=delete_sources
    )
    if as_json:
        print_json({"run": run} | vars(done))
        return
    out.print(
        f"generation {done.generation}: {done.parts:,} parts taken over, {done.rows:,} rows "
        "written, "
        f"{done.deleted:,} part files deleted"
    )
