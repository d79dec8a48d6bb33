"""After a run was certified again with recompute-damaged, every reader opens it as it is."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffcert_ray import certify, open_run
from diffcert_ray.commands.main import app
from diffcert_ray.errors import StoreError
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.storage.activity import newest_writes
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.parts import Damage
from diffcert_ray.storage.sealed_json import seal, unseal
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.superseded import FOLDER, store_superseded
from tests.edited_parts import flipped
from tests.worlds import counts_of, settings


def run_of(world, folder, on_damaged="refuse", pieces=False):
    """A start of the run; in pieces, its units lie in many parts."""
    execution = {"item_s": 0.01, "flush_s": 1e-3} if pieces else {}
    return certify(
        settings(execution=execution), folder, local=True, denoiser=world[0], dataset=world[1],
        on_damaged=on_damaged,
    )  # fmt: skip


def files_of(folder):
    """Every file of results, the markers aside."""
    return {path for path in Path(folder).rglob("*") if path.suffix in (".parquet", ".json")}


def harm(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[:-20] if how == "truncated" else flipped(data, 4000))


def opens_everywhere(folder, clean):
    """Readers, a plain start and a compaction take the run as it is, with equal counts."""
    run = open_run(folder)
    assert counts_of(run) == counts_of(clean)
    columns = ["image_id", "predicted", "n_a", "n", "radius"]
    assert run.certificates()[columns].equals(clean.certificates()[columns])
    assert len(series_of_run(run)) == 1
    assert sum(run.asked().values()) == 6
    newest_writes(run.store, "units")
    said = CliRunner().invoke(app, ["status", str(folder)])
    assert "complete" in said.output
    assert said.exit_code == 0


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "deleted"])
@pytest.mark.parametrize("of", ["units", "certificates"])
def test_a_harmed_part_is_superseded_in_every_round(world, clean, tmp_path, how, of):
    folder = tmp_path / "run"
    run_of(world, folder, pieces=True)
    for _ in range(3):
        parts = sorted((folder / of).iterdir())
        sound = [p for p in parts if p.stat().st_size and not named(folder, p)]
        hurt = next(p for p in sound if has_later(p, sound))
        harm(hurt, how)
        kept = files_of(folder)
        with pytest.raises(StoreError, match="1 damaged files"):
            run_of(world, folder)
        assert run_of(world, folder, "recompute").outcome.complete
        assert kept <= files_of(folder)  # nothing is deleted
        opens_everywhere(folder, clean)
        assert run_of(world, folder).outcome.nfe == 0
    compact(RunStore.open(str(folder)), delete_sources=True)
    opens_everywhere(folder, clean)


def named(folder, part):
    return any(part.name in note.read_text() for note in (folder / FOLDER).glob("*"))


def has_later(part, parts):
    """Whether its writer has a later part: else its deletion leaves no gap."""
    stem = part.name.rsplit("-", 2)[0]
    return [p for p in parts if p.name.startswith(stem)][-1] != part


def test_harmed_compactions_and_manifests_are_superseded(world, clean, tmp_path):
    folder = tmp_path / "run"
    run_of(world, folder)
    for kind in ("*/units-*", "*/certificates-*", "*.json"):
        for delete in (False, True):
            compact(RunStore.open(str(folder)), delete_sources=delete)
            store = RunStore.open(str(folder))
            found = sorted((folder / "compact").glob(kind))
            used = [p for p in found if not named(folder, p)][-1]
            harm(used, "flipped" if used.stat().st_size > 600 else "truncated")
            with pytest.raises(StoreError, match=f"damaged.*{used.name}|{used.name}.*damaged"):
                (store.units(), store.certificates())
            assert run_of(world, folder, "recompute").outcome.complete
            opens_everywhere(folder, clean)
            assert run_of(world, folder).outcome.nfe == 0


def test_foreign_files_are_named_and_set_aside(world, clean, tmp_path):
    folder = tmp_path / "run"
    run_of(world, folder)
    for of in ("units", "losses", "certificates"):
        (folder / of).mkdir(exist_ok=True)
        (folder / of / "part-notes.parquet").write_bytes(b"of somebody")
    with pytest.raises(StoreError, match=r"1 foreign files in .*/part-notes.parquet .foreign: "):
        run_of(world, folder)
    assert run_of(world, folder, "recompute").outcome.nfe == 0
    opens_everywhere(folder, clean)
    compact(RunStore.open(str(folder)), delete_sources=True)
    opens_everywhere(folder, clean)
    for of in ("units", "losses", "certificates"):
        assert (folder / of / "part-notes.parquet").read_bytes() == b"of somebody"


def test_a_note_cannot_hide_a_whole_part(world, clean, tmp_path):
    folder = tmp_path / "run"
    run = run_of(world, folder, pieces=True)
    part = run.store.location.list("units")[0]
    store_superseded(run.store.location, run.store.origin, [Damage(part, "so it says")], "somebody")
    for on_damaged in ("refuse", "recompute"):
        store = RunStore.open(str(folder), on_damaged=on_damaged)
        with pytest.raises(StoreError, match=rf"{FOLDER}/\S+ says that {part} is damaged .*delete"):
            store.units()
    [note] = (folder / FOLDER).iterdir()
    note.unlink()
    compact(run.store)
    [manifest] = run.store.location.list("compact")
    [compacted] = (folder / "compact").glob("*/units-*")
    for name in (manifest, str(compacted.relative_to(folder))):
        location, origin = run.store.location, run.store.origin
        store_superseded(location, origin, [Damage(name, "so it says")], "somebody")
        with pytest.raises(StoreError, match=rf"says that {name} is damaged"):
            run.store.units()
        [note] = (folder / FOLDER).iterdir()
        note.unlink()
    opens_everywhere(folder, clean)


def test_a_superseded_part_that_is_restored_is_named_with_its_note(world, clean, tmp_path):
    folder = tmp_path / "run"
    run_of(world, folder, pieces=True)
    hurt = sorted((folder / "units").iterdir())[0]
    whole = hurt.read_bytes()
    harm(hurt, "truncated")
    run_of(world, folder, "recompute")
    hurt.write_bytes(whole)
    with pytest.raises(StoreError, match=r"restored from a copy.*delete that note"):
        open_run(folder).units()
    [note] = (folder / FOLDER).iterdir()
    note.unlink()
    opens_everywhere(folder, clean)


@pytest.mark.parametrize("change", ["flipped", "another votes_id", "another version", "no seal"])
def test_a_note_that_cannot_be_believed_silences_nothing(world, clean, tmp_path, change):
    folder = tmp_path / "run"
    run_of(world, folder, pieces=True)
    harm(sorted((folder / "units").iterdir())[0], "truncated")
    run_of(world, folder, "recompute")
    [note] = (folder / FOLDER).iterdir()
    data = note.read_bytes()
    document = unseal(data)
    note.write_bytes(
        {
            "flipped": flipped(data, 2000),
            "another votes_id": seal(document | {"votes_id": "other"}),
            "another version": seal(document | {"method_version": 99}),
            "no seal": json.dumps(document).encode(),
        }[change]
    )
    with pytest.raises(StoreError, match=f"1 damaged files.*{note.name}"):
        open_run(folder).units()
    run_of(world, folder, "recompute")
    opens_everywhere(folder, clean)


def test_a_start_that_was_stopped_supersedes_nothing(world, clean, tmp_path):
    folder = tmp_path / "run"
    run_of(world, folder)
    harm(next((folder / "units").iterdir()), "truncated")
    certify(
        settings(), folder, local=True, denoiser=world[0], dataset=world[1],
        on_damaged="recompute", should_stop=lambda: True,
    )  # fmt: skip
    assert not (folder / FOLDER).exists()
    with pytest.raises(StoreError, match="1 damaged files"):
        open_run(folder).units()
    run_of(world, folder, "recompute")
    opens_everywhere(folder, clean)


def test_many_parts_are_superseded_at_once(world, clean, tmp_path):
    folder = tmp_path / "run"
    run_of(world, folder, pieces=True)
    shutil.rmtree(folder / "certificates")
    for part in (folder / "units").iterdir():
        harm(part, "truncated")
    run_of(world, folder, "recompute")
    opens_everywhere(folder, clean)
