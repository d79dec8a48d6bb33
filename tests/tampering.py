"""Edits of a run folder that a reader should notice, each with the reason where one cannot."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from diffcert_ray import certify, load_dataset, open_run
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.config.identity import canonical_hash, plan_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import DatasetConfig
from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.report.parquet_export import png
from diffcert_ray.storage.asked_images import store_asked
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.noted_kinds import note_kind
from diffcert_ray.storage.parts import part_name
from diffcert_ray.storage.schemas import CertificateRow, UnitRow
from diffcert_ray.storage.sealed_json import KEY, seal
from tests.edited_parts import copied_part, named_anew

N0, N, UNIT, SIGMA = 4, 20, 10, 0.25
OTHER_KIND = "0" * 12
ASKED = [0, 1, 2, 3]  # of six images

Certificates = list[CertificateRow]
Units = list[UnitRow]


@dataclass(frozen=True)
class Edit:
    """One way to change a run folder.

    Args:
        what: it does, in words for the table.
        apply: changes a copy of the run.
        why_not: why `report`, or nobody, notices it.
    """

    what: str
    apply: Callable[[Path], None]
    why_not: str = ""


def images(folder: Path) -> Path:
    """Six digits as a dataset: image 1 has a wrong label, image 2 is halfway between two digits."""
    digits = load_dataset(DatasetConfig())
    pixels = [digits.image(i) for i in digits.ids[:6].tolist()]
    labels = digits.labels[:6].tolist()
    labels[1] = (labels[1] + 1) % 10
    pixels[2] = (pixels[2] + pixels[3]) / 2
    folder.mkdir()
    pq.write_table(
        pa.table({"image": [png(p) for p in pixels], "label": labels}), folder / "test.parquet"
    )
    return folder


def made(folder: Path, dataset: Path, seed: int = 0) -> Path:
    """A small finished run of the first four."""
    votes = {"sigmas": [SIGMA], "n0": N0, "n": N, "unit": UNIT, "radii": [0.0], "seed": seed}
    about = {"name": "parquet", "path": str(dataset), "ids": ASKED, "num_classes": 10}
    about |= {"image_shape": [1, 8, 8]}
    tables = {"votes": votes, "noise_levels": {"levels": 6}, "dataset": about}
    certify(tables, folder, local=True)
    return folder


# ---- rows, rewritten as the store would have written them ---------------------------------------


def rows_of(folder: Path, kind: type) -> list:
    """The rows of a run, each once."""
    store = open_run(folder).store
    table = store.certificates() if kind is CertificateRow else store.units()
    names = [f.name for f in fields(kind)]
    return [
        kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in row.items() if n in names})
        for row in table.to_pylist()
    ]


def rewrite(folder: Path, part: str, rows: list) -> None:
    """Put other rows in the place of all that a folder of a run holds."""
    for file in (folder / part).iterdir():
        file.unlink()
    add(folder, rows)


def add(folder: Path, rows: list) -> None:
    """Store more rows, in a valid part."""
    with (
        mock.patch("diffcert_ray.storage.writer.check_unit", return_value=None),
        open_run(folder).store.writer() as writer,
    ):
        writer.add_certificates(r for r in rows if isinstance(r, CertificateRow))
        writer.add_units(r for r in rows if isinstance(r, UnitRow))


def certificates(change: Callable[[Certificates], Certificates]) -> Callable[[Path], None]:
    """An edit of the rows of certificates/."""
    return lambda run: rewrite(run, "certificates", change(rows_of(run, CertificateRow)))


def units(change: Callable[[Units], Units], fit: bool = False) -> Callable[[Path], None]:
    """An edit of the rows of units/; ``fit`` makes the certificates that the new counts give."""

    def apply(run: Path) -> None:
        changed = change(rows_of(run, UnitRow))
        rewrite(run, "units", changed)
        if fit:
            fitted = [refitted(c, changed) for c in rows_of(run, CertificateRow)]
            rewrite(run, "certificates", fitted)

    return apply


def refitted(row: CertificateRow, stored: Units) -> CertificateRow:
    """The certificate that some units give."""
    own = [u for u in stored if (u.image_id, u.sigma) == (row.image_id, row.sigma)]
    chosen: dict[int, int] = {}
    n_a = 0
    for unit in sorted(own, key=lambda u: u.stream, reverse=True):  # selection first
        for klass, count in zip(unit.classes, unit.counts, strict=True):
            if unit.stream == "select":
                chosen[klass] = chosen.get(klass, 0) + count
            elif klass == min(chosen, key=lambda c: (-chosen[c], c)):
                n_a += count
    return counted(row, min(chosen, key=lambda c: (-chosen[c], c)), n_a)


def counted(row: CertificateRow, klass: int, n_a: int) -> CertificateRow:
    """The same certificate with other counts, and all that follows from them."""
    given = executed_certificate(
        n_a, N, sigma=row.sigma, slack=row.slack, taken_off=row.taken_off, alpha=row.alpha
    )
    predicted = ABSTAIN if given.abstained else klass
    return replace(
        row, predicted=predicted, correct=predicted == row.label, abstained=given.abstained,
        radius=given.radius, p_low=given.p_low, n_a=n_a,
    )  # fmt: skip


def less_off(**columns: float) -> Callable[[CertificateRow], CertificateRow]:
    """Other slack or taken_off, and the p_low and radius that follow."""
    return lambda row: counted(replace(row, **columns), row.predicted, row.n_a)


def every(**columns: object) -> Callable[[list], list]:
    """Values for all rows."""
    return lambda rows: [replace(row, **columns) for row in rows]


def some(which: Callable[[object], bool], change: Callable[[object], object]) -> Callable:
    """A change of the first row that is so."""

    def apply(rows: list) -> list:
        first = next(i for i, row in enumerate(rows) if which(row))
        return [change(row) if i == first else row for i, row in enumerate(rows)]

    return apply


def without(which: Callable[[object], bool], first_only: bool = True) -> Callable[[list], list]:
    """Rows that are so are left out."""

    def apply(rows: list) -> list:
        out = [row for row in rows if which(row)]
        return [row for row in rows if row not in (out[:1] if first_only else out)]

    return apply


def certified(row: CertificateRow) -> bool:
    return not row.abstained


def abstained(row: CertificateRow) -> bool:
    return row.abstained


def wrong(row: CertificateRow) -> bool:
    return not row.correct


def estimates(row: UnitRow) -> bool:
    return row.stream == "estimate"


def selects(row: UnitRow) -> bool:
    return row.stream == "select"


def doubtful(row: UnitRow) -> bool:
    return estimates(row) and len(row.classes) > 1


def swapped(rows: list) -> list:
    """The two first image_ids, exchanged."""
    first, second = sorted({row.image_id for row in rows})[:2]
    other = {first: second, second: first}
    return [replace(row, image_id=other.get(row.image_id, row.image_id)) for row in rows]


def clearer(unit: UnitRow) -> UnitRow:
    """All votes for the class that has most."""
    best = unit.classes[unit.counts.index(max(unit.counts))]
    return replace(unit, classes=(best,), counts=(unit.stop - unit.start,))


def all_clearer(rows: Units) -> Units:
    return [clearer(row) for row in rows]


# ---- files --------------------------------------------------------------------------------------


def first_file(folder: Path) -> Path:
    return sorted(f for f in folder.iterdir() if f.is_file())[0]


def bytes_of(part: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """An edit of the bytes of the first file of a folder."""

    def apply(run: Path) -> None:
        file = first_file(run / part)
        file.write_bytes(change(file.read_bytes()))

    return apply


def flipped(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def renamed(part: str, name: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        file = first_file(run / part)
        file.rename(file.with_name(name))

    return apply


def deleted(part: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for file in (run / part).iterdir():
            file.unlink()

    return apply


@contextmanager
def document(run: Path) -> Iterator[dict]:
    """run.toml as tables, written back."""
    tables = tomllib.loads((run / "run.toml").read_text())
    yield tables
    (run / "run.toml").write_text(tomli_w.dumps(tables))


def toml(*changes: tuple[str, object], rehash: bool = False) -> Callable[[Path], None]:
    """An edit of keys of run.toml, "table.key"; ``rehash`` makes its hashes fit."""

    def apply(run: Path) -> None:
        with document(run) as tables:
            for path, value in changes:
                *outer, last = path.split("/")
                table = tables
                for key in outer:
                    table = table[key]
                table[last] = value
            if rehash:
                rehashed(tables)

    return apply


def rehashed(tables: dict) -> None:
    """Make the hashes of a run.toml fit what it says."""
    tables["votes_id"] = canonical_hash(tables["votes_identity"])
    config = load_config(tables["config"])
    tables["plan_id"] = canonical_hash(plan_identity(config, tables["votes_id"]))
    names = ("votes_id", "plan_id", "dataset", "versions", "notes_kinds")
    tables["document_id"] = canonical_hash({n: tables[n] for n in names if n in tables})


def other_kind_noted(run: Path) -> None:
    """Another numerics kind in all units, and a note that the run has met it."""
    store = open_run(run).store
    note_kind(store.location, store.origin, "w", OTHER_KIND, {})
    units(every(numerics=OTHER_KIND))(run)


def without_kinds(rehash: bool) -> Callable[[Path], None]:
    """Another kind in all units, no notes, and a run.toml that says nothing of such notes."""

    def apply(run: Path) -> None:
        units(every(numerics=OTHER_KIND))(run)
        deleted("kinds")(run)
        with document(run) as tables:
            del tables["notes_kinds"]
            if rehash:
                rehashed(tables)

    return apply


def note(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        asked = json.loads(data)
        change(asked)
        return json.dumps(asked, separators=(",", ":")).encode()

    return apply


def fewer(asked: dict) -> None:
    asked["image_ids"] = asked["image_ids"][:-1]


def last_note_gone(run: Path) -> None:
    """A later start asked for an image more, left nothing, and its note is deleted."""
    location = open_run(run).store.location
    before = set(location.list("asked"))
    store_asked(location, [SIGMA], [*ASKED, 5])
    for name in set(location.list("asked")) - before:
        location.delete(name)


def middle_note_gone(run: Path) -> None:
    """The same, but another start came after it."""
    location = open_run(run).store.location
    before = set(location.list("asked"))
    store_asked(location, [SIGMA], [*ASKED, 5])
    (gone,) = set(location.list("asked")) - before
    store_asked(location, [SIGMA], ASKED[:2])
    location.delete(gone)


def fewer_images(run: Path) -> None:
    """Everything of one image taken out, and everything that would tell made to fit."""
    gone = next(c.image_id for c in rows_of(run, CertificateRow) if wrong(c))
    ids = [i for i in ASKED if i != gone]
    for part, kind in (("units", UnitRow), ("certificates", CertificateRow)):
        rewrite(run, part, [row for row in rows_of(run, kind) if row.image_id != gone])
    deleted("asked")(run)
    toml(("config/dataset/ids", ids), ("dataset/images", len(ids)), rehash=True)(run)
    store_asked(open_run(run).store.location, [SIGMA], ids)


def kinds_of(other: Path) -> Callable[[Path], None]:
    """The notes of another run in place of this one's."""

    def apply(run: Path) -> None:
        deleted("kinds")(run)
        for note in (other / "kinds").iterdir():
            shutil.copy(note, run / "kinds")

    return apply


def image_gone(run: Path) -> None:
    gone = next(c.image_id for c in rows_of(run, CertificateRow) if wrong(c))
    for part, kind in (("units", UnitRow), ("certificates", CertificateRow)):
        rewrite(run, part, [row for row in rows_of(run, kind) if row.image_id != gone])


def compacted(delete: bool, change: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        compact(open_run(run).store, delete_sources=delete)
        change(run)

    return apply


def manifest(change: Callable[[dict], None], sealed: bool = False) -> Callable[[Path], None]:
    """An edit of the manifest; ``sealed``: with the checksum of its new bytes."""

    def apply(run: Path) -> None:
        (file,) = (run / "compact").glob("*.json")
        content = json.loads(file.read_bytes())
        change(content)
        file.write_text(json.dumps(content))
        if sealed:
            content.pop(KEY)
            file.write_bytes(seal(content))

    return apply


def no_parquet(run: Path) -> None:
    (run / part_name("units", "x", 0, b"nothing")).write_bytes(b"nothing")


def truncated(data: bytes) -> bytes:
    return data[:-100]


def truncated_anew(run: Path) -> None:
    file = first_file(run / "units")
    named_anew(file, truncated(file.read_bytes()))


def renamed_checksum(run: Path) -> None:
    file = first_file(run / "units")
    start, _, checksum = file.stem.rpartition("-")
    file.rename(file.with_name(f"{start}-{checksum[::-1]}.parquet"))


def copied(source: Path, target: Path) -> None:
    copied_part(first_file(source), "x", target)


def compacted_file(run: Path) -> None:
    (file,) = (run / "compact").glob("*/units*")
    file.write_bytes(flipped(file.read_bytes()))


def no_manifest(run: Path) -> None:
    next((run / "compact").glob("*.json")).unlink()


# ---- the edits ----------------------------------------------------------------------------------

CONSISTENT = "every number of the run fits every other: only casting votes again tells"


def edits(other: Path) -> list[Edit]:
    """All edits.

    Args:
        other: a run of the same configuration and another seed.
    """
    foreign_units, foreign = rows_of(other, UnitRow), rows_of(other, CertificateRow)

    def seeded(rows: Units) -> Units:
        """Units of another seed, said to be of this run's numerics kind."""
        return [replace(row, worker=rows[0].worker) for row in foreign_units]

    def refit(klass_of: Callable[[CertificateRow], int]) -> Callable:
        return lambda row: counted(row, klass_of(row), N)

    return [
        Edit(
            "all radii doubled",
            certificates(lambda rows: [replace(r, radius=2 * r.radius) for r in rows]),
        ),
        Edit(
            "one radius 0.1 % larger",
            certificates(some(certified, lambda r: replace(r, radius=1.001 * r.radius))),
        ),
        Edit(
            "p_low raised",
            certificates(some(certified, lambda r: replace(r, p_low=(1 + r.p_low) / 2))),
        ),
        Edit(
            "n_a raised, p_low and radius made to fit",
            certificates(some(lambda r: r.n_a < N, refit(lambda r: max(r.predicted, 0)))),
        ),
        Edit(
            "slack left out, p_low and radius made to fit",
            certificates(some(certified, less_off(slack=0.0))),
        ),
        Edit(
            "a smaller slack, p_low and radius made to fit",
            certificates(lambda rows: [less_off(slack=0.9 * r.slack)(r) for r in rows]),
        ),
        Edit(
            "taken_off left out, radius made to fit",
            certificates(some(certified, less_off(taken_off=0.0))),
        ),
        Edit(
            "a smaller taken_off, radius made to fit",
            certificates(lambda rows: [less_off(taken_off=0.99 * r.taken_off)(r) for r in rows]),
        ),
        Edit(
            "a larger taken_off, radius made to fit",
            certificates(lambda rows: [less_off(taken_off=1.5 * r.taken_off)(r) for r in rows]),
            "how far an image is from the grid needs its pixels, which a report does without",
        ),
        Edit(
            "taken_off far larger, radius made to fit",
            certificates(lambda rows: [less_off(taken_off=3 * r.taken_off)(r) for r in rows]),
        ),
        Edit(
            "`correct` turned to true",
            certificates(some(wrong, lambda r: replace(r, correct=True))),
        ),
        Edit(
            "a wrong class replaced by the label",
            certificates(
                some(
                    lambda r: certified(r) and wrong(r),
                    lambda r: replace(r, predicted=r.label, correct=True),
                )
            ),
        ),
        Edit(
            "an abstention turned into a certificate",
            certificates(
                some(
                    abstained,
                    lambda r: replace(
                        r, predicted=r.label, correct=True, abstained=False, radius=0.3
                    ),
                )
            ),
        ),
        Edit(
            "the same, with counts, p_low and radius made to fit",
            certificates(some(abstained, refit(lambda r: r.label))),
        ),
        Edit(
            "a certificate turned into an abstention",
            certificates(
                some(
                    certified,
                    lambda r: replace(r, predicted=-1, correct=False, abstained=True, radius=0.0),
                )
            ),
        ),
        Edit(
            "an image said to be unreadable",
            certificates(
                some(
                    certified,
                    lambda r: replace(
                        r,
                        predicted=-1,
                        correct=False,
                        abstained=True,
                        radius=0.0,
                        p_low=0.0,
                        n_a=0,
                        n=0,
                        nfe=0,
                        slack=0.0,
                        taken_off=0.0,
                    ),
                )
            ),
            "it counts as an abstention, which a report names; `verify` reads the image",
        ),
        Edit(
            "a label replaced by the class, `correct` made to fit",
            certificates(
                some(
                    lambda r: certified(r) and wrong(r),
                    lambda r: replace(r, label=r.predicted, correct=True),
                )
            ),
        ),
        Edit(
            "a class that does not exist",
            certificates(
                some(certified, lambda r: replace(r, predicted=12, label=12, correct=True))
            ),
        ),
        Edit("another alpha", certificates(every(alpha=0.01))),
        Edit("another bound", certificates(every(bound="sequential"))),
        Edit("a smaller n", certificates(every(n=N - UNIT))),
        Edit("another n0", certificates(every(n0=N0 + 1))),
        Edit("fewer selection votes used", certificates(every(n0_used=N0 - 1))),
        Edit(
            "a certificate said to be withdrawn",
            certificates(some(wrong, lambda r: replace(r, withdrawn=True))),
        ),
        Edit(
            "another sigma in certificates/",
            certificates(lambda rows: [replace(r, sigma=0.5, radius=r.radius * 2) for r in rows]),
        ),
        Edit("another method", certificates(every(method="epndc"))),
        Edit("another votes_id", certificates(every(votes_id="0" * 16))),
        Edit("image_ids of certificates exchanged", certificates(swapped)),
        Edit(
            "a certificate added with another radius",
            lambda run: add(
                run, [replace(next(filter(certified, rows_of(run, CertificateRow))), radius=2.0)]
            ),
        ),
        Edit("certificates of another seed added", lambda run: add(run, foreign)),
        Edit(
            "the same, under this run's votes_id",
            lambda run: add(
                run,
                [replace(r, votes_id=rows_of(run, CertificateRow)[0].votes_id) for r in foreign],
            ),
        ),
        Edit("a certificate of a wrong image left out", certificates(without(wrong))),
        Edit("all certificates left out", deleted("certificates")),
        Edit(
            "NFE of a certificate lowered",
            certificates(some(certified, lambda r: replace(r, nfe=r.nfe // 2))),
            "a cost, on which no accuracy or radius rests; `verify` adds the units up",
        ),
        Edit(
            "seconds of a certificate lowered",
            certificates(every(seconds=0.0)),
            "nobody can measure again how long a worker took",
        ),
        Edit("a unit left out", units(without(estimates))),
        Edit("a selection unit left out", units(without(selects))),
        Edit(
            "all units of an image left out",
            units(without(lambda r: r.image_id == 0, first_only=False)),
        ),
        Edit(
            "a unit stored twice",
            lambda run: add(run, rows_of(run, UnitRow)[:1]),
            "it changes nothing: a unit counts once",
        ),
        Edit("votes moved to the leading class", units(some(doubtful, clearer))),
        Edit(
            "the same in all units, certificates made to fit",
            units(all_clearer, fit=True),
            CONSISTENT,
        ),
        Edit(
            "counts that do not add up",
            units(some(estimates, lambda r: replace(r, counts=(r.counts[0] + 1, *r.counts[1:])))),
        ),
        Edit(
            "votes for a class that does not exist",
            units(some(selects, lambda r: replace(r, classes=(12,), counts=(r.stop - r.start,)))),
        ),
        Edit("another target", units(some(estimates, lambda r: replace(r, target=3)))),
        Edit(
            "NFE of a unit lowered, and of its certificate",
            lambda run: _nfe_of_both(run),
            CONSISTENT,
        ),
        Edit(
            "another pixel hash in one unit",
            units(some(estimates, lambda r: replace(r, image_sha="0" * 16))),
        ),
        Edit(
            "another pixel hash in all units of an image",
            units(
                lambda rows: [
                    replace(r, image_sha="0" * 16) if r.image_id == 0 else r for r in rows
                ]
            ),
            "pixels are in the dataset, which a report does without",
        ),
        Edit("image_ids of units exchanged", units(swapped)),
        Edit(
            "the same, pixel hashes and certificates made to fit",
            units(_swapped_whole, fit=True),
            CONSISTENT,
        ),
        Edit("units of another seed added", lambda run: add(run, foreign_units)),
        Edit(
            "units of another seed in place of the run's, certificates made to fit",
            units(seeded, fit=True),
            CONSISTENT,
        ),
        Edit(
            "units of another sigma added",
            lambda run: add(run, [replace(r, sigma=0.5) for r in rows_of(run, UnitRow)]),
        ),
        Edit(
            "units beyond n added",
            lambda run: add(
                run,
                [
                    replace(r, start=N, stop=N + UNIT)
                    for r in filter(estimates, rows_of(run, UnitRow))
                ],
            ),
        ),
        Edit(
            "a unit off the grid of units",
            units(some(estimates, lambda r: replace(r, start=r.start + 1, stop=r.stop + 1))),
        ),
        Edit(
            "units of an image that was not asked for",
            lambda run: add(run, [replace(r, image_id=5) for r in rows_of(run, UnitRow)[:1]]),
        ),
        Edit(
            "seconds, device and worker of units",
            units(every(seconds=0.0, device="abacus", worker="nobody")),
            "nobody can ask again who computed, and how long",
        ),
        Edit(
            "the numerics kind of all units",
            units(every(numerics=OTHER_KIND)),
        ),
        Edit(
            "the numerics kind of one unit",
            units(some(estimates, lambda r: replace(r, numerics=OTHER_KIND))),
        ),
        Edit(
            "the same, of all units, with a note of that kind",
            other_kind_noted,
            "other processors are honest too; `verify` counts units it cannot repeat in bits",
        ),
        Edit("the note of the numerics kind deleted", deleted("kinds")),
        Edit("a bit of the note flipped", bytes_of("kinds", flipped)),
        Edit("the note renamed to another kind", renamed("kinds", f"{OTHER_KIND}-w.json")),
        Edit("the note of another seed's run in its place", kinds_of(other)),
        Edit(
            "another kind in all units, notes and their mention in run.toml deleted",
            without_kinds(rehash=False),
        ),
        Edit(
            "the same, its hashes made to fit",
            without_kinds(rehash=True),
            "it is now a run of before there were such notes: `verify` says that it could not look",
        ),
        Edit("a wrong image left out everywhere", image_gone),
        Edit(
            "the same, with asked/, run.toml and all hashes made to fit",
            fewer_images,
            "it is now a run of fewer images, with another plan_id: announce the plan_id before",
        ),
        Edit("seed changed in run.toml's [config]", toml(("config/votes/seed", 7))),
        Edit(
            "seed changed in both places",
            toml(("config/votes/seed", 7), ("votes_identity/votes.seed", 7)),
        ),
        Edit(
            "the same, hashes made to fit",
            toml(("config/votes/seed", 7), ("votes_identity/votes.seed", 7), rehash=True),
        ),
        Edit("n raised in run.toml", toml(("config/votes/n", 2 * N))),
        Edit(
            "n raised in run.toml, hashes made to fit", toml(("config/votes/n", 2 * N), rehash=True)
        ),
        Edit(
            "alpha changed in run.toml, hashes made to fit",
            toml(("config/votes/alpha", 0.01), rehash=True),
        ),
        Edit("fewer images in run.toml's [config]", toml(("config/dataset/ids", ASKED[:2]))),
        Edit("fewer images in run.toml's [dataset]", toml(("dataset/images", 2))),
        Edit("another image shape in run.toml", toml(("dataset/image_shape", [3, 8, 8]))),
        Edit(
            "another image shape, hashes made to fit",
            toml(("dataset/image_shape", [3, 8, 8]), rehash=True),
        ),
        Edit(
            "method_version 1 in run.toml, hashes made to fit",
            toml(("votes_identity/method_version", 1), rehash=True),
        ),
        Edit("versions in run.toml", toml(("versions/torch", "0.1"))),
        Edit("run.toml deleted", lambda run: (run / "run.toml").unlink()),
        Edit("fewer images in a note of asked/", bytes_of("asked", note(fewer))),
        Edit("the note of asked/ deleted", deleted("asked")),
        Edit("the note renamed", renamed("asked", "0123456789abcdef.json")),
        Edit("the note of an earlier start deleted, which left no votes", middle_note_gone),
        Edit(
            "the note of the last start deleted, which left no votes",
            last_note_gone,
            "nothing that this start left tells of it",
        ),
        Edit("a bit of a part flipped", bytes_of("units", flipped)),
        Edit("a part truncated", bytes_of("units", truncated)),
        Edit("a part truncated, its checksum made to fit", truncated_anew),
        Edit("a part renamed to another checksum", renamed_checksum),
        Edit(
            "a part of units of another seed's run added",
            lambda run: copied(other / "units", run / "units"),
        ),
        Edit(
            "a part of certificates of another seed's run added",
            lambda run: copied(other / "certificates", run / "certificates"),
        ),
        Edit("a part of units renamed to no part's name", renamed("units", "aside.parquet")),
        Edit(
            "a part of certificates renamed to no part's name",
            renamed("certificates", "aside.parquet"),
        ),
        Edit("a file that is no Parquet, named as a part with its checksum", no_parquet),
        Edit("a bit of a compacted file flipped", compacted(True, compacted_file)),
        Edit(
            "a compacted file taken out of its manifest",
            compacted(True, manifest(lambda m: m["units"].update(files=[]))),
        ),
        Edit(
            "the same, its checksum made to fit",
            compacted(True, manifest(lambda m: m["units"].update(files=[]), sealed=True)),
        ),
        Edit(
            "the manifest deleted, with parts",
            compacted(False, no_manifest),
            "it changes nothing: the parts are read",
        ),
        Edit("the manifest deleted, without parts", compacted(True, no_manifest)),
    ]


def _swapped_whole(rows: Units) -> Units:
    """Units of two images exchanged, each with the pixel hash of the image that it is put under."""
    sha = {row.image_id: row.image_sha for row in rows}
    return [replace(row, image_sha=sha[row.image_id]) for row in swapped(rows)]


def _nfe_of_both(run: Path) -> None:
    before = rows_of(run, UnitRow)
    changed = some(estimates, lambda r: replace(r, nfe=r.nfe - 5))(before)
    image = next(a.image_id for a, b in zip(before, changed, strict=True) if a != b)
    rewrite(run, "units", changed)
    rows = rows_of(run, CertificateRow)
    rewrite(
        run, "certificates", [replace(r, nfe=r.nfe - 5) if r.image_id == image else r for r in rows]
    )
