"""Recompute what a run says."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffcert_ray.run.verification import Verification

from diffcert_ray.commands.arguments import JsonOption, RunArgument
from diffcert_ray.commands.screen import FAILED, INCOMPLETE, escaped, out, print_json
from diffcert_ray.commands.storage_options import StorageOption, storage_options


def verify(
    run: RunArgument,
    sample: Annotated[int, typer.Option(min=0, help="Units to evaluate again")] = 20,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the choice of units; drawn if not given")
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """Recompute every certificate from the counts, and a sample of the units from the images.

    Exit code 1 on any difference, 3 if there is none, but images have no certificate: the run is
    not finished, or somebody removed them. The units are drawn at random each time.
    To let others verify a run, share its folder and the checkpoint.

    [dim]diffcert verify runs/digits --sample 50[/]
    """
    from diffcert_ray.run.stored import open_run
    from diffcert_ray.run.verify import verify_run

    found = verify_run(open_run(run, storage_options(storage)), sample=sample, seed=seed)
    if as_json:
        share = {"missed_share": found.missed_share}
        print_json({"run": run, "same": not found.differences} | vars(found) | share)
    else:
        _say(found)
    if found.differences:
        raise typer.Exit(FAILED)
    if found.missing:
        raise typer.Exit(INCOMPLETE)


def _say(found: "Verification") -> None:
    kind = "" if found.same_numerics else " (units of another numerics kind among them)"
    out.print(
        f"{found.certificates:,} certificates recomputed from their counts, {found.units:,} units "
        f"({found.votes:,} votes, seed {found.seed}) evaluated again{kind}"
    )
    if found.missing:
        out.print(
            f"INCOMPLETE: {found.missing:,} images have no certificate: not finished, or removed; "
            "reports count them as not certified"
        )
    if found.units and found.missed_share:
        out.print(
            f"had {found.missed_share:.2%} of all {found.units_stored:,} units been changed, one "
            "would have been seen with 95 % probability; --sample looks at more"
        )
    for difference in found.differences[:20]:
        out.print(f"difference: {escaped(difference)}", soft_wrap=True)
    if found.differences:
        out.print(f"{len(found.differences)} differences")
    else:
        out.print("no difference")
