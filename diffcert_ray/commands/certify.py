"""Certify a dataset, or continue a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from diffcert_ray.config import load_config
from diffcert_ray.log_lines import name_run

if TYPE_CHECKING:
    from diffcert_ray.stored_run import Run

from diffcert_ray.commands.arguments import ConfigArgument, ImagesOption, SetOption, image_range
from diffcert_ray.commands.report import print_report_of
from diffcert_ray.commands.screen import INCOMPLETE, err, out, progress_shown, stop_on_signals
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options


def certify(
    config: ConfigArgument,
    run: Annotated[
        str | None,
        typer.Option(help="Run folder or s3:// prefix [default: runs/NAME]", show_default=False),
    ] = None,
    overrides: SetOption = None,
    images: ImagesOption = None,
    local: Annotated[
        bool, typer.Option("--local", help="One worker in this process, without Ray")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help='Ray cluster to join: "auto" or HOST:PORT')
    ] = None,
    recompute_damaged: Annotated[
        bool, typer.Option(help="Evaluate the units of damaged files again instead of stopping")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Certify a dataset, or continue a run that was stopped.

    [dim]diffcert certify digits-quick[/]
    [dim]diffcert certify my.toml --run s3://bucket/run1 --set votes.n=10000 --address auto[/]

    Ctrl-C stores what has come back and stops; the same command continues.
    """
    from diffcert_ray.certification import certify as certify_run

    with progress_shown() as progress, stop_on_signals() as stopped:
        found = certify_run(
            with_storage_options(load_config(config, overrides or ()), storage),
            run,
            images=image_range(images),
            local=local,
            address=address,
            on_damaged="recompute" if recompute_damaged else "refuse",
            on_progress=progress,
            on_start=_say_where,
            should_stop=lambda: bool(stopped),
        )
    outcome = found.outcome
    assert outcome is not None
    if outcome.nfe:
        unused = f" ({outcome.votes_unused:,} not needed)" if outcome.votes_unused else ""
        err.print(
            f"{outcome.votes:,} votes{unused}, {outcome.nfe:,} NFE, {outcome.items} items in "
            f"{outcome.seconds:.1f} s; numerics {', '.join(sorted(outcome.numerics))}"
        )
    if outcome.unreadable:
        shown = ", ".join(map(str, outcome.unreadable[:20]))
        err.print(
            f"[bold]warning:[/] {len(outcome.unreadable)} images could not be read and count as "
            f"abstentions: image_id {shown}"
        )
    if outcome.complete and images is None:
        print_report_of(found)
        return
    if outcome.complete:
        out.print(f"images {images} are done; run: {found.address}")
        return
    if outcome.given_up:
        shown = ", ".join(f"image {i} at sigma {s:g}" for s, i in outcome.given_up[:5])
        err.print(
            f"[bold]incomplete:[/] {len(outcome.given_up)} images were given up after repeated "
            f"failures ({shown}); see the log above, then run the same command again"
        )
    else:
        err.print("[bold]stopped:[/] what has come back is stored; the same command continues")
    raise typer.Exit(INCOMPLETE)


def _say_where(run: "Run") -> None:
    name_run(run.document.votes_id)
    err.print(f"run {run.address}  votes_id {run.document.votes_id}", soft_wrap=True)
