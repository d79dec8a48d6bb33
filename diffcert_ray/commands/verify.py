"""``diffcert verify``: recompute what a run says."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffcert_ray.run.verification import Verification

from diffcert_ray.commands.arguments import AddressOption, JsonOption, RunArgument
from diffcert_ray.commands.exit_codes import FAILED, INCOMPLETE
from diffcert_ray.commands.screen import err, escaped, out, print_json
from diffcert_ray.commands.storage_options import StorageOption, storage_options


def verify(
    run: RunArgument,
    sample: Annotated[int, typer.Option(min=0, help="Units to evaluate again")] = 20,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the choice of units; drawn if not given")
    ] = None,
    dataset_path: Annotated[
        str | None,
        typer.Option(
            help="Where the images are, if the run was made elsewhere", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Recompute every certificate from the counts, and a sample of the units from the images.

    What follows from other columns is compared everywhere, what only evaluation can tell (votes,
    NFE) in the sample, which is drawn at random each time. Exit code 1 on any difference, 3 if
    there is none, but images have no certificate: the run is not finished, or somebody removed
    them.
    To let others verify a run, share its folder and the checkpoint; --dataset-path says where they
    have the images.

    [dim]diffcert verify runs/digits --sample 50[/]
    [dim]diffcert verify s3://bucket/run1 --address auto[/]
    """
    from diffcert_ray.commands.progress import CountedProgress
    from diffcert_ray.run.stored import open_run
    from diffcert_ray.run.verify import verify_run

    opened = open_run(run, storage_options(storage), dataset_path=dataset_path)
    err.print(f"verifying {run}: reading its images and parts", soft_wrap=True)
    result = verify_run(
        opened,
        sample=sample,
        seed=seed,
        address=address,
        on_stage=lambda said: err.print(said, soft_wrap=True),
        on_unit=CountedProgress(err, "units evaluated again"),
    )
    if as_json:
        share = {"missed_share": result.missed_share}
        told = {k: v for k, v in vars(result).items() if k not in ("contradicted", "costs_too")}
        print_json({"run": run, "same": not result.differences} | told | share)
    else:
        _say(result)
    if result.differences:
        raise typer.Exit(FAILED)
    if result.missing:
        raise typer.Exit(INCOMPLETE)


def _say(result: "Verification") -> None:
    kind = "" if result.same_numerics else " (units of another numerics kind among them)"
    out.print(
        f"{result.certificates:,} certificates recomputed from their counts, {result.units:,} "
        f"units ({result.votes:,} votes, seed {result.seed}) evaluated again{kind}"
    )
    if result.missing:
        out.print(
            f"INCOMPLETE: {result.missing:,} images have no certificate: not finished, or removed; "
            "reports count them as not certified"
        )
    if result.other_method:
        out.print(
            f"the run is of method version {result.other_method}, and this program casts votes of "
            "another one: no unit can be evaluated again, only its certificates from its counts"
        )
    if not result.kinds_noted:
        out.print(
            "the run was begun before numerics kinds were noted: whether its units are of kinds "
            "that it met could not be checked"
        )
    if result.units and result.missed_share:
        out.print(
            f"had {result.missed_share:.2%} of all {result.units_stored:,} units been changed "
            "(votes, NFE or pixels), one would have been seen with 95 % probability; --sample "
            "looks at more"
        )
    if result.other_kinds:
        out.print(
            f"{result.other_kinds:,} of {result.units_stored:,} units are of numerics kinds that "
            "this machine does not have: rare votes of those may differ"
        )
    for difference in result.differences[:20]:
        out.print(f"difference: {escaped(difference)}", soft_wrap=True)
    if result.differences:
        out.print(f"{len(result.differences)} differences")
    else:
        out.print("no difference")
