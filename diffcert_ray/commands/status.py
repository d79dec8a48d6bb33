"""``diffcert status``: say how far a run is."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffcert_ray.commands.arguments import JsonOption, RunArgument
from diffcert_ray.commands.screen import escaped, out, print_json
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
    from diffcert_ray.run.budget import noted_budget
    from diffcert_ray.run.stored import open_run
    from diffcert_ray.storage.activity import activity, newest_writes

    opened = open_run(run, storage_options(storage))
    standing = _standing(opened)
    writes = newest_writes(opened.store, opened.kind.folder)
    seen, noted = activity(writes, time.time()), noted_budget(opened.store.location)
    if as_json:
        facts = vars(standing) | {"complete": standing.complete} | vars(seen)
        identity = {"votes_id": opened.document.votes_id, "plan_id": opened.document.plan_id}
        budget = {"budget": noted} if noted else {}
        print_json({"run": opened.address} | identity | facts | budget)
        return
    what = opened.kind.counted
    most = " at most" if opened.config.votes.bound == "sequential" else ""
    scope = "(images x sigmas)" if what == "votes" else "without votes"
    out.print(f"run        {opened.address}", soft_wrap=True)
    out.print(f"votes_id   {opened.document.votes_id}")
    out.print(f"images     {standing.certified:,} of {standing.images:,} certified {scope}")
    out.print(f"{what}      {standing.votes:,} of {standing.votes_asked:,}{most}")
    out.print(f"numerics   {', '.join(standing.numerics) or '-'}")
    out.print(f"written    {_written(seen, what)}")
    if noted:
        out.print(f"budget     {_budget(noted)}", soft_wrap=True)
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
    votes, each, kinds = run.kind.standing(run.config, run.store)
    certified = run.certificates()[["sigma", "image_id"]].drop_duplicates()
    images = sum(run.asked().values())
    return Standing(len(certified), images, votes, images * each, kinds)


def _written(seen: "Activity", what: str) -> str:
    from diffcert_ray.commands.progress import duration

    if seen.last_s is None:
        return "-"
    rate = "" if seen.votes_per_s is None else f", {seen.votes_per_s:,.1f} {what}/s then"
    writers = "1 driver" if seen.writers == 1 else f"{seen.writers} drivers"
    return f"{duration(seen.last_s)} ago, by {writers}{rate}"


def _budget(noted: dict[str, Any]) -> str:
    """What the last start with a budget has spent of it."""
    ended = f"; it stopped at {noted['reached']}" if noted.get("reached") else ""
    return escaped(f"{noted.get('budget', '?')} spent by the last start that had one{ended}")


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
