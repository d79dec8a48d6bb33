"""The command line: results on stdout, log and progress on stderr.

Exit codes: 0 done, 1 failed, 2 bad use, 3 incomplete (run the same command again).
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from diffcert_ray.config import ConfigError, load_config, presets
from diffcert_ray.log_lines import log_to, name_run
from diffcert_ray.storage.create_only import StoreError

if TYPE_CHECKING:
    from diffcert_ray.api import Run
    from diffcert_ray.datasets import Dataset
    from diffcert_ray.report.text_table import TextTable
    from diffcert_ray.reporting import Sources

app = typer.Typer(
    help="Certify how robust a diffusion classifier is: guaranteed radii, for whole datasets.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train_app = typer.Typer(help="Train a small denoiser.", no_args_is_help=True)
app.add_typer(train_app, name="train")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DONE, FAILED, BAD_USE, INCOMPLETE = 0, 1, 2, 3

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


def main() -> None:
    """Run the command line; known failures become one line with the remedy."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    level = "INFO" if debug else os.environ.get("DIFFCERT_LOG_LEVEL", "WARNING")
    try:
        log_to(sys.stderr, level=level, all_libraries=debug)
        app(arguments, standalone_mode=True)
    except (ConfigError, ValueError) as error:
        sys.exit(_explain(error, BAD_USE, debug))
    except (StoreError, RuntimeError, OSError) as error:
        sys.exit(_explain(error, FAILED, debug))


def _explain(error: Exception, code: int, debug: bool) -> int:
    if debug:
        raise error
    err.print(f"[bold red]error:[/] {_escaped(str(error) or type(error).__name__)}", soft_wrap=True)
    return code


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


@app.command()
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
) -> None:
    """Certify a dataset, or continue a run that was stopped.

    [dim]diffcert certify digits-quick[/]
    [dim]diffcert certify my.toml --run s3://bucket/run1 --set votes.n=10000 --address auto[/]

    Ctrl-C stores what has come back and stops; the same command continues.
    """
    from diffcert_ray.api import certify as certify_run

    with _progress() as progress, _stop_on_signals() as stopped:
        found = certify_run(
            config,
            run,
            overrides=overrides or (),
            images=_range(images),
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
        err.print(
            f"{outcome.votes:,} votes, {outcome.nfe:,} NFE, {outcome.items} items in "
            f"{outcome.seconds:.1f} s; numerics {', '.join(sorted(outcome.numerics))}"
        )
    if outcome.unreadable:
        shown = ", ".join(map(str, outcome.unreadable[:20]))
        err.print(
            f"[bold]warning:[/] {len(outcome.unreadable)} images could not be read and count as "
            f"abstentions: image_id {shown}"
        )
    if outcome.complete and images is None:
        _report_run(found)
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


def _report_run(run: "Run") -> None:
    from diffcert_ray.reporting import Sources, series_of_run

    _report(Sources(tuple(series_of_run(run)), (run,)))


def _say_where(run: "Run") -> None:
    name_run(run.document.votes_id)
    err.print(f"run {run.address}  votes_id {run.document.votes_id}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Any]:
    from diffcert_ray.terminal import LineProgress, LiveProgress

    with LiveProgress(err) if err.is_terminal else LineProgress(err) as progress:
        yield progress


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """A list that fills at the first SIGINT or SIGTERM; the second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        err.print("stopping: storing what has come back (again: stop at once)")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit():
        raise ConfigError(f"--images {text!r} must be A:B with whole numbers, as in 0:10000")
    return int(start), int(stop)


@app.command()
def plan(config: ConfigArgument, overrides: SetOption = None, images: ImagesOption = None) -> None:
    """Say what a run will take, measured on a few votes; stores nothing.

    [dim]diffcert plan digits --set votes.n=10000[/]
    """
    from diffcert_ray.api import plan_of
    from diffcert_ray.datasets import check_images, load_dataset
    from diffcert_ray.plain import PlainPlan
    from diffcert_ray.planning import estimate
    from diffcert_ray.preflight import check_plan, leave_out_corrupt
    from diffcert_ray.terminal import duration
    from diffcert_ray.worker import WorkerSpec, resolve_device, weights_of

    settings = load_config(config, overrides or ())
    data = load_dataset(settings.dataset, settings.execution.storage_options)
    asked = plan_of(settings, data, _range(images))
    check_plan(settings, asked, data)
    asked, _ = leave_out_corrupt(settings, asked, check_images(data, asked.image_ids))
    if isinstance(asked, PlainPlan):
        draws = len(asked.image_ids) * asked.draws
        out.print(
            f"{settings.name}: {len(asked.image_ids):,} images, {draws:,} draws, exactly "
            f"{draws * len(asked.s) * asked.classes:,} NFE; certified without votes"
        )
        return
    device = resolve_device(settings.execution.device)
    worker = WorkerSpec(settings, weights_of(settings), device).load("plan")
    found = estimate(asked, worker)
    table = Table(title=f"{settings.name}: {found.images} images, {settings.votes.bound}")
    for name in ("sigma", "votes", "NFE/vote", "at most", "NFE/s", "worker time", "largest radius"):
        table.add_column(name, justify="right")
    for s in found.sigmas:
        table.add_row(
            f"{s.sigma:g}",
            f"{s.votes:,}",
            f"{s.nfe_per_vote:.1f}",
            str(s.nfe_per_vote_limit),
            f"{s.nfe_per_s:,.0f}",
            duration(s.worker_hours * 3600),
            f"{s.largest_radius:.3f}",
        )
    out.print(table)
    out.print(
        f"{found.units:,} units, about {found.stored_bytes / 2**20:.1f} MiB stored; "
        f"{duration(found.worker_hours * 3600)} on one worker like this one ({device}; measured on "
        f"{found.trial_votes} votes), divided by the number of workers"
    )
    for s in found.sigmas:
        if s.unreachable:
            shown = ", ".join(f"{r:g}" for r in s.unreachable)
            out.print(
                f"warning: at sigma {s.sigma:g} no image can reach radius {shown}: n = "
                f"{asked.n} at "
                f"alpha {asked.alpha:g} certifies at most {s.largest_radius:.3f}"
            )


@app.command()
def status(run: RunArgument) -> None:
    """Say how far a run is, also one that another machine is doing.

    [dim]diffcert status runs/digits[/]
    """
    from diffcert_ray.api import open_run
    from diffcert_ray.datasets import load_dataset

    found = open_run(run)
    votes, certificates = found.config.votes, found.certificates()
    data = load_dataset(found.config.dataset)
    if found.config.without_votes:
        return _plain_status(found, data, len(certificates["image_id"].unique()))
    units = found.store.units(["start", "stop", "numerics"]).to_pandas()
    images = len(data) * len(votes.sigmas)
    cast = int((units["stop"] - units["start"]).sum())
    asked = images * (votes.n0 + votes.n)
    done = len(certificates[["sigma", "image_id"]].drop_duplicates())
    out.print(f"run        {found.address}", soft_wrap=True)
    out.print(f"votes_id   {found.document.votes_id}")
    out.print(f"images     {done:,} of {images:,} certified (images x sigmas)")
    most = " at most" if votes.bound == "sequential" else ""
    out.print(f"votes      {cast:,} of {asked:,}{most}")
    out.print(f"numerics   {', '.join(sorted(units['numerics'].unique())) or '-'}")
    out.print(f"state      {'complete' if done >= images else 'incomplete: run certify again'}")


def _plain_status(run: "Run", data: "Dataset", done: int) -> None:
    from diffcert_ray.loss_store import read_losses
    from diffcert_ray.plain import plan_of_images

    plan = plan_of_images(run.config, data)
    units = read_losses(run.store, len(plan.s), plan.classes).units
    drawn = int((units[:, 2] - units[:, 1]).sum())
    out.print(f"run        {run.address}", soft_wrap=True)
    out.print(f"votes_id   {run.document.votes_id}")
    out.print(f"images     {done:,} of {len(data):,} certified, without votes")
    out.print(f"draws      {drawn:,} of {len(data) * run.config.plain.draws:,}")
    out.print(f"state      {'complete' if done >= len(data) else 'incomplete: run certify again'}")


@app.command()
def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|LOG...", help="Run folders or prefixes, and logs of Cohen et al. (.tsv)"
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the files [default: report/ of the first run, or LOG-report]",
            show_default=False,
        ),
    ] = None,
    log_sigma: Annotated[
        float | None, typer.Option(min=0, help="Sigma of logs whose names do not tell")
    ] = None,
    log_alpha: Annotated[float, typer.Option(min=0, max=1, help="Alpha of logs")] = 0.001,
    published: Annotated[
        list[str] | None,
        typer.Option(help="Compare with published rows of this dataset too, e.g. cifar10"),
    ] = None,
) -> None:
    """Print the figures of runs and logs, and write them with pictures and a page to look at.

    [dim]diffcert report runs/digits-demo[/]
    [dim]diffcert report runs/new runs/old published-sigma-0.25.tsv --output compared[/]

    The page, index.html, needs no other file.
    """
    from diffcert_ray.reporting import open_sources

    found = open_sources(sources, log_sigma=log_sigma, log_alpha=log_alpha)
    _report(found, output or (None if found.runs else f"{sources[0]}-report"), published or ())


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option(help="Folder of the logs")] = Path(),
) -> None:
    """Write a run's certificates as tab-separated logs of Cohen et al., one for each sigma.

    [dim]diffcert export runs/digits --output logs[/]
    """
    from diffcert_ray.api import open_run
    from diffcert_ray.reporting import export_logs

    output.mkdir(parents=True, exist_ok=True)
    for name, text in export_logs(open_run(run)).items():
        (output / name).write_text(text, encoding="utf-8")
        out.print(f"{output / name}", soft_wrap=True)


@app.command()
def verify(
    run: RunArgument,
    sample: Annotated[int, typer.Option(min=0, help="Units to evaluate again")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of units")] = 0,
) -> None:
    """Recompute every certificate from the counts, and a sample of the units from the images.

    Exit code 1 on any difference. To let others verify a run, share its folder and the checkpoint.

    [dim]diffcert verify runs/digits --sample 50[/]
    """
    from diffcert_ray.api import open_run, verify_run

    found = verify_run(open_run(run), sample=sample, seed=seed)
    kind = "" if found.same_numerics else " (units of another numerics kind among them)"
    out.print(
        f"{found.certificates:,} certificates recomputed from their counts, {found.units:,} units "
        f"({found.votes:,} votes) evaluated again{kind}"
    )
    for difference in found.differences[:20]:
        out.print(f"difference: {_escaped(difference)}", soft_wrap=True)
    if found.differences:
        out.print(f"{len(found.differences)} differences")
        raise typer.Exit(FAILED)
    out.print("no difference")


@app.command()
def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="File or address of any known format")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write")],
    config: Annotated[
        Path | None, typer.Option(help="JSON with what the checkpoint does not say of itself")
    ] = None,
) -> None:
    """Turn a checkpoint (.pkl of EDM, .pt of EDM or OpenAI) into safetensors, running no code.

    [dim]diffcert convert edm-cifar10-32x32-cond-vp.pkl cifar10.safetensors[/]
    """
    from diffcert_ray.denoisers.configuration_text import read_json
    from diffcert_ray.denoisers.conversion import convert as convert_checkpoint

    settings = None if config is None else read_json(config, Path(checkpoint))
    found = convert_checkpoint(checkpoint, output, settings)
    shape = "x".join(str(n) for n in found.image_shape)
    out.print(f"format      {found.format}")
    out.print(f"network     {found.network}, {found.preconditioning} preconditioning")
    out.print(f"image       {shape}")
    out.print(f"classes     {found.classes or 'none (unconditional)'}")
    out.print(f"parameters  {found.parameters:,}")
    out.print(f"sha256      {found.source_sha256} (of what was read)", soft_wrap=True)
    out.print(f"written     {found.output}", soft_wrap=True)
    out.print(f"sha256      {found.output_sha256}", soft_wrap=True)


@app.command()
def compact(
    run: RunArgument,
    delete_sources: Annotated[
        bool, typer.Option(help="Delete the part files that the compaction has taken over")
    ] = False,
) -> None:
    """Rewrite a run's many small unit files as few large ones; the run may go on meanwhile.

    [dim]diffcert compact s3://bucket/run1[/]
    """
    from diffcert_ray.api import open_run
    from diffcert_ray.storage.compaction import compact as compact_store

    done = compact_store(open_run(run).store, delete_sources=delete_sources)
    out.print(
        f"generation {done.generation}: {done.parts:,} parts taken over, {done.rows:,} rows "
        "written, "
        f"{done.deleted:,} part files deleted"
    )


def _report(sources: "Sources", output: str | None = None, datasets: Sequence[str] = ()) -> None:
    """Print the figures; write the files to a folder, by default the first run's report/."""
    from diffcert_ray.report import guarantees, published_rows, report_files, report_tables
    from diffcert_ray.reporting import pictures_of, replace_file
    from diffcert_ray.storage.location import open_location

    series, runs = sources.series, sources.runs
    published = published_rows([*dict.fromkeys(one.dataset for one in series), *datasets])
    for table in report_tables(series, published):
        _print_table(table)
    for note in dict.fromkeys(note for one in series for note in one.notes):
        out.print(_escaped(note), soft_wrap=True)
    for sentence in guarantees(series):
        out.print(f"\n{sentence}", soft_wrap=False)
    files = report_files(series, published, pictures_of(runs[0]) if runs else None)
    location = open_location(output) if output else runs[0].store.location
    folder = "" if output else "report/"
    for name, data in files.items():
        replace_file(location, folder + name, data)
    for run in runs:
        counted = "losses" if run.config.without_votes else "units"
        out.print(f"\nresults: {run.address} (certificates/, {counted}/)", soft_wrap=True)
    place = output or f"{runs[0].address.rstrip('/')}/report"
    out.print(f"report: {place}/index.html", soft_wrap=True)


def _print_table(table: "TextTable") -> None:
    shown = Table(title=f"\n{_escaped(table.title)}", box=SIMPLE_HEAD, pad_edge=False)
    for name in table.header:
        shown.add_column(_escaped(name), justify="right")
    for row in table.rows:
        shown.add_row(*map(_escaped, row))
    if table.rows:
        out.print(shown)
    for note in table.notes:
        out.print(f"[dim]{_escaped(note)}[/]")


@app.command("config")
def config_command(
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="The JSON schema, for editors, instead")
    ] = False,
) -> None:
    """Print every key of a configuration: values, default, meaning.

    [dim]diffcert config --json-schema > diffcert.schema.json[/]
    """
    from diffcert_ray import config_reference

    found = config_reference.json_schema() if json_schema else config_reference.markdown()
    out.print(found, soft_wrap=True, markup=False, end="")


@train_app.command("digits")
def train_digits(
    output: Annotated[Path, typer.Option(help="The .safetensors file to write")] = Path(
        "digits.safetensors"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam")] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Images per step")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and everything drawn")] = 0,
    network: Annotated[str, typer.Option(help="ddpmpp, ncsnpp or adm")] = "ddpmpp",
    channels: Annotated[int, typer.Option(min=1, help="Of the first level")] = 16,
) -> None:
    """Train the demo model on the 1437 training digits (some 20 minutes on 2 cores).

    [dim]diffcert train digits --output my-digits.safetensors[/]
    """
    from rich.progress import Progress, TextColumn

    from diffcert_ray.training import train_digits as train

    with Progress(
        *Progress.get_default_columns(), TextColumn("loss {task.fields[loss]}"), console=err
    ) as bar:
        task = bar.add_task("training", total=steps, loss="-")

        def on_progress(step: int, loss: float) -> None:
            if step % 20 == 0 or step == steps:
                bar.update(task, completed=step, loss=f"{loss:.4f}")

        written = train(
            output,
            network=network,
            channels=channels,
            steps=steps,
            batch=batch,
            seed=seed,
            on_progress=on_progress,
        )
    out.print(f"{written}", soft_wrap=True)


@train_app.command("digits-classifier")
def train_digits_classifier(
    output: Annotated[Path, typer.Option(help="The .safetensors file to write")] = Path(
        "digits-classifier.safetensors"
    ),
    sigma: Annotated[float, typer.Option(min=0, help="Noise on the images, pixel units")] = 0.25,
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Images per step")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and everything drawn")] = 0,
) -> None:
    """Train the classifier of the digits-classify presets (less than a minute on one core).

    [dim]diffcert train digits-classifier --sigma 0.5 --output my-classifier.safetensors[/]
    """
    from rich.progress import Progress, TextColumn

    from diffcert_ray.classifier_training import ClassifierRecipe
    from diffcert_ray.classifier_training import train_digits_classifier as train

    recipe = ClassifierRecipe(sigma, steps, batch, seed)
    with Progress(
        *Progress.get_default_columns(), TextColumn("loss {task.fields[loss]}"), console=err
    ) as bar:
        task = bar.add_task("training", total=steps, loss="-")

        def on_progress(step: int, loss: float) -> None:
            if step % 20 == 0 or step == steps:
                bar.update(task, completed=step, loss=f"{loss:.4f}")

        written = train(output, recipe, on_progress)
    out.print(f"{written}", soft_wrap=True)


if __name__ == "__main__":
    main()
