"""``diffcert plan``: say what a run will take."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcert_ray.commands.arguments import (
    AddressOption,
    ConfigArgument,
    ImagesOption,
    JsonOption,
    PriceOption,
    SetOption,
    image_range,
    prices_of,
)
from diffcert_ray.commands.screen import err, escaped, out, print_json, print_table
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options
from diffcert_ray.config.loading import load_config

if TYPE_CHECKING:
    from diffcert_ray.engine.worker import WorkerSpec
    from diffcert_ray.run.estimate import Bill, Estimate, PlainEstimate, SigmaEstimate


def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    images: ImagesOption = None,
    price: PriceOption = None,
    workers: Annotated[int, typer.Option(min=1, help="At work at the same time")] = 1,
    as_json: JsonOption = False,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Say what a run will take, measured on a few votes; stores nothing.

    [dim]diffcert plan digits --set votes.n=10000[/]
    [dim]diffcert plan my.toml --workers 8 --price spot=0.35 --price on-demand=1.20[/]
    [dim]diffcert plan my.toml --address auto[/]
    """
    from diffcert_ray.datasets import check_images, load_dataset
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec
    from diffcert_ray.run.devices import at_a_worker
    from diffcert_ray.run.estimate import bills
    from diffcert_ray.run.head_check import check_head
    from diffcert_ray.run.plan import plan_of
    from diffcert_ray.run.preflight import check_plan, leave_out_corrupt

    prices = prices_of(price)
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
    own = data if address is None else None  # a worker elsewhere reads its own images
    spec = WorkerSpec(settings, weights, dataset=own)
    measured = partial(_measured, spec, asked, data.num_classes)
    device, estimated, warnings = at_a_worker(measured, settings.execution, address=address)
    warnings = [*data.notes, *warnings]
    costs = bills(estimated.worker_hours, prices, workers)
    if as_json:
        print_json(_figures(settings.name, device, workers, estimated, costs, warnings))
        return
    if estimated.sigmas:
        title = f"{settings.name}: {estimated.images} images, {settings.votes.bound}"
        _say_sigmas(title, estimated.sigmas)
    out.print(estimated.said(settings.name))
    if data.mapping:
        out.print(escaped(data.mapping), soft_wrap=True)
    _say_costs(device, workers, estimated, costs)
    for warning in warnings:
        out.print(f"[bold]warning:[/] {escaped(warning)}")


def _measured(
    spec: "WorkerSpec", asked: Any, classes: int, device: str
) -> "tuple[str, Estimate | PlainEstimate, list[str]]":
    """The device's name, and what `Kind.estimate` says of a worker on it."""
    from diffcert_ray.denoisers.device import device_name
    from diffcert_ray.run.calibration import usual_numerics
    from diffcert_ray.run.kind import kind_of

    numerics = usual_numerics(spec.config, device)
    config = spec.config.model_copy(update={"numerics": numerics})
    worker = replace(spec, config=config, device=device).load("plan")
    estimated, warnings = kind_of(config).estimate(config, asked, worker, classes)
    return device_name(device), estimated, warnings


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
