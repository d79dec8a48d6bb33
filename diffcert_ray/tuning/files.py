"""The files that a tuning leaves in its folder."""

from pathlib import Path

from diffcert_ray.config.tables import SiftConfig
from diffcert_ray.report.text_table import markdown
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.views import replace_view
from diffcert_ray.tuning.choice import CONFIDENCE
from diffcert_ray.tuning.picture import pareto_pictures
from diffcert_ray.tuning.prepared import Prepared
from diffcert_ray.tuning.results import Results, configuration_of, csv_of, table_of
from diffcert_ray.tuning.training import HeadFile

TUNED = "tuned.toml"


def write_files(
    prepared: Prepared, location: Location, results: Results, head: HeadFile | None
) -> str:
    """Write all files.

    Args:
        prepared: the tuning.
        location: the output folder.
        results: of the tuning.
        head: for the configuration, where its rule needs one.

    Returns:
        Path of the configuration; of a copy of it where the output folder is remote.
    """
    sift = results.choice.taken.setting.sift
    if head is not None and sift.rule == "shortlist":
        final = {"head": head.source, "head_sha256": head.sha256}
        sift = SiftConfig.model_validate(sift.model_dump(exclude_unset=True) | final)
    about = _about(prepared, results)
    text = configuration_of(prepared.config, sift, about)
    table = markdown(table_of(results)) + "".join(f"\n{g.said()}\n" for g in results.gaps)
    title = f"{prepared.config.name}: the cheapest vote that agrees with the full one"
    files = {
        "settings.csv": csv_of(results),
        "settings.md": table.encode(),
        **pareto_pictures(results, title),
        TUNED: text.encode(),
    }
    for name, content in files.items():
        replace_view(location, name, content)
    if "://" not in location.address:
        return f"{location.address}/{TUNED}"
    here = Path("tuned", prepared.config.name, TUNED)  # certify reads configurations here only
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text(text, "utf-8")
    return str(here)


def _about(prepared: Prepared, results: Results) -> list[str]:
    """What a reader of the configuration should know."""
    choice = results.choice
    taken, one = choice.taken, choice.taken.measured[0]
    lines = [
        f"{prepared.config.name}, its [sift] chosen by `diffcert tune` among "
        f"{len(results.screened)} settings.",
        "",
        f"{taken.nfe:.2f} evaluations a vote; {100 * taken.agreement:.2f} % of votes equal to "
        f"those by {prepared.full.said()},",
        f"at least {100 * taken.bound:.2f} % with {100 * CONFIDENCE:g} % confidence "
        f"({len(one.agreeing)} images x {one.votes} votes, seed {prepared.tuning.votes.seed}).",
    ]
    if not choice.reached:
        lines += [f"This does not show the {100 * choice.target:g} % that were asked for."]
    return [*lines, *(gap.said() for gap in results.gaps)]
