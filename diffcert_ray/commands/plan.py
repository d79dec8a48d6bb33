"""``diffcert plan``: say what a run will take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcert_ray.commands.arguments import (
    ConfigArgument,
    ImagesOption,
    JsonOption,
    SetOption,
    image_range,
)
from diffcert_ray.commands.screen import err, escaped, out, print_json, print_table
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import ConfigError

if TYPE_CHECKING:
    from diffcert_ray.run.estimate import Bill, Estimate, PlainEstimate, SigmaEstimate


def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    images: ImagesOption = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PRICE", help="Price of a worker like this one for an hour; repeatable"
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="At work at the same time")] = 1,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Say what a run will take, measured on a few votes; stores nothing.

    [dim]diffcert plan digits --set votes.n=10000[/]
    [dim]diffcert plan my.toml --workers 8 --price spot=0.35 --price on-demand=1.20[/]
    """
    from diffcert_ray.datasets import check_images, load_dataset
    from diffcert_ray.denoisers.device import resolve_device
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec
    from diffcert_ray.run.estimate import bills
    from diffcert_ray.run.head_check import check_head
    from diffcert_ray.run.kind import kind_of
    from diffcert_ray.run.plan import plan_of
    from diffcert_ray.run.preflight import check_plan, leave_out_corrupt

    prices = dict(_price(text) for text in price or ())
    settings = with_storage_options(load_config(config, overrides or ()), storage)
    data = load_dataset(settings.dataset, settings.execution.storage_options)
    asked = plan_of(settings, data, image_range(images))
    check_plan(settings, asked, data)
    err.print(
        f"{settings.name}: reading {len(asked.image_ids):,} images, then timing a few votes or "
        "draws at each sigma on this machine; nothing is stored",
        soft_wrap=True,
    )
    read, weights = check_images(data, asked.image_ids), weights_of(settings)
    asked, _ = leave_out_corrupt(settings, asked, read)
    check_head(settings, weights, data, asked.image_ids.tolist(), read.shas)
    device = resolve_device(settings.execution.device)
    worker = WorkerSpec(settings, weights, device, dataset=data).load("plan")
    estimated, warnings = kind_of(settings).estimate(settings, asked, worker, data.num_classes)
    costs = bills(estimated.worker_hours, prices, workers)
    if as_json:
        print_json(_figures(settings.name, device, workers, estimated, costs, warnings))
        return
    if estimated.sigmas:
        title = f"{settings.name}: {estimated.images} images, {settings.votes.bound}"
        _say_sigmas(title, estimated.sigmas)
    out.print(estimated.said(settings.name))
    _say_costs(device, workers, estimated, costs)
    for warning in warnings:
        out.print(f"[bold]warning:[/] {escaped(warning)}")


def _price(text: str) -> tuple[str, float]:
    """The value of --price; ConfigError says what is wrong with it."""
    name, _, number = text.rpartition("=")
    try:
        return name or "worker", float(number)
    except ValueError:
        raise ConfigError(
            f"--price {text!r} must be a number, or NAME=NUMBER, as in spot=0.35"
        ) from None


def _figures(
    name: str,
    device: str,
    workers: int,
    estimated: "Estimate | PlainEstimate",
    costs: "Sequence[Bill]",
    warnings: Sequence[str],
) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(estimated)
    for row, sigma in zip(facts.get("sigmas", ()), estimated.sigmas, strict=True):
        row["worker_hours"] = sigma.worker_hours
    return {
        "name": name,
        "device": device,
        **facts,
        "worker_hours": estimated.worker_hours,
        "workers": workers,
        "wall_hours": estimated.worker_hours / workers,
        "costs": [asdict(bill) for bill in costs],
        "warnings": list(warnings),
    }


def _say_sigmas(title: str, sigmas: "Sequence[SigmaEstimate]") -> None:
    from diffcert_ray.certificates.radius import round_radius_down
    from diffcert_ray.commands.progress import duration
    from diffcert_ray.report.text_table import TextTable

    header = ("sigma", "votes", "NFE/vote", "at most", "NFE/s", "worker time", "largest radius")
    rows = [
        (
            f"{s.sigma:g}",
            f"{s.votes:,}",
            f"{s.nfe_per_vote:.1f}",
            str(s.nfe_per_vote_limit),
            f"{s.nfe_per_s:,.0f}",
            duration(s.worker_hours * 3600),
            round_radius_down(s.largest_radius, 3),
        )
        for s in sigmas
    ]
    print_table(TextTable(title, header, tuple(rows)))


def _say_costs(
    device: str, workers: int, estimated: "Estimate | PlainEstimate", costs: "Sequence[Bill]"
) -> None:
    from diffcert_ray.commands.progress import duration
    from diffcert_ray.report.text_table import TextTable

    out.print(
        f"{estimated.units:,} units, about {estimated.stored_bytes / 2**20:.1f} MiB stored; "
        f"{duration(estimated.worker_hours * 3600)} on one worker like this one ({device})"
    )
    if workers > 1:
        wall = duration(estimated.worker_hours / workers * 3600)
        out.print(f"{wall} on {workers} such workers, without their start")
    if costs:
        rows = [(c.name, f"{c.price:g}", f"{c.cost:,.2f}") for c in costs]
        print_table(TextTable("Cost", ("machine", "price of an hour", "all"), tuple(rows)))
