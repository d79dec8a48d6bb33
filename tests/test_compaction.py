"""Joining parts into few files: same rows, no half generation, sources only by request."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.errors import StoreError
from diffcert_ray.storage import compaction
from diffcert_ray.storage.compaction import CompactionReport, compact
from diffcert_ray.storage.schemas import UNIT_KEY, CertificateRow, UnitRow
from diffcert_ray.storage.sealed_json import seal, unseal
from diffcert_ray.storage.store import RunStore

UNIT = UnitRow(
    0.25, 7, "a1", "select", 0, 10, ALL_CLASSES, (1, 3), (4, 6), 120, 0.5, "cpu", "kind-a", "w", 0
)
CERTIFICATE = CertificateRow(
    0.25,
    7,
    3,
    3,
    True,
    False,
    0.3,
    0.9,
    0.0,
    0.0,
    9,
    10,
    10,
    10,
    0.001,
    "two-class",
    120,
    0.5,
    "epndc",
    "v1",
)


@pytest.fixture
def store(tmp_path):
    return RunStore.create(str(tmp_path / "run"), b"x = 1\n")


def put(store, *rows, certificates=()):
    with store.writer() as writer:
        writer.add_units(rows)
        writer.add_certificates(certificates)
    return next(name for name in store.location.list("units") if writer.name in name)


def unit(start, **other):
    return replace(UNIT, start=start, stop=start + 10, **other)


def starts(store):
    return store.units()["start"].to_pylist()


def manifest(store, generation):
    return json.loads(store.location.read(f"compact/{generation:06d}.json"))


def test_compacted_run_reads_the_same_and_later_parts_are_added(store):
    put(store, unit(0), unit(20), certificates=[CERTIFICATE])
    put(store, unit(10), unit(0, worker="w1"), certificates=[CERTIFICATE])
    before = store.units().to_pylist(), store.certificates().to_pylist()
    assert compact(store) == CompactionReport(generation=1, parts=4, rows=4, deleted=0)
    assert store.units().to_pylist() == before[0]
    assert store.certificates().to_pylist() == before[1]
    put(store, unit(5), unit(20))
    assert starts(store) == [0, 5, 10, 20]
    assert store.loose_part_count() == 1


def test_manifest_names_sources_rows_and_hashes(store):
    parts = sorted([put(store, unit(0)), put(store, unit(0), unit(10))])
    compact(store)
    units = manifest(store, 1)["units"]
    [file] = units["files"]
    assert units["sources"] == parts
    assert file["rows"] == pq.read_metadata(Path(store.address, file["name"])).num_rows == 2
    assert len(file["sha256"]) == 64


def test_nothing_loose_writes_nothing(store):
    assert compact(store) == CompactionReport(0, 0, 0, 0)
    put(store, unit(0))
    compact(store)
    files = sorted(Path(store.address).rglob("*"))
    assert compact(store) == CompactionReport(1, 0, 0, 0)
    assert sorted(Path(store.address).rglob("*")) == files


def test_next_generation_writes_only_new_rows_and_keeps_the_files_before_it(store):
    put(store, unit(0), unit(10))
    compact(store)
    put(store, unit(10), unit(20))
    assert compact(store).rows == 1
    names = [file["name"] for file in manifest(store, 2)["units"]["files"]]
    assert [pq.read_metadata(Path(store.address, name)).num_rows for name in names] == [2, 1]
    assert starts(store) == [0, 10, 20]


def test_many_rows_are_split_over_files_of_whole_parts(store, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_PER_FILE", 5)
    for low in range(0, 80, 20):
        put(store, unit(low), unit(low + 10), unit(0))
    put(store, *(unit(start) for start in range(100, 200, 10)))
    compact(store)
    files = manifest(store, 1)["units"]["files"]
    assert [file["rows"] for file in files] == [2, 2, 2, 2, 10]
    assert starts(store) == [*range(0, 80, 10), *range(100, 200, 10)]


def test_sources_go_only_when_asked_and_the_rows_stay(store):
    put(store, unit(0), certificates=[CERTIFICATE])
    put(store, unit(10))
    compact(store)
    assert len(store.location.list("units")) == 2
    assert compact(store, delete_sources=True) == CompactionReport(1, 0, 0, deleted=3)
    assert store.location.list("units") == store.location.list("certificates") == []
    assert starts(store) == [0, 10]
    assert store.certificates().num_rows == 1
    put(store, unit(20))
    compact(store, delete_sources=True)
    assert starts(store) == [0, 10, 20]


def test_writer_goes_on_over_a_compaction_without_a_false_gap(store):
    writer = store.writer()
    for start in range(0, 40, 10):
        writer.add_units([unit(start)])
        writer.flush(force=True)
        if start == 10:
            compact(store, delete_sources=True)
    assert starts(store) == [0, 10, 20, 30]
    assert len(store.location.list("units")) == 2


def test_generation_without_its_manifest_is_ignored(store, monkeypatch):
    put(store, unit(0))
    location = type(store.location)
    create = location.create

    def killed_before_the_manifest(self, name, data):
        if name.endswith(".json"):
            raise KeyboardInterrupt
        create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(location, "create", killed_before_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    [half] = os.listdir(Path(store.address, "compact"))
    assert store.loose_part_count() == 1
    assert starts(store) == [0]
    assert compact(store).generation == 1
    assert half not in manifest(store, 1)["units"]["files"][0]["name"]


def test_of_two_compactions_at_once_one_is_published_and_no_row_is_lost(store, monkeypatch):
    put(store, unit(0))
    original = compaction.write_rows
    raced = []

    def beaten(*arguments):
        files = original(*arguments)
        if not raced:
            raced.append(True)
            put(store, unit(10))
            compact(store, delete_sources=True)
        return files

    monkeypatch.setattr(compaction, "write_rows", beaten)
    compact(store, delete_sources=True)
    assert starts(store) == [0, 10]
    assert store.location.list("units") == []
    assert store.location.list("compact") == ["compact/000001.json"]
    written = {
        path.relative_to(store.address).as_posix()
        for path in Path(store.address, "compact").rglob("*.parquet")
    }
    assert written == {file["name"] for file in manifest(store, 1)["units"]["files"]}


def test_reader_overtaken_by_a_compaction_that_deletes_still_sees_every_row(store, monkeypatch):
    put(store, unit(0))
    put(store, unit(10))
    location = type(store.location)
    read = location.read
    overtaken = []

    def read_after_deletion(self, name):
        if name.startswith("units/") and not overtaken:
            overtaken.append(name)
            compact(store, delete_sources=True)
        return read(self, name)

    monkeypatch.setattr(location, "read", read_after_deletion)
    assert starts(RunStore.open(store.address)) == [0, 10]
    assert overtaken


def test_conflicting_rows_are_refused_also_against_compacted_ones(store):
    put(store, unit(0))
    compact(store, delete_sources=True)
    put(store, unit(0, counts=(5, 5)))
    with pytest.raises(StoreError, match=r"compact/000001-\w+/units-0000-[0-9a-f]{16}.parquet"):
        compact(store)


def test_first_stored_kind_and_the_number_differing_outlive_the_sources(store):
    put(store, unit(0), unit(10))
    put(store, unit(0, numerics="kind-b", counts=(5, 5)))
    for generation in (1, 2):
        compact(store, delete_sources=True)
        assert store.units()["counts"].to_pylist() == [[4, 6], [4, 6]]
        assert store.differing == generation
        put(store, unit(10, numerics="kind-b", counts=(5, 5)))


@pytest.mark.parametrize("harm", ["truncate", "delete", "exchange"])
def test_damaged_compacted_file_is_refused_or_replaced_by_its_sources(store, harm):
    put(store, unit(0), unit(10))
    compact(store)
    put(store, unit(20))
    path = Path(store.address, manifest(store, 1)["units"]["files"][0]["name"])
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    elif harm == "delete":
        path.unlink()
    else:  # a sound file, but not the one that the manifest names
        pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(StoreError, match=r"1 damaged files.*compact/000001"):
        store.units()
    with pytest.raises(StoreError, match="compact/000001"):
        compact(store, delete_sources=True)
    lenient = RunStore.open(store.address, on_damaged="recompute")
    assert starts(lenient) == [0, 10, 20]
    compact(lenient, delete_sources=True)
    assert starts(store) == [0, 10, 20]


def test_sources_stay_when_a_compacted_file_cannot_be_read_back(store, monkeypatch):
    name = put(store, unit(0))
    encode = compaction.encode
    monkeypatch.setattr(compaction, "encode", lambda *what: encode(*what)[:-1])
    with pytest.raises(StoreError, match="no source was deleted"):
        compact(store, delete_sources=True)
    assert store.location.list("units") == [name]


def test_compaction_under_recompute_gives_damaged_and_missing_parts_up_for_good(store):
    writer = store.writer()
    for start in (0, 10, 20, 30):
        writer.add_units([unit(start)])
        writer.flush(force=True)
    names = store.location.list("units")
    store.location.delete(names[1])
    Path(store.address, names[2]).write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="2 damaged files"):
        compact(store)
    compact(RunStore.open(store.address, on_damaged="recompute"), delete_sources=True)
    assert starts(store) == [0, 30]
    assert store.damaged == ()
    assert store.location.list("units") == names[2:3]  # kept for whoever looks into it
    missing = f"units/part-{writer.name}-000001*.parquet"
    assert manifest(store, 1)["units"]["given_up"] == [missing, names[2]]
    put(store, unit(10))  # computed again
    assert starts(store) == [0, 10, 30]


def test_damaged_manifest_is_refused_or_passed_over_as_asked(store):
    put(store, unit(0))
    compact(store)
    put(store, unit(10))
    compact(store)
    path = Path(store.address, "compact", "000002.json")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"000002.json is damaged .*on_damaged=.recompute"):
        store.units()
    lenient = RunStore.open(store.address, on_damaged="recompute")
    assert starts(lenient) == [0, 10]
    assert compact(lenient).generation == 3
    assert starts(store) == [0, 10]


def test_any_interleaving_of_writing_and_compacting_gives_the_oracle(tmp_path):
    rng = random.Random(11)
    for case in range(3):
        store = RunStore.create(str(tmp_path / str(case)), b"")
        expected = set()
        writers = [store.writer() for _ in range(3)]
        for _ in range(25):
            writer = rng.choice(writers)
            rows = [unit(10 * rng.randrange(30), image_id=rng.randrange(4)) for _ in range(4)]
            writer.add_units(rows)
            writer.flush(force=True)
            expected |= {tuple(getattr(row, name) for name in UNIT_KEY) for row in rows}
            if rng.random() < 0.2:
                compact(store, delete_sources=rng.random() < 0.5)
        table = store.units()
        assert table.num_rows == len(expected)
        found = zip(*(table[name].to_pylist() for name in UNIT_KEY), strict=True)
        assert list(found) == sorted(expected)


def test_pandas_reads_a_compacted_run_whose_sources_are_gone(store):
    put(store, unit(0), unit(10))
    compact(store, delete_sources=True)
    put(store, unit(10), unit(20))
    files = [f for part in ("units/*", "compact/*/units-*") for f in Path(store.address).glob(part)]
    frame = pd.concat(map(pd.read_parquet, files)).drop_duplicates(list(UNIT_KEY))
    assert np.sort(frame["start"]).tolist() == [0, 10, 20]


def rewritten(path, **other):
    """Put another document in place of a manifest, with its checksum."""
    path.write_bytes(seal(unseal(path.read_bytes()) | other))


def test_manifests_of_earlier_versions_are_read_in_runs_of_that_time_only(tmp_path):
    document = b'votes_id = "v1"\n[votes_identity]\nmethod_version = 1\n'
    store = RunStore.create(str(tmp_path / "run"), document)
    put(store, unit(0))
    compact(store, delete_sources=True)
    path = Path(store.address, "compact", "000001.json")
    old = unseal(path.read_bytes()) | {"version": 1}
    del old["losses"], old["votes_id"], old["method_version"]
    path.write_text(json.dumps(old))
    assert starts(store) == [0]
    put(store, unit(10))
    assert compact(store).generation == 2
    assert starts(store) == [0, 10]
    Path(store.address, "run.toml").write_bytes(document.replace(b"= 1", b"= 2"))
    Path(store.address, "compact", "000002.json").unlink()
    with pytest.raises(StoreError, match=r"000001.json is damaged .it has no checksum"):
        RunStore.open(store.address).units()


def test_manifest_of_a_later_version_another_number_or_another_run_is_refused(store):
    put(store, unit(0))
    compact(store)
    path = Path(store.address, "compact", "000001.json")
    whole = path.read_bytes()
    rewritten(path, version=4)
    with pytest.raises(StoreError, match="version 4, this program knows 3: upgrade"):
        store.units()
    rewritten(path, version=3, votes_id="other")
    with pytest.raises(StoreError, match=r"000001.json is damaged .*foreign.* votes_id other"):
        store.units()
    path.write_bytes(whole)
    path.with_name("000002.json").write_bytes(whole)
    with pytest.raises(StoreError, match=r"000002.json is damaged .it is of generation 1"):
        store.units()


def test_part_that_was_given_up_counts_again_once_it_is_restored(store):
    name = put(store, unit(0))
    put(store, unit(10))
    path = Path(store.address, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    compact(RunStore.open(store.address, on_damaged="recompute"), delete_sources=True)
    assert starts(store) == [10]
    path.write_bytes(whole)
    assert starts(store) == [0, 10]
    compact(store, delete_sources=True)
    assert not path.exists()
    assert starts(store) == [0, 10]
