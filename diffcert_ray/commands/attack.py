"""``diffcert attack``: try to break what a run certified."""

from typing import TYPE_CHECKING, Annotated

import typer

from diffcert_ray.commands.arguments import AddressOption, JsonOption, RunArgument
from diffcert_ray.commands.exit_codes import FAILED
from diffcert_ray.commands.screen import err, out, print_json, print_table
from diffcert_ray.commands.storage_options import StorageOption, storage_options

if TYPE_CHECKING:
    from diffcert_ray.attack.image import ImageAttack
    from diffcert_ray.attack.run import Attack


def attack(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=1, help="Certificates to attack, at random")] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice, the searches and the fresh votes")
    ] = 0,
    votes: Annotated[int, typer.Option(min=1, help="Fresh votes at each attacked point")] = 500,
    alpha: Annotated[
        float, typer.Option(help="Probability of any false alarm inside the radii")
    ] = 1e-4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of projected gradient")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Directions of random search")] = 10,
    as_json: JsonOption = False,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Try to break certificates: gradients and random search, judged by fresh votes.

    Exit code 1 if any point inside a certified radius is confidently of another class; all about it
    is kept in RUN/attack/. Beyond the radius it looks where the class first changes.

    [dim]diffcert attack runs/digits --images 20[/]
    """
    from diffcert_ray.attack.run import as_json as figures
    from diffcert_ray.attack.run import attack_run
    from diffcert_ray.attack.search import Effort
    from diffcert_ray.commands.progress import CountedProgress
    from diffcert_ray.run.stored import open_run

    done, opened = 0, open_run(run, storage_options(storage))
    err.print(
        f"attacking up to {images} certificates of {run}: loading the network; a line for each, "
        "stored in attack/ as it is done",
        soft_wrap=True,
    )
    told = CountedProgress(err, "certificates attacked", every_s=0.0)

    def on_image(attacked: "ImageAttack", total: int) -> None:
        nonlocal done
        done += 1
        what = "BROKEN" if attacked.broken else f"first change at {_share(attacked)} of the radius"
        told(done, total, f"; image {attacked.image_id} at sigma {attacked.sigma:g}: {what}")

    result = attack_run(
        opened,
        images=images,
        seed=seed,
        votes=votes,
        alpha=alpha,
        effort=Effort(steps=steps, candidates=candidates),
        on_image=on_image,
        address=address,
    )
    if as_json:
        print_json({"run": run} | figures(result) | {"files": result.kept})
    else:
        _say(run, result)
    if result.broken:
        raise typer.Exit(FAILED)


def _say(run: str, result: "Attack") -> None:
    from diffcert_ray.certificates.radius import round_radius_down
    from diffcert_ray.report.text_table import TextTable

    judgement = result.judgement
    header = ("sigma", "image", "class", "radius", "first change", "share", "to class", "tries")
    rows = [
        (
            f"{one.sigma:g}",
            str(one.image_id),
            str(one.predicted),
            round_radius_down(one.radius, 3),
            "-" if one.changed_at is None else f"{one.changed_at:.3f}",
            _share(one),
            "-" if one.changed_at is None else str(one.changed_to),
            str(len(one.tries)),
        )
        for one in result.images
    ]
    print_table(TextTable(f"Attack on {run}", header, tuple(rows)))
    inside = sum(t.length < one.radius for one in result.images for t in one.tries)
    out.print(
        f"\n{inside} points inside {len(result.images)} radii (of {result.certified:,} "
        f"certificates with a radius) decided by {judgement.votes} fresh votes each, two-sided "
        f"binomial test at level {judgement.level:.2g} (alpha {judgement.alpha:g} over "
        f"{judgement.tries} tries); {result.votes:,} votes and {result.nfe:,} NFE in all, votes of "
        "searches included.",
    )
    if shares := sorted(one.share for one in result.images if one.share is not None):
        out.print(
            f"The class first changes at {shares[0]:.2f} (least) and "
            f"{shares[len(shares) // 2]:.2f} (median of {len(shares)}) times the radius."
        )
    out.print(f"kept: {', '.join(f'{run}/{name}' for name in result.kept)}", soft_wrap=True)
    if result.broken:
        shown = ", ".join(str(one.image_id) for one in result.broken[:20])
        out.print(
            f"[bold red]broken:[/] {len(result.broken)} certificates have another class inside "
            f"their radius (image {shown}). A certificate fails with probability alpha of the run; "
            "more than that is a bug: please report it with the files above"
        )
    else:
        out.print("no certificate was broken")


def _share(attacked: "ImageAttack") -> str:
    from diffcert_ray.certificates.radius import round_radius_down

    if attacked.share is not None:
        return f"{attacked.share:.2f}"
    return f"> {round_radius_down(attacked.furthest / attacked.radius, 2)}"
