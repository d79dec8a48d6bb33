"""``diffcert status``: say how far a run is."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffcert_ray.commands.arguments import JsonOption, RunArgument
from diffcert_ray.commands.screen import out, print_json
from diffcert_ray.commands.storage_options import StorageOption, storage_options

if TYPE_CHECKING:
    from diffcert_ray.run.stored import Run
    from diffcert_ray.storage.activity import Activity


def status(run: RunArgument, as_json: JsonOption = False, storage: StorageOption = None) -> None:
    """Say how far a run is, also one that another machine is doing.

    Needs neither the images nor the checkpoint. The speed is that of the last parts stored.

    [dim]diffcert status runs/digits[/]
    [dim]diffcert status s3://bucket/run1 --json[/]
    """
    from diffcert_ray.run.stored import open_run
    from diffcert_ray.storage.activity import activity, newest_writes

    opened = open_run(run, storage_options(storage))
    plain = opened.config.without_votes
    standing = _plain_standing(opened) if plain else _standing(opened)
    writes = newest_writes(opened.store, "losses" if plain else "units")
    seen = activity(writes, time.time())
    if as_json:
        facts = vars(standing) | {"complete": standing.complete} | vars(seen)
        identity = {"votes_id": opened.document.votes_id, "plan_id": opened.document.plan_id}
        print_json({"run": opened.address} | identity | facts)
        return
    what = "draws" if plain else "votes"
    most = " at most" if opened.config.votes.bound == "sequential" else ""
    scope = "without votes" if plain else "(images x sigmas)"
    out.print(f"run        {opened.address}", soft_wrap=True)
    out.print(f"votes_id   {opened.document.votes_id}")
    out.print(f"images     {standing.certified:,} of {standing.images:,} certified {scope}")
    out.print(f"{what}      {standing.votes:,} of {standing.votes_asked:,}{most}")
    out.print(f"numerics   {', '.join(standing.numerics) or '-'}")
    out.print(f"written    {_written(seen, what)}")
    out.print(f"state      {_state(standing, seen)}", soft_wrap=True)


@dataclass(frozen=True)
class Standing:
    """How far a run is: images (times sigmas) certified, votes (or draws) stored."""

    certified: int
    images: int
    votes: int
    votes_asked: int
    numerics: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every image has its certificate."""
        return self.certified >= self.images


def _standing(run: "Run") -> Standing:
    votes, certificates = run.config.votes, run.certificates()
    units = run.store.units(["sigma", "image_id", "start", "stop", "numerics"]).to_pandas()
    images = sum(run.asked().values())
    return Standing(
        certified=len(certificates[["sigma", "image_id"]].drop_duplicates()),
        images=images,
        votes=int((units["stop"] - units["start"]).sum()),
        votes_asked=images * (votes.n0 + votes.n),
        numerics=tuple(sorted(map(str, units["numerics"].unique()))),
    )


def _plain_standing(run: "Run") -> Standing:
    from diffcert_ray.storage.schemas import LOSS_UNIT_KEY

    table = run.store.losses().select([*LOSS_UNIT_KEY, "numerics"]).to_pandas()
    units = table.drop_duplicates(list(LOSS_UNIT_KEY))
    certified = run.certificates()["image_id"].nunique()
    images = sum(run.asked().values())
    return Standing(
        certified=certified,
        images=images,
        votes=int((units["stop"] - units["start"]).sum()),
        votes_asked=images * run.config.plain.draws,
        numerics=tuple(sorted(map(str, units["numerics"].unique()))),
    )


def _written(seen: "Activity", what: str) -> str:
    from diffcert_ray.commands.progress import duration

    if seen.last_s is None:
        return "-"
    rate = "" if seen.votes_per_s is None else f", {seen.votes_per_s:,.1f} {what}/s then"
    writers = "1 driver" if seen.writers == 1 else f"{seen.writers} drivers"
    return f"{duration(seen.last_s)} ago, by {writers}{rate}"


def _state(standing: Standing, seen: "Activity") -> str:
    from diffcert_ray.commands.progress import duration

    if standing.complete:
        return "complete"
    if not seen.alive:
        return "incomplete, and nobody seems to work on it: run certify again"
    left = None
    if seen.votes_per_s:
        left = max(standing.votes_asked - standing.votes, 0) / seen.votes_per_s
    working = "incomplete, somebody seems to work on it"
    return working if left is None else f"{working}: about {duration(left)} left"
