"""Whose votes a run folder holds: files of another run are named and refused, never adopted."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffcert_ray import certify, open_run
from diffcert_ray.config import identity
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.run.verify import verify_run
from diffcert_ray.storage import parts
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.origin import METHOD_VERSION_KEY, VOTES_ID_KEY, Origin
from diffcert_ray.storage.parts import part_name
from diffcert_ray.storage.schemas import SCHEMA_VERSION
from diffcert_ray.storage.store import RunStore
from tests.edited_parts import copied_part, edited, named_anew, unmarked
from tests.test_store import CERTIFICATE, UNIT
from tests.worlds import counts_of, settings


@pytest.fixture(autouse=True)
def a_program_of_version_2(monkeypatch):
    """Runs of version 2 are continued, as those of the version that a program knows are."""
    monkeypatch.setattr(identity, "METHOD_VERSION", 2)


def document(votes_id: str = "mine", version: int = 2) -> bytes:
    return f'votes_id = "{votes_id}"\n[votes_identity]\nmethod_version = {version}\n'.encode()


def store_of(folder: Path, run_document: bytes, **rows) -> RunStore:
    """A store with one part of units and one of certificates."""
    store = RunStore.create(str(folder), run_document)
    with store.writer() as writer:
        writer.add_units([UNIT])
        writer.add_certificates([CERTIFICATE])
    return store


def only(store: RunStore, folder: str) -> Path:
    [name] = store.location.list(folder)
    return Path(store.address, name)


def readings(store):
    """Every way to read both folders."""
    return [store.units, store.done_units, store.certificates, lambda: compact(store)]


def refused(store: RunStore, part: Path, why: str) -> None:
    """The part is named with the reason and the remedy; all readers of its folder refuse it."""
    folder = part.parent.name
    read = store.units if folder == "units" else store.certificates
    with pytest.raises(StoreError) as caught:
        read()
    message = str(caught.value)
    assert f"1 foreign files in {store.address}: {folder}/{part.name} (foreign: {why}" in message
    assert "Move them out of the run" in message
    assert "--recompute-damaged" in message
    with pytest.raises(StoreError, match="foreign"):
        compact(store)


def test_every_stored_file_says_votes_id_and_method_version(tmp_path):
    store = store_of(tmp_path / "run", document("abc", 7))
    compact(store)
    files = [path for path in Path(store.address).rglob("*.parquet")]
    assert len(files) == 4
    for path in files:
        metadata = pq.read_schema(path).metadata
        assert (metadata[VOTES_ID_KEY], metadata[METHOD_VERSION_KEY]) == (b"abc", b"7")


@pytest.mark.parametrize("folder", ["units", "certificates"])
@pytest.mark.parametrize("other", [document("yours"), document(version=3), document(version=1)])
def test_parts_copied_from_another_run_are_refused_by_name(tmp_path, folder, other):
    store = store_of(tmp_path / "run", document())
    part = only(store_of(tmp_path / "other", other), folder)
    copy = Path(shutil.copy(part, Path(store.address, folder)))
    refused(store, copy, "it holds votes of votes_id ")


@pytest.mark.parametrize(
    "gone", [(VOTES_ID_KEY,), (METHOD_VERSION_KEY,), (VOTES_ID_KEY, METHOD_VERSION_KEY)]
)
def test_parts_that_do_not_say_whose_they_are_are_refused(tmp_path, gone):
    store = store_of(tmp_path / "run", document())
    part = only(store, "units")
    table = pq.read_table(part)
    metadata = {k: v for k, v in table.schema.metadata.items() if k not in gone}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    refused(store, named_anew(part, sink.getvalue().to_pybytes()), "it holds votes of votes_id ")


def test_files_named_like_parts_are_refused_by_name(tmp_path):
    store = store_of(tmp_path / "run", document())
    part = only(store, "units")
    whole = part.read_bytes()
    for name, why in (
        ("part-w-000000.parquet", "its name has no checksum"),
        ("part-notes.parquet", "its name is no part's"),
        (part.name.replace(".parquet", " (1).parquet"), "its name is no part's"),
        (part.name.upper().replace("PART", "part").replace("PARQUET", "parquet"), "its name is"),
    ):
        copy = part.with_name(name)
        copy.write_bytes(whole)
        refused(store, copy, why)
        copy.unlink()
    for name in ("README.txt", ".part-w-000000.parquet", "part-w-000000.parquet.bak"):
        part.with_name(name).write_bytes(b"of somebody")
    assert store.units().num_rows == 1


def test_two_files_of_one_number_of_a_writer_are_refused(tmp_path):
    store = store_of(tmp_path / "run", document())
    part = only(store, "units")
    whole = part.read_bytes()
    changed = pq.read_table(part)
    column = changed.schema.get_field_index("numerics")  # else the two deliveries differ
    field = changed.schema.field(column)
    edited(part, changed.set_column(column, field, pa.array(["another"])))
    part.write_bytes(whole)
    with pytest.raises(StoreError, match=r"2 foreign files.*its number is that of units/part"):
        store.units()


def test_copies_of_the_runs_own_parts_under_another_writer_do_no_harm(tmp_path):
    store = store_of(tmp_path / "run", document())
    copied_part(only(store, "units"), "again")
    assert store.units().num_rows == 1


def test_a_compaction_copied_from_another_run_is_refused(tmp_path):
    store, other = (store_of(tmp_path / name, document(name)) for name in ("mine", "yours"))
    compact(other)
    shutil.copytree(Path(other.address, "compact"), Path(store.address, "compact"))
    for read in readings(store):
        with pytest.raises(StoreError, match=r"000001.json is damaged .foreign: .* votes_id yours"):
            read()


def test_runs_of_version_1_are_read_without_marks_or_checksums(tmp_path):
    store = store_of(tmp_path / "run", document(version=1))
    for folder in ("units", "certificates"):
        unmarked(only(store, folder))
    assert store.units().num_rows == store.certificates().num_rows == 1
    foreign = store_of(tmp_path / "other", document("yours", 1))
    shutil.copy(only(foreign, "units"), Path(store.address, "units"))
    with pytest.raises(StoreError, match="1 foreign files"):  # what says whose it is, is believed
        store.units()


def test_columns_that_a_schema_did_not_have_are_filled_in_its_files_only(tmp_path, monkeypatch):
    later = {"seconds": (SCHEMA_VERSION + 1, 0.25), "n0": (SCHEMA_VERSION + 1, ("n",))}
    for brought_by in (SCHEMA_VERSION + 1, SCHEMA_VERSION):
        monkeypatch.setattr(
            parts, "LATER_COLUMNS", {name: (brought_by, cell) for name, (_, cell) in later.items()}
        )
        store = store_of(tmp_path / str(brought_by), document())
        part = only(store, "certificates")
        edited(part, pq.read_table(part).drop_columns(["seconds", "n0"]))
        if brought_by > SCHEMA_VERSION:
            stored = store.certificates()
            assert stored["seconds"].to_pylist() == [0.25]
            assert stored["n0"].to_pylist() == stored["n"].to_pylist()
            only_n0 = store.read_rows("certificates", ["n0"]).table
            assert only_n0["n0"].to_pylist() == stored["n"].to_pylist()
        else:
            with pytest.raises(StoreError, match="1 damaged files"):
                store.certificates()


def test_a_run_document_that_is_no_toml_is_refused():
    with pytest.raises(StoreError, match="does not say whose votes"):
        Origin.of_document(b"votes_id = ")
    with pytest.raises(StoreError, match="does not say whose votes"):
        Origin.of_document(b"votes_identity = 3")


def test_part_names_are_told_apart_from_old_ones_whatever_the_digits():
    for name, number in (
        ("units/part-20260101T000000Z-123456789012-000007.parquet", 7),
        ("units/part-20260101T000000Z-123456789012-000007-1234567890123456.parquet", 7),
        ("units/part-20260101T000000Z-abcdefabcdef-1000000-abcdef0123456789.parquet", 1000000),
        ("units/part-20260101T000000Z-abcdefabcdef-000003*.parquet", 3),
    ):
        folder, writer, seq = parts.part_number(name)
        assert (folder, len(writer), seq) == ("units", 29, number)
    assert part_name("units", "w", 3, b"").startswith("units/part-w-000003-")


# --- whole runs


def run_of(world, folder, **tables):
    on_damaged = tables.pop("on_damaged", "refuse")
    return certify(
        settings(**tables), folder, local=True, denoiser=world[0], dataset=world[1],
        on_damaged=on_damaged,
    )  # fmt: skip


@pytest.mark.parametrize("of", ["units", "certificates"])
def test_results_of_another_seed_are_refused_then_set_aside_as_asked(world, clean, tmp_path, of):
    other = run_of(world, tmp_path / "other", votes={"seed": 1})
    run = run_of(world, tmp_path / "run")
    names = [
        Path(shutil.copy(part, tmp_path / "run" / of)).name
        for part in (tmp_path / "other" / of).iterdir()
    ]
    with pytest.raises(StoreError, match=f"foreign files.*{names[0]}.*{other.document.votes_id}"):
        run_of(world, tmp_path / "run")
    again = run_of(world, tmp_path / "run", on_damaged="recompute")
    assert again.outcome.nfe == 0
    assert counts_of(open_run(tmp_path / "run")) == counts_of(clean) == counts_of(run)
    assert (
        open_run(tmp_path / "run").certificates()["radius"].equals(clean.certificates()["radius"])
    )
    assert run_of(world, tmp_path / "run").outcome.complete


def test_runs_of_another_method_version_are_read_but_not_continued(world, tmp_path, monkeypatch):
    run_of(world, tmp_path / "run")
    expected = open_run(tmp_path / "run").certificates()
    ours = identity.METHOD_VERSION
    for version, remedy in ((ours + 1, "give another"), (ours - 1, "upgrade diffcert_ray, or")):
        monkeypatch.setattr(identity, "METHOD_VERSION", version)
        run = open_run(tmp_path / "run")
        assert run.certificates().equals(expected)
        with pytest.raises(ConfigError, match=f"version {ours}, .* version {version}: .*{remedy}"):
            run_of(world, tmp_path / "run")


def test_verify_and_report_say_that_a_run_is_of_another_method_version(tmp_path, monkeypatch):
    from diffcert_ray.report.sources import series_of_run

    tables = {"dataset": {"name": "digits", "first": 3}, "noise_levels": {"levels": 6}}
    tables["votes"] = {"sigmas": [0.25], "n0": 4, "n": 20, "unit": 10, "radii": [0.0]}
    run = certify(tables, tmp_path / "run", local=True)
    whole = verify_run(run, sample=5, seed=0)
    assert (whole.units, whole.other_method) == (5, 0)
    monkeypatch.setattr(identity, "METHOD_VERSION", identity.METHOD_VERSION + 1)
    found = verify_run(open_run(tmp_path / "run"), sample=5, seed=0)
    assert (found.certificates, found.units, found.differences) == (whole.certificates, 0, [])
    assert found.other_method == run.document.method_version
    (series,) = series_of_run(open_run(tmp_path / "run"))
    assert any("method version" in note for note in series.notes)
