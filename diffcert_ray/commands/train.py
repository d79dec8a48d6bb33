"""``diffcert train``: train the small networks that ship with the package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from diffcert_ray.commands.screen import err, out


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
    from diffcert_ray.tools.training import train_digits as train

    with _bar(steps) as on_progress:
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
    from diffcert_ray.tools.classifier_training import ClassifierRecipe
    from diffcert_ray.tools.classifier_training import train_digits_classifier as train

    recipe = ClassifierRecipe(sigma, steps, batch, seed)
    with _bar(steps) as on_progress:
        written = train(output, recipe, on_progress)
    out.print(f"{written}", soft_wrap=True)


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar of the steps done, with the loss of the last one."""
    from rich.progress import Progress, TextColumn

    with Progress(
        *Progress.get_default_columns(), TextColumn("loss {task.fields[loss]}"), console=err
    ) as bar:
        task = bar.add_task("training", total=steps, loss="-")

        def on_progress(step: int, loss: float) -> None:
            if step % 20 == 0 or step == steps:
                bar.update(task, completed=step, loss=f"{loss:.4f}")

        yield on_progress
