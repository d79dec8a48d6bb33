"""A unit counts only if its numerics kind is noted, which happens before any unit is stored."""

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from diffcert_ray import certify, open_run
from diffcert_ray.attack.run import attack_run
from diffcert_ray.commands.main import app
from diffcert_ray.config.tables import Config
from diffcert_ray.errors import StoreError
from diffcert_ray.pool.local import LocalPool, Pool
from diffcert_ray.report.sources import open_sources
from diffcert_ray.run.verify import verify_run
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.local_folder import LocalFolder
from diffcert_ray.storage.noted_kinds import note_kind, read_kinds
from diffcert_ray.storage.schemas import UnitRow
from diffcert_ray.storage.store import RunStore
from tests.noting_pools import at_third_item
from tests.tampering import images, made, rehashed
from tests.test_store import UNIT
from tests.worlds import counts_of, settings

DOCUMENT = b'votes_id = "mine"\nnotes_kinds = true\n[votes_identity]\nmethod_version = 2\n'
NEVER_WAITS = {"item_s": 0.001, "flush_s": 0.001}


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> RunStore:
    """An empty run that notes its kinds, in a folder and on an object store."""
    if request.param == "local":
        return RunStore.create(str(tmp_path / "run"), DOCUMENT)
    endpoint = request.getfixturevalue("endpoint")
    address = request.getfixturevalue("address")
    return RunStore.create(address, DOCUMENT, {"endpoint_url": endpoint})


def put(store: RunStore, *rows: UnitRow, kinds: tuple[str, ...] = ()) -> None:
    with store.writer() as writer:
        for kind in kinds:
            writer.meet_kind(kind, {"computed_on": "abacus"})
        writer.add_units(rows)


def noted(store: RunStore) -> dict:
    return dict(read_kinds(store.location, store.origin).about)


def test_units_of_a_kind_that_no_note_names_are_refused_until_one_does(store):
    put(store, replace(UNIT, numerics="kind-a"), kinds=("kind-a",))
    assert store.units().num_rows == 1
    put(store, replace(UNIT, start=100, stop=200, numerics="kind-b"))
    for read in (store.units, store.done_units, lambda: compact(store)):
        with pytest.raises(StoreError) as caught:
            read()
        said = str(caught.value)
        assert f"unit of image {UNIT.image_id} at sigma 0.25, {UNIT.stream} votes 100:200" in said
        assert "numerics kind kind-b, which no note in kinds/ names" in said
        assert "units/part-" in said
        assert "Restore the notes of these kinds" in said
    put(store, kinds=("kind-b",))
    assert store.units().num_rows == 2
    compact(store, delete_sources=True)
    assert store.units().num_rows == 2
    assert set(noted(store)) == {"kind-a", "kind-b"}


def test_a_unit_of_several_workers_needs_the_notes_of_all_their_kinds(store):
    put(store, replace(UNIT, numerics="kind-a+kind-b"), kinds=("kind-a",))
    with pytest.raises(StoreError, match=r"kind-a\+kind-b, which no note"):
        store.units()
    put(store, kinds=("kind-b",))
    assert store.units().num_rows == 1


def test_a_kind_that_is_noted_is_not_noted_again(store):
    for _ in range(3):
        put(store, UNIT, kinds=(UNIT.numerics,))
    assert len(store.location.list("kinds")) == 1


def test_drivers_that_meet_a_kind_at_the_same_moment_both_note_it(store, monkeypatch):
    location, origin = store.location, store.origin
    create = type(location).create

    def meanwhile(self: Any, name: str, data: bytes) -> None:
        monkeypatch.undo()
        note_kind(location, origin, "w2", "kind-a", {"computed_on": "two"})
        create(self, name, data)

    monkeypatch.setattr(type(location), "create", meanwhile)
    note_kind(location, origin, "w1", "kind-a", {"computed_on": "one"})
    assert location.list("kinds") == ["kinds/kind-a-w1.json", "kinds/kind-a-w2.json"]
    assert noted(store) == {"kind-a": {"computed_on": "one"}}


def test_a_note_is_put_before_the_first_unit_of_its_kind(store, monkeypatch):
    location, names = type(store.location), []
    create = location.create

    def noting(self: Any, name: str, data: bytes) -> None:
        names.append(name.partition("/")[0])
        create(self, name, data)

    monkeypatch.setattr(location, "create", noting)
    put(store, UNIT, kinds=(UNIT.numerics,))
    assert names == ["kinds", "units"]


def test_nothing_is_stored_while_the_note_cannot_be(tmp_path, monkeypatch):
    store = RunStore.create(str(tmp_path / "run"), DOCUMENT)
    writer, create = store.writer(flush_s=0.0), LocalFolder.create

    def unwritable(self: Any, name: str, data: bytes) -> None:
        if name.startswith("kinds/"):
            raise StoreError("read-only")
        create(self, name, data)

    writer.meet_kind(UNIT.numerics, {})
    writer.add_units([UNIT])
    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "create", unwritable)
        assert not writer.flush()
        assert writer.pending == 1
        assert store.location.list("units") == []
    writer.close()
    assert store.units().num_rows == 1


def test_a_note_that_cannot_be_believed_names_nothing_and_is_in_nobodys_way(tmp_path):
    store = RunStore.create(str(tmp_path / "run"), DOCUMENT)
    put(store, UNIT, kinds=(UNIT.numerics,))
    [note] = (tmp_path / "run" / "kinds").iterdir()
    note.write_bytes(note.read_bytes().replace(b"abacus", b"cuneus"))
    with pytest.raises(StoreError, match=rf"of the notes, kinds/{note.name} cannot be believed"):
        store.units()
    put(store, kinds=(UNIT.numerics,))
    assert store.units().num_rows == 1


def test_a_run_begun_before_there_were_notes_is_read_and_gets_none(tmp_path):
    store = RunStore.create(str(tmp_path / "run"), DOCUMENT.replace(b"notes_kinds = true\n", b""))
    put(store, UNIT, kinds=(UNIT.numerics,))
    assert store.units().num_rows == 1
    assert store.location.list("kinds") == []


# ---- runs ---------------------------------------------------------------------------------------


def run_of(world, folder: Path, **given: Any):
    tables = settings(execution=NEVER_WAITS, noise_levels={"levels": 8})
    given = {"local": True} | given
    return certify(tables, folder, denoiser=world[0], dataset=world[1], **given)


def other_kind(spec: Any, config: Config) -> Pool:
    """A worker whose numbers are the same, and which says that they are of another kind."""
    pool = LocalPool(spec)
    pool._worker.numerics = "another"
    return pool


def test_a_run_notes_every_kind_that_joins_it_and_on_what_it_computes(world, tmp_path):
    def meanwhile() -> None:
        run_of(world, tmp_path / "run", pool=other_kind, local=False)

    run = run_of(world, tmp_path / "run", pool=at_third_item(meanwhile))
    kinds = noted(run.store)
    assert set(kinds) == {*run.outcome.numerics, "another"}
    assert set(run.units()["numerics"]) <= set(kinds)
    for about in kinds.values():
        assert "torch" in about["computed_on"]
        assert (about["batch"], about["dtype"], about["compile"]) == (32, "float32", False)


def test_every_reader_and_a_resume_refuse_a_run_whose_note_is_gone(world, tmp_path):
    run_of(world, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "kinds")
    run = open_run(tmp_path / "run")
    for reads in (
        run.certificates,
        lambda: open_sources([run.address]),
        lambda: attack_run(run),
        lambda: run_of(world, tmp_path / "run"),
    ):
        with pytest.raises(StoreError, match="which no note in kinds/ names"):
            reads()
    for command in ("report", "export", "status", "attack"):
        done = CliRunner().invoke(app, [command, run.address])
        assert done.exit_code == 1
        assert "no note in kinds/" in " ".join((done.output + str(done.exception)).split())


def test_recomputing_what_no_note_names_heals_the_run_for_any_kind(world, clean, tmp_path):
    """Also where the lost kind comes back later, whose files were set aside by then."""
    folder = tmp_path / "run"
    run_of(world, folder)
    shutil.rmtree(folder / "kinds")
    again = run_of(world, folder, pool=other_kind, on_damaged="recompute")
    assert again.outcome.complete
    assert again.outcome.nfe > 0
    run = open_run(folder)
    assert set(run.units()["numerics"]) == {"another"}
    kind = next(iter(clean.outcome.numerics))
    note_kind(run.store.location, run.store.origin, "w", kind, {})
    counts = counts_of(run)
    assert len(run.certificates()) == 6
    assert set(run.units()["numerics"]) == {kind}  # its parts sort first
    assert run_of(world, folder).outcome.nfe == 0
    assert counts_of(open_run(folder)) == counts


def test_recomputing_by_the_same_kind_leaves_a_run_that_all_readers_open(world, tmp_path):
    folder = tmp_path / "run"
    first = run_of(world, folder)
    [note] = (folder / "kinds").iterdir()
    note.write_bytes(note.read_bytes()[:-5])
    assert run_of(world, folder, on_damaged="recompute").outcome.complete
    assert counts_of(open_run(folder)) == counts_of(first)
    compact(open_run(folder).store, delete_sources=True)
    assert len(open_run(folder).certificates()) == 6


def test_verify_says_whether_kinds_could_be_checked(tmp_path):
    folder = made(tmp_path / "run", images(tmp_path / "images"))
    assert verify_run(open_run(folder), sample=0).kinds_noted
    assert "could not be checked" not in CliRunner().invoke(app, ["verify", str(folder)]).output
    tables = tomllib.loads((folder / "run.toml").read_text())
    del tables["notes_kinds"]
    rehashed(tables)
    (folder / "run.toml").write_text(tomli_w.dumps(tables))
    shutil.rmtree(folder / "kinds")
    found = verify_run(open_run(folder), sample=0)
    assert (found.kinds_noted, found.differences) == (False, [])
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 0
    assert "of kinds that it met could not be checked" in " ".join(done.output.split())


def test_losses_are_of_noted_kinds_too(world, tmp_path):
    tables = settings(
        votes={"bound": "local"}, method={"name": "dc"}, plain={"draws": 8, "unit": 4}
    )
    run = certify(tables, tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])
    assert set(noted(run.store)) == run.outcome.numerics
    shutil.rmtree(tmp_path / "run" / "kinds")
    with pytest.raises(StoreError, match=r"unit of image 100, draws 0:4 is of numerics kind"):
        open_run(tmp_path / "run").certificates()
