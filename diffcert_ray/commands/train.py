"""``diffcert train`` and ``diffcert train-classifier``: networks for a user's own images."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffcert_ray.commands.arguments import SetOption, completion
from diffcert_ray.commands.exit_codes import INCOMPLETE
from diffcert_ray.commands.screen import err, out
from diffcert_ray.commands.stop_signals import stop_on_signals
from diffcert_ray.config.loading import presets
from diffcert_ray.config.training import (
    CLASSIFIERS,
    DENOISERS,
    load_classifier_training,
    load_denoiser_training,
)

if TYPE_CHECKING:
    from diffcert_ray.tools.training import Standing, Trained

MODELS_FOLDER = "models"
LINE_S = 10.0
OutputOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the training [default: models/NAME]", show_default=False),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="No progress: only warnings, errors and results")
]


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help=f"TOML file or preset: {', '.join(presets(DENOISERS))}",
            autocompletion=completion(DENOISERS),
        ),
    ],
    output: OutputOption = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a class-conditional denoiser, or continue a training that was stopped.

    [dim]diffcert train digits[/]
    [dim]diffcert train my.toml --output models/my --set training.steps=20000[/]

    OUTPUT/model.safetensors is a model.checkpoint for certify. Ctrl-C stores the state and stops;
    the same command continues.
    """
    from diffcert_ray.tools.training import train_denoiser

    settings = load_denoiser_training(config, overrides or ())
    folder = output or Path(MODELS_FOLDER) / settings.name
    with _shown(folder, quiet=quiet) as on_progress, stop_on_signals() as stopped:
        trained = train_denoiser(
            settings, folder, on_progress=on_progress, should_stop=lambda: bool(stopped)
        )
    _end(folder, trained)


def train_classifier(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help=f"TOML file or preset: {', '.join(presets(CLASSIFIERS))}",
            autocompletion=completion(CLASSIFIERS),
        ),
    ],
    output: OutputOption = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a classifier on noisy images, or continue a training that was stopped.

    [dim]diffcert train-classifier digits --set training.sigma=0.5 --output models/digits-0.5[/]

    OUTPUT/model.safetensors is a classifier.checkpoint for certify. Ctrl-C stores the state and
    stops; the same command continues.
    """
    from diffcert_ray.tools.training import train_classifier as train

    settings = load_classifier_training(config, overrides or ())
    folder = output or Path(MODELS_FOLDER) / settings.name
    with _shown(folder, quiet=quiet) as on_progress, stop_on_signals() as stopped:
        trained = train(
            settings, folder, on_progress=on_progress, should_stop=lambda: bool(stopped)
        )
    _end(folder, trained)


def _end(folder: Path, trained: "Trained") -> None:
    """Draw the curve, and say where the model is, or that the same command continues."""
    from diffcert_ray.report.loss_curve import loss_picture

    if trained.curve:
        steps, losses, _, held_out = zip(*trained.curve, strict=True)
        (folder / "loss.svg").write_text(loss_picture(steps, losses, held_out), "utf-8")
    if trained.model is None:
        err.print(f"[bold]stopped:[/] step {trained.step} is stored; the same command continues")
        raise typer.Exit(INCOMPLETE)
    out.print(f"{trained.model}", soft_wrap=True)


@contextmanager
def _shown(folder: Path, *, quiet: bool) -> "Iterator[Callable[[Standing], None] | None]":
    """What takes the progress: a bar on a terminal, else a line now and then."""
    if quiet:
        yield None
        return
    err.print(f"training {folder}", soft_wrap=True)
    if not err.is_terminal:
        yield _Lines()
        return
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("training", total=None, facts="")

        def on_progress(standing: "Standing") -> None:
            bar.update(
                task,
                total=standing.steps,
                completed=standing.step,
                facts=f"step {standing.step}/{standing.steps}, loss {standing.loss:.4f}",
            )

        yield on_progress


class _Lines:
    """Progress as a line of key=value every ten seconds, and at the end."""

    def __init__(self) -> None:
        self._said_at: float | None = None

    def __call__(self, standing: "Standing") -> None:
        now = time.monotonic()
        due = self._said_at is None or now - self._said_at >= LINE_S
        if not due and standing.step < standing.steps:
            return
        held_out = "?" if standing.held_out_loss is None else f"{standing.held_out_loss:.5f}"
        left = "?" if standing.seconds_left is None else f"{standing.seconds_left:.0f}"
        err.print(
            f"progress step={standing.step} steps={standing.steps} loss={standing.loss:.5f} "
            f"held_out_loss={held_out} learning_rate={standing.learning_rate:.3g} "
            f"seconds_left={left}",
            soft_wrap=True,
        )
        self._said_at = now
