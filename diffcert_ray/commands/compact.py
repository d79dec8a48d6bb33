"""``diffcert compact``: rewrite a run's many part files as few."""

from typing import Annotated

import typer

from diffcert_ray.commands.arguments import JsonOption, RunArgument
from diffcert_ray.commands.screen import out, print_json
from diffcert_ray.commands.storage_options import StorageOption, storage_options


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
