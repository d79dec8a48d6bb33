"""``diffcert tune``: head and rule of a configuration, from images that it does not certify."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffcert_ray.commands.arguments import ConfigArgument, JsonOption, SetOption
from diffcert_ray.commands.exit_codes import INCOMPLETE
from diffcert_ray.commands.screen import err, escaped, out, print_json, print_table
from diffcert_ray.commands.stop_signals import stop_on_signals
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options
from diffcert_ray.config.loading import load_config

if TYPE_CHECKING:
    from diffcert_ray.tuning.heads import HeadFitted, HeadStep
    from diffcert_ray.tuning.tune import Tuned, Watch

OUTPUT_FOLDER = "tuned"


def tune(
    config: ConfigArgument,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Images to tune on, as keys of \\[dataset]: split=train, path=FOLDER, ids=[0,1]; "
            "may be repeated",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Folder or s3:// prefix [default: tuned/NAME]", show_default=False),
    ] = None,
    overrides: SetOption = None,
    target: Annotated[float, typer.Option(help="Agreement with the full vote to show")] = 0.99,
    votes: Annotated[int, typer.Option(help="Votes of each image")] = 4,
    confirming: Annotated[
        int | None, typer.Option(help="Images that the best settings are compared on")
    ] = None,
    screening: Annotated[
        int | None, typer.Option(help="Images that all settings are looked through on")
    ] = None,
    labels: Annotated[
        bool, typer.Option(help="Train a head, or tune the rule paired-z, which needs no labels")
    ] = True,
    against: Annotated[
        Literal["exact", "paired-z"] | None,
        typer.Option(help="The full vote [default: exact up to 100 classes]", show_default=False),
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="TOML file of lists of values of \\[sift] to try")
    ] = None,
    copies: Annotated[int, typer.Option(help="Noisy copies of each image for the head")] = 80,
    certified: Annotated[
        int, typer.Option(help="So many certified images show the gap to them", min=0)
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Of all noise; another one than the run's", min=0)
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="One worker in this process, without Ray")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help='Ray cluster to join: "auto" or HOST:PORT')
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress: only warnings, errors and results")
    ] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Find the cheapest votes that agree with the full vote, from images that are not certified.

    [dim]diffcert tune digits --images split=train[/]
    [dim]diffcert certify tuned/digits/tuned.toml[/]

    OUTPUT gets the configuration tuned.toml, its head, and what was measured (settings.md, .csv,
    pareto.png). Ctrl-C stores what there is and stops; the same command continues.
    """
    from diffcert_ray.tools.head_training import HeadRecipe
    from diffcert_ray.tuning.prepared import Asked
    from diffcert_ray.tuning.stopping import StoppedError
    from diffcert_ray.tuning.tune import tune as tune_config

    asked = Asked(
        images=tuple(images or ()),
        target=target,
        votes=votes,
        confirming=confirming,
        screening=screening,
        labels=labels,
        against=against,
        candidates=candidates,
        seed=seed,
        certified=certified,
        recipe=HeadRecipe(copies=copies, hidden=256),
    )
    settings = with_storage_options(load_config(config, overrides or ()), storage)
    folder = output or f"{OUTPUT_FOLDER}/{settings.name}"
    with _watch(quiet=quiet, as_json=as_json) as watch:
        try:
            tuned = tune_config(settings, folder, asked, local=local, address=address, watch=watch)
        except StoppedError:
            err.print("[bold]stopped:[/] what there is, is stored; the same command continues")
            raise typer.Exit(INCOMPLETE) from None
    _say(tuned, as_json=as_json)
    if not tuned.results.choice.reached:
        raise typer.Exit(INCOMPLETE)


def _say(tuned: "Tuned", *, as_json: bool) -> None:
    """The table, where the configuration is, and what would do where the target is not shown."""
    from diffcert_ray.tuning.results import table_of

    results, choice = tuned.results, tuned.results.choice
    needed = choice.images_needed()
    if as_json:
        gaps = [gap.facts() for gap in results.gaps]
        facts = {"config": tuned.config, "folder": tuned.folder, **choice.facts()}
        print_json(facts | {"images_needed": needed, "certified": gaps})
    else:
        print_table(table_of(results))
        for gap in results.gaps:
            out.print(gap.said(), soft_wrap=True)
        out.print(f"{tuned.config}", soft_wrap=True)
    if not choice.reached:
        would = "no number of such images would: try settings with larger z (--candidates)"
        if needed is not None:
            would = f"about {needed:,} such images to compare on would (--confirming)"
        err.print(
            f"[bold]not shown:[/] no setting agrees in at least {100 * choice.target:g} % beyond "
            f"doubt, {would}; the configuration has the one that agreed most often",
            soft_wrap=True,
        )


@contextmanager
def _watch(*, quiet: bool, as_json: bool) -> "Iterator[Watch]":
    """Who is told what happens, until the end."""
    from diffcert_ray.commands.progress import progress_shown
    from diffcert_ray.tuning.tune import Watch

    def said(line: str) -> None:
        if not quiet:
            err.print(escaped(line), soft_wrap=True)

    with progress_shown(quiet=quiet, as_json=as_json) as progress, stop_on_signals() as stopped:
        yield Watch(
            on_stage=said,
            on_head=_head_said(said),
            on_progress=progress,
            on_calibrated=said,
            should_stop=lambda: bool(stopped),
        )


def _head_said(
    said: Callable[[str], None],
) -> "Callable[[float, HeadStep | HeadFitted], None]":
    """What tells where the training of a head stands."""

    def on_head(sigma: float, found: "HeadStep | HeadFitted") -> None:
        from diffcert_ray.tuning.heads import HeadStep

        if isinstance(found, HeadStep):
            done = f"{found.done:,}/{found.total:,} noisy images, loss {found.loss:.3f}"
        else:
            done = (
                f"right on {100 * found.right:.1f} % of images that it has not seen, "
                f"temperature {found.temperature:.2f}"
            )
        said(f"head at sigma {sigma:g}: {done}")

    return on_head
