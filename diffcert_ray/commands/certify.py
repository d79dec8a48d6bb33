"""``diffcert certify``: certify a dataset, or continue a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcert_ray.commands.log_lines import name_run
from diffcert_ray.config.loading import load_config

if TYPE_CHECKING:
    from diffcert_ray.run.loop import Outcome
    from diffcert_ray.run.stored import Run

from diffcert_ray.commands.arguments import (
    ConfigArgument,
    ImagesOption,
    JsonOption,
    PriceOption,
    SetOption,
    image_range,
    prices_of,
)
from diffcert_ray.commands.exit_codes import INCOMPLETE
from diffcert_ray.commands.report import show_first_screen
from diffcert_ray.commands.screen import err, out, print_json
from diffcert_ray.commands.stop_signals import stop_on_signals
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
        bool,
        typer.Option(help="Set damaged and foreign files aside, evaluate what is missing again"),
    ] = False,
    max_hours: Annotated[
        float | None, typer.Option(help="Stop after so many hours; the same command continues")
    ] = None,
    max_nfe: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations; the same")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop after workers have cost so much (--price); the same")
    ] = None,
    price: PriceOption = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress: only warnings, errors and results")
    ] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Certify a dataset, or continue a run that was stopped.

    [dim]diffcert certify digits-quick[/]
    [dim]diffcert certify my.toml --run s3://bucket/run1 --set votes.n=10000 --address auto[/]
    [dim]diffcert certify my.toml --max-hours 12 --max-cost 80 --price spot=0.35[/]

    Ctrl-C stores what has come back and stops; the same command continues. Where stderr is no
    terminal, progress comes as lines of key=value, with --json as JSON lines.
    """
    from diffcert_ray.commands.progress import progress_shown
    from diffcert_ray.run.certify import certify as certify_run

    with progress_shown(quiet=quiet, as_json=as_json) as progress, stop_on_signals() as stopped:
        certified = certify_run(
            with_storage_options(load_config(config, overrides or ()), storage),
            run,
            images=image_range(images),
            local=local,
            address=address,
            on_damaged="recompute" if recompute_damaged else "refuse",
            on_progress=progress,
            on_start=lambda run: _say_where(run, quiet=quiet),
            on_calibrated=lambda said: None if quiet else err.print(said, soft_wrap=True),
            should_stop=lambda: bool(stopped),
            max_hours=max_hours,
            max_nfe=max_nfe,
            max_cost=max_cost,
            price=max(prices_of(price).values(), default=None),  # the dearest, to be sure
        )
    outcome = certified.outcome
    assert outcome is not None
    _say_outcome(outcome, quiet=quiet)
    if as_json:
        print_json(_figures(certified, images))
    elif outcome.complete:
        if images is None:
            from diffcert_ray.report.written import write_report_of

            show_first_screen(write_report_of(certified))
        else:
            out.print(f"images {images} are done; run: {certified.address}", soft_wrap=True)
    if not outcome.complete:
        raise typer.Exit(INCOMPLETE)


def _say_where(run: "Run", *, quiet: bool) -> None:
    name_run(run.document.votes_id)
    if quiet:
        return
    err.print(f"run {run.address}  votes_id {run.document.votes_id}", soft_wrap=True)
    if err.is_terminal:
        err.print("[dim]Ctrl-C stores what has come back and stops; the same command continues[/]")


def _say_outcome(outcome: "Outcome", *, quiet: bool) -> None:
    """What this start did, and what a person has to know about how it ended."""
    if outcome.nfe and not quiet:
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
    if outcome.given_up:
        shown = ", ".join(f"image {i} at sigma {s:g}" for s, i in outcome.given_up[:5])
        err.print(
            f"[bold]incomplete:[/] {len(outcome.given_up)} images were given up after repeated "
            f"failures ({shown}); see the log above, then run the same command again"
        )
    elif outcome.reached:
        err.print(
            f"[bold]budget reached:[/] {outcome.reached}; what has come back is stored, the same "
            "command continues with as much again"
        )
    elif not outcome.complete:
        err.print("[bold]stopped:[/] what has come back is stored; the same command continues")


def _figures(run: "Run", images: str | None) -> dict[str, Any]:
    """What --json prints: how this start went, and of a finished run its report."""
    outcome = run.outcome
    assert outcome is not None
    facts = vars(outcome) | {
        "numerics": sorted(outcome.numerics),
        "given_up": [{"sigma": s, "image_id": i} for s, i in outcome.given_up],
    }
    document, report = run.document, None
    identity = {"votes_id": document.votes_id, "plan_id": document.plan_id, "images": images}
    if outcome.complete and images is None:
        from diffcert_ray.report.written import write_report_of

        report = write_report_of(run).figures()
    return {"run": run.address} | identity | facts | {"report": report}
