"""Say what a run will take."""

from typing import TYPE_CHECKING

from rich.table import Table

from diffcert_ray.config import load_config

if TYPE_CHECKING:
    pass

from diffcert_ray.commands.arguments import ConfigArgument, ImagesOption, SetOption, image_range
from diffcert_ray.commands.screen import out
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options


def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    images: ImagesOption = None,
    storage: StorageOption = None,
) -> None:
    """Say what a run will take, measured on a few votes; stores nothing.

    [dim]diffcert plan digits --set votes.n=10000[/]
    """
    from diffcert_ray.asked import plan_of
    from diffcert_ray.datasets import check_images, load_dataset
    from diffcert_ray.plain import PlainPlan
    from diffcert_ray.planning import estimate
    from diffcert_ray.preflight import check_plan, leave_out_corrupt
    from diffcert_ray.terminal import duration
    from diffcert_ray.worker import WorkerSpec, resolve_device, weights_of

    settings = with_storage_options(load_config(config, overrides or ()), storage)
    data = load_dataset(settings.dataset, settings.execution.storage_options)
    asked = plan_of(settings, data, image_range(images))
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
