"""``diffcert bench``: measure the network and the engine on this device."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

if TYPE_CHECKING:
    from diffcert_ray.config.tables import Config
    from diffcert_ray.method.diffusion_base import DiffusionBase
    from diffcert_ray.tools.bench_file import Measured
    from diffcert_ray.tools.measure import Schedule, Subject

from diffcert_ray.commands.arguments import AddressOption, ConfigArgument, SetOption
from diffcert_ray.commands.screen import err, escaped, out

SCALE_NAMES = ("digits", "digits-32", "cifar10", "imagenet64")


def bench(
    config: ConfigArgument = "digits",
    overrides: SetOption = None,
    scales: Annotated[
        str | None,
        typer.Option(
            help=f"Random networks of these sizes instead: {','.join(SCALE_NAMES)}, or a part",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of engine and bare network in turn")] = 5,
    item_s: Annotated[float, typer.Option(min=0.1, help="Seconds of an item")] = 5.0,
    largest_batch: Annotated[int, typer.Option(min=1, help="Largest batch to try")] = 4096,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare with a file of --json", exists=True)
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of an item to this file")
    ] = None,
    address: AddressOption = None,
) -> None:
    """Measure the bare network, the engine, its parts, memory and floors on this device.

    [dim]diffcert bench digits --set numerics.compile=true --json compiled.json[/]
    [dim]diffcert bench --scales digits,cifar10 --set numerics.batch=8[/]

    One process, one thread on a CPU, here or (--address) on a worker of a cluster. Rates are
    evaluations (NFE) per second; on a CPU per second that this process computed, so that other work
    on the machine counts less. Where numerics.batch is not given, the engine's is the one that
    calibration would choose.
    """
    from diffcert_ray.config.loading import load_config
    from diffcert_ray.errors import ConfigError
    from diffcert_ray.run.devices import at_a_worker
    from diffcert_ray.tools.bench_file import read_reference, to_json
    from diffcert_ray.tools.measure import Schedule

    if profile and address:
        raise ConfigError("--profile would be written on the worker's machine: leave one out")
    reference = read_reference(against) if against else {}
    settings = load_config(config, overrides or ())
    schedule = Schedule(
        rounds=rounds,
        item_s=item_s,
        bare_s=item_s / 3,
        search_s=item_s / 10,
        largest_batch=largest_batch,
    )
    measured: list[Measured] = []
    facts: dict[str, Any] = {}
    for name in scales.split(",") if scales else [None]:
        work = partial(_measured, settings, name, schedule, None if address else profile)
        facts, one = at_a_worker(work, settings.execution, address=address)
        if not measured:
            said = f"{facts['name']}, {facts['threads']} thread, torch {facts['torch']}"
            out.print(escaped(said))
        measured.append(one)
        _print_measured(one, reference.get(one.name))
    _print_table(measured)
    if json_file:
        json_file.write_text(to_json(facts, measured), encoding="utf-8")


def _measured(
    settings: "Config", scale: str | None, schedule: "Schedule", profile: Path | None, device: str
) -> "tuple[dict[str, Any], Measured]":
    """What is measured in this process, and what of."""
    from diffcert_ray.denoisers.device import check_device, set_up_torch
    from diffcert_ray.tools.bench_file import device_facts
    from diffcert_ray.tools.floor import device_speeds
    from diffcert_ray.tools.measure import measure, write_trace

    check_device(device, "bench")
    set_up_torch(settings.numerics.dtype)
    speeds = device_speeds(device, settings.numerics.dtype)
    subject = _random_subject(settings, scale, device) if scale else _subject(settings, device)
    err.print(f"measuring {subject.name}", soft_wrap=True)
    measured = measure(subject, speeds, schedule, on_rate=_say_rate)
    if profile:
        fastest = max(r.nfe_per_s or 0.0 for r in measured.rates)
        write_trace(subject, profile, schedule.item_s, fastest)
    return device_facts(device), measured


def _subject(settings: "Config", device: str) -> "Subject":
    """The configuration's own network, images and rules."""
    from diffcert_ray.datasets import load_dataset
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec
    from diffcert_ray.errors import ConfigError
    from diffcert_ray.method.diffusion_base import DiffusionBase

    data = load_dataset(settings.dataset, settings.execution.storage_options)
    worker = WorkerSpec(settings, weights_of(settings), device, dataset=data).load(
        "bench", tried=False
    )
    base = worker.base(settings.votes.sigmas[0])
    if not isinstance(base, DiffusionBase):
        raise ConfigError(
            f'method.name = "{settings.method.name}" has no engine to measure: give a '
            "configuration of a diffusion classifier"
        )
    whole = replace(base, short_batches=())  # what is measured is full batches
    return _subject_of(settings, settings.model.checkpoint, whole, data.image, data.ids)


def _random_subject(settings: "Config", scale: str, device: str) -> "Subject":
    """A network of a scale with random weights, random images, and the configuration's rules."""
    import numpy as np

    from diffcert_ray.denoisers.device import compile_denoiser, keep_channels_last
    from diffcert_ray.method.diffusion_base import base_classifier
    from diffcert_ray.tools.measure import random_images
    from diffcert_ray.tools.scales import random_network

    numerics = settings.numerics
    network = random_network(scale, device, numerics.dtype)
    if numerics.channels_last:
        keep_channels_last(network)
    if numerics.compile:
        compile_denoiser(network)
    if settings.uses_head:  # it is of another network: all classes race
        race = settings.sift.model_copy(update={"rule": "paired-z"})
        settings = settings.model_copy(update={"sift": race})
    base = base_classifier(settings, network, settings.votes.sigmas[0], device=device)
    images = random_images(network.image_shape, 16)
    ids = np.arange(len(images))
    return _subject_of(settings, f"{scale} (random)", base, lambda i: images[i], ids)


def _subject_of(
    settings: "Config", name: str, base: "DiffusionBase", image: Any, ids: Any
) -> "Subject":
    from diffcert_ray.run.calibration import open_keys
    from diffcert_ray.tools.measure import Subject

    numerics, open_batch = settings.numerics, "batch" in open_keys(settings)
    return Subject(
        name,
        base,
        image,
        ids,
        numerics.dtype,
        compiled=numerics.compile,
        channels_last=numerics.channels_last,
        batch_open=open_batch,
    )


def _say_rate(rate: Any) -> None:
    shown = "out of memory" if rate.nfe_per_s is None else f"{rate.nfe_per_s:,.1f} NFE/s"
    err.print(f"  batch {rate.batch}: {shown}")


def _print_measured(measured: "Measured", before: dict[str, Any] | None) -> None:
    """The parts of the engine, and the difference to a reference."""
    total = sum(measured.part_seconds.values())
    if total:
        parts = ", ".join(f"{k} {100 * v / total:.1f} %" for k, v in measured.part_seconds.items())
        out.print(f"{escaped(measured.name)}: {parts}", soft_wrap=True)
    ran = measured.comparison
    if ran is not None:
        rows = ran.nfe + ran.padded
        out.print(
            f"{escaped(measured.name)}: {100 * ran.padded / rows:.2f} % of {rows:,} rows only "
            f"filled batches; engine by bare network in each round: "
            f"{', '.join(f'{100 * r:.1f}' for r in ran.ratios)} %; this process had "
            f"{100 * ran.core_share:.0f} % of a core",
            soft_wrap=True,
        )
    if before is not None:
        _print_difference(measured, before)


def _print_difference(measured: "Measured", before: dict[str, Any]) -> None:
    """What is now, by what was in the reference."""
    for key, now in _figures(measured).items():
        if old := _lookup(before, key):
            out.print(
                f"{escaped(measured.name)}: {key} {now:,.4g}, before {old:,.4g}: {now / old:.3f}"
            )


def _figures(measured: "Measured") -> dict[str, float]:
    """What is compared with a reference, by its place in the file."""
    ran = measured.comparison
    figures = {"bare": max(r.nfe_per_s or 0.0 for r in measured.rates)}
    if ran is not None:
        figures |= {"engine": ran.engine_nfe_per_s, "ratio": ran.ratio}
    return figures


def _lookup(row: dict[str, Any], key: str) -> float | None:
    if key == "bare":
        return max(rate["nfe_per_s"] or 0.0 for rate in row["rates"])
    ran = row["comparison"]
    return None if ran is None else ran["engine_nfe_per_s" if key == "engine" else "ratio"]


def _print_table(measured: "list[Measured]") -> None:
    """One column for each network."""
    table = Table(title="\nNFE/s: evaluations per second")
    table.add_column("")
    for one in measured:
        table.add_column(escaped(one.name), justify="right")
    rows = [_column(one) for one in measured]
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    out.print(table)


def _column(one: "Measured") -> dict[str, str]:
    best = max(one.rates, key=lambda r: r.nfe_per_s or 0.0)
    ran, share, floor, useful = one.comparison, one.memory.share, one.floor, one.useful_share
    return {
        "parameters": f"{one.parameters:,}",
        "computes in": one.dtype
        + (", channels_last" if one.channels_last else "")
        + (", compiled" if one.compiled else ""),
        "bare NFE/s, at best": f"{best.nfe_per_s:,.5g} (batch {best.batch})",
        "engine NFE/s": f"{ran.engine_nfe_per_s:,.5g} (batch {ran.batch})" if ran else "-",
        "engine / bare": f"{100 * ran.ratio:.1f} %" if ran else "-",
        "the same, bare at the engine's batch": f"{100 * ran.same_batch_ratio:.1f} %"
        if ran
        else "-",
        "network on votes' rows": "-" if useful is None else f"{100 * useful:.1f} % of the time",
        "GFLOP per NFE": f"{floor.flop / 1e9:.3g}",
        "MB moved per NFE": f"{floor.bytes / 1e6:.3g}",
        "floor NFE/s": f"{floor.nfe_per_s:,.5g}",
        "weights MiB": f"{one.memory.network / 2**20:,.1f}",
        f"activations MiB (batch {floor.batch})": f"{one.memory.activations / 2**20:,.1f}",
        "engine peak / activations": "-" if share is None else f"{share:.2f}",
    }
