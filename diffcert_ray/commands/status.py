"""Say how far a run is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffcert_ray.datasets import Dataset
    from diffcert_ray.stored_run import Run

from diffcert_ray.commands.arguments import RunArgument
from diffcert_ray.commands.screen import out
from diffcert_ray.commands.storage_options import StorageOption, storage_options


def status(run: RunArgument, storage: StorageOption = None) -> None:
    """Say how far a run is, also one that another machine is doing.

    [dim]diffcert status runs/digits[/]
    """
    from diffcert_ray.datasets import load_dataset
    from diffcert_ray.stored_run import open_run

    found = open_run(run, storage_options(storage))
    votes, certificates = found.config.votes, found.certificates()
    data = load_dataset(found.config.dataset, found.config.execution.storage_options)
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
