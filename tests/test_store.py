"""The run's folder on a local disk: atomic parts, repeats, damage, resume."""

import errno
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from diffcert_ray.errors import StoreError
from diffcert_ray.storage import local_folder
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.deliveries import Lists, packed_keys
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.parts import part_number
from diffcert_ray.storage.schemas import (
    CERTIFICATE_SCHEMA,
    UNIT_KEY,
    UNIT_SCHEMA,
    CertificateRow,
    UnitRow,
)
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.stored_rows import column_by_column
from tests.edited_parts import edited, named_anew

DOCUMENT = b'votes_id = "v1"\n'
UNIT = UnitRow(
    sigma=0.25,
    image_id=7,
    image_sha="a1b2",
    stream="estimate",
    start=0,
    stop=100,
    target=-1,
    classes=(3, 1),
    counts=(90, 10),
    nfe=1200,
    seconds=0.5,
    device="cpu",
    numerics="kind-a",
    worker="w0",
    attempt=0,
)
CERTIFICATE = CertificateRow(
    sigma=0.25,
    image_id=7,
    label=3,
    predicted=3,
    correct=True,
    abstained=False,
    radius=0.31,
    p_low=0.89,
    slack=1e-9,
    taken_off=6e-5,
    n_a=9000,
    n=10_000,
    n0=100,
    n0_used=100,
    alpha=0.001,
    bound="clopper-pearson",
    nfe=12_000,
    seconds=5.0,
    method="epndc",
    votes_id="v1",
)


@pytest.fixture
def store(tmp_path):
    return RunStore.create(str(tmp_path / "run"), DOCUMENT)


def put(store, *rows):
    """Store units as one part of a writer of its own; the part's name."""
    writer = store.writer()
    writer.add_units(rows)
    writer.close()
    [name] = [name for name in store.location.list("units") if writer.name in name]
    return name


def votes(store):
    """Stored counts by key, as the oracle has them."""
    return {
        tuple(row[name] for name in UNIT_KEY): dict(zip(row["classes"], row["counts"], strict=True))
        for row in store.units().to_pylist()
    }


def key(row):
    return tuple(getattr(row, name) for name in UNIT_KEY)


def held(done):
    """Keys of all done units."""
    return {
        (sigma, stream, *map(int, where))
        for (sigma, stream), group in done.groups.items()
        for where in zip(group.image_id, group.start, group.stop, group.target, strict=True)
    }


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# --- files appear whole, once


def test_second_create_of_a_name_is_refused_and_changes_nothing(tmp_path):
    location = open_location(str(tmp_path))
    location.create("a/b", b"one")
    with pytest.raises(FileExistsError, match="already stored"):
        location.create("a/b", b"two")
    assert location.read("a/b") == b"one"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_of_many_simultaneous_creates_exactly_one_wins(tmp_path):
    location = open_location(str(tmp_path))
    barrier, won = threading.Barrier(8), []

    def race(i):
        barrier.wait()
        try:
            location.create("x", bytes([i]) * 1000)
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert location.read("x") == bytes(won) * 1000


def test_kill_before_the_link_leaves_nothing_that_readers_see(tmp_path):
    program = (
        "import os, signal\n"
        "from diffcert_ray.storage.open_location import open_location\n"
        "os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"open_location({str(tmp_path)!r}).create('units/part-w-000000.parquet', b'x' * 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    left = os.listdir(tmp_path / "units")
    assert len(left) == 1  # the kill came after the temporary file was written
    assert (tmp_path / "units" / left[0]).read_bytes() == b"x" * 9
    location = open_location(str(tmp_path))
    assert location.list("units") == []
    assert ds.dataset(tmp_path / "units", format="parquet").files == []
    location.create("units/part-w-000000.parquet", b"y")
    assert location.list("units") == ["units/part-w-000000.parquet"]


def test_link_that_took_effect_though_it_reported_exists_counts_as_made(tmp_path, monkeypatch):
    link = os.link

    def repeated_over_nfs(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", repeated_over_nfs)
    location = open_location(str(tmp_path))
    location.create("x", b"data")
    assert location.read("x") == b"data"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no hard links"),
    ],
)
def test_unwritable_folder_is_found_before_the_run_with_a_remedy(
    tmp_path, monkeypatch, code, remedy
):
    def refused(*names):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StoreError, match=remedy):
        RunStore.create(str(tmp_path / "run"), DOCUMENT)
    assert list((tmp_path / "run").iterdir()) == []


def test_file_in_place_of_the_run_folder_is_named_with_a_remedy(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(StoreError, match=r"run/.*a file is in the way"):
        RunStore.create(str(tmp_path / "run"), DOCUMENT)


def test_location_that_overwrites_is_refused_by_the_preflight(tmp_path, monkeypatch):
    monkeypatch.setattr(local_folder, "link_new", lambda a, b: bool(os.replace(a, b)) or True)
    with pytest.raises(StoreError, match="ignores create-only writes"):
        open_location(str(tmp_path)).check_writable()


@pytest.mark.parametrize("address", ["", "s3://", "file:///"])
def test_address_that_names_no_folder_is_refused(address):
    with pytest.raises(ValueError, match="names no folder"):
        open_location(address)


def test_storage_options_for_a_local_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['key'\].*local folder"):
        open_location(str(tmp_path), {"key": "k"})


def test_units_whose_counts_are_not_their_votes_are_refused_on_reading(store):
    units = [
        replace(
            UNIT, image_id=image_id, start=start, stop=start + 10, classes=(1, 3), counts=(4, 6)
        )
        for image_id in (1, 2)
        for start in (0, 10)
    ]
    with store.writer() as writer:
        writer.add_units(units)
    (part,) = Path(store.address, "units").iterdir()
    table = pq.read_table(part)
    assert len(store.done_units()) == 4
    for name, cells in (
        ("counts", [[4, 6], [4, 6], [4, 7], [4, 6]]),
        ("counts", [[4, 6], [4, 6], [-1, 11], [4, 6]]),
        ("classes", [[1, 3], [1, 3], [3, 3], [1, 3]]),
        ("stop", [10, 20, 9, 20]),
    ):
        column = table.schema.get_field_index(name)
        values = pa.array(cells, table.schema.field(name).type)
        part = edited(part, table.set_column(column, table.schema.field(name), values))
        with pytest.raises(StoreError, match=r"unit of image 2 votes 0:\d+ has counts .*classes"):
            store.done_units()


# --- the run document


def test_run_document_is_written_first_and_only_once(tmp_path):
    address = str(tmp_path / "run")
    RunStore.create(address, DOCUMENT)
    assert os.listdir(address) == ["run.toml"]
    assert RunStore.create(address, DOCUMENT).run_document() == DOCUMENT  # started twice at once
    with pytest.raises(StoreError, match="already holds another run"):
        RunStore.create(address, b"other")
    assert RunStore.open(f"file://{address}").run_document() == DOCUMENT


@pytest.mark.parametrize("compacted", [False, True])
def test_rows_whose_run_document_is_gone_are_not_taken_over_by_another_run(store, compacted):
    with store.writer() as writer:
        writer.add_units([UNIT])
    if compacted:
        compact(store, delete_sources=True)
    os.remove(f"{store.address}/run.toml")
    left = "compact/" if compacted else "units/part-"
    with pytest.raises(StoreError, match=rf"no run\.toml, but \d+ files of a run, first {left}"):
        RunStore.create(store.address, DOCUMENT)
    assert not os.path.exists(f"{store.address}/run.toml")


def test_opening_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"no run at .*start a run there"):
        RunStore.open(str(tmp_path))
    assert not RunStore.exists(str(tmp_path))


# --- writing


def test_rows_come_back_with_their_types_units_of_measure_and_version(store):
    name = put(store, UNIT)
    [row] = store.units().to_pylist()
    assert UnitRow(**row | {"classes": (1, 3), "counts": (10, 90)}) == replace(
        UNIT, classes=(1, 3), counts=(10, 90)
    )
    assert (row["classes"], row["counts"]) == ([1, 3], [10, 90])
    schema = pq.read_schema(Path(store.address, name))
    assert schema.equals(UNIT_SCHEMA)
    assert schema.metadata[b"diffcert.schema"] == b"units/3"
    assert schema.field("seconds").metadata[b"unit"] == b"s"
    assert os.listdir(Path(store.address, "units")) == [name.removeprefix("units/")]


def test_certificates_keep_the_last_of_a_key_and_all_of_different_bounds(store):
    other = replace(CERTIFICATE, bound="sequential", radius=0.3)
    for rows in ([CERTIFICATE, other], [replace(CERTIFICATE, radius=0.32)]):
        with store.writer() as writer:
            writer.add_certificates(rows)
    radii = {row["bound"]: row["radius"] for row in store.certificates().to_pylist()}
    assert radii == {"clopper-pearson": 0.32, "sequential": 0.3}
    [part, _] = store.location.list("certificates")
    assert pq.read_schema(Path(store.address, part)).equals(CERTIFICATE_SCHEMA)


def test_rows_wait_at_most_the_flush_interval(store):
    clock = Clock()
    writer = store.writer(flush_s=30, clock=clock)
    writer.add_units([UNIT])
    clock.now += 29
    writer.add_units([replace(UNIT, start=100, stop=200)])
    assert not writer.flush()
    assert store.location.list("units") == []
    clock.now += 1
    assert writer.flush()
    assert store.units().num_rows == 2
    clock.now += 100
    assert writer.flush()
    assert len(store.location.list("units")) == 1  # nothing waits, nothing is written


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": (90, 9)},
        {"counts": (100,)},
        {"classes": (3, 3)},
        {"counts": (101, -1)},
        {"stream": "other"},
        {"start": 100},
        {"classes": (), "counts": ()},
    ],
)
def test_incomplete_unit_is_refused_and_nothing_of_its_delivery_taken(store, wrong):
    writer = store.writer()
    with pytest.raises(ValueError, match="unit"):
        writer.add_units([UNIT, replace(UNIT, **wrong)])
    assert writer.pending == 0


def test_full_disk_keeps_the_rows_and_a_later_flush_stores_them_once(store, monkeypatch):
    clock = Clock()
    writer = store.writer(flush_s=30, clock=clock, give_up_s=300)
    writer.add_units([UNIT])

    def full(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(local_folder, "write_durably", full)
        clock.now += 30
        assert not writer.flush()  # not yet an error: space may come back
        with pytest.raises(StoreError, match=r"the disk is full: free space.* 1 rows are not"):
            writer.close()
        clock.now += 299
        writer.add_units([replace(UNIT, image_id=8)])
        assert not writer.flush()
        clock.now += 6
        with pytest.raises(StoreError, match=r"2 rows are not stored \(unwritable for 305 s\)"):
            writer.flush()
        assert os.listdir(Path(store.address, "units")) == []
    writer.close()
    assert len(votes(store)) == 2
    assert writer.pending == 0
    assert len(store.location.list("units")) == 2  # numbered without a gap


def test_put_whose_answer_was_lost_is_recognised_as_its_own(store, monkeypatch):
    writer = store.writer()
    writer.add_units([UNIT])
    kind = type(store.location)
    create = kind.create

    def made_then_failed(self, name, data):
        create(self, name, data)
        raise StoreError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(kind, "create", made_then_failed)
        with pytest.raises(StoreError, match="connection reset"):
            writer.flush(force=True)
    writer.close()
    [name] = store.location.list("units")
    assert name.startswith(f"units/part-{writer.name}-000000-")
    assert writer.bytes_written == len(store.location.read(store.location.list("units")[0]))


# --- reading: at least once, counted once


def test_units_of_two_writers_are_joined_and_repeats_counted_once(store):
    others = [replace(UNIT, start=100 * i, stop=100 * i + 100) for i in range(1, 4)]
    put(store, UNIT, *others[:2])
    put(store, replace(UNIT, worker="w1", attempt=2), others[2])
    assert votes(store) == {key(row): {1: 10, 3: 90} for row in [UNIT, *others]}
    assert store.differing == 0


def test_differing_deliveries_of_one_kind_are_an_error_that_names_unit_and_parts(store):
    first = put(store, UNIT, replace(UNIT, image_id=8))
    second = put(store, replace(UNIT, counts=(89, 11)))
    with pytest.raises(StoreError) as caught:
        store.units()
    for expected in (first, second, "'image_id': 7", "{1: 10, 3: 90}", "{1: 11, 3: 89}", "kind-a"):
        assert expected in str(caught.value)


def test_differing_deliveries_of_a_later_kind_are_compared_among_themselves(store):
    put(store, UNIT)
    put(store, replace(UNIT, numerics="kind-b", counts=(89, 11)))
    put(store, replace(UNIT, numerics="kind-b", classes=(3, 2), counts=(89, 11)))
    with pytest.raises(StoreError, match="kind-b"):
        store.units()


def test_of_different_kinds_the_first_stored_counts_and_the_differing_are_numbered(store):
    put(store, *(replace(UNIT, start=s, stop=s + 100) for s in (0, 100, 200)))
    for _ in range(2):
        put(
            store,
            replace(UNIT, numerics="kind-b", counts=(89, 11)),
            replace(UNIT, start=100, stop=200, numerics="kind-b"),
            replace(UNIT, start=200, stop=300, classes=(3,), counts=(100,), numerics="kind-c"),
        )
    assert votes(store) == {
        key(replace(UNIT, start=s, stop=s + 100)): {1: 10, 3: 90} for s in (0, 100, 200)
    }
    assert store.differing == 2


def test_other_pixels_under_the_same_image_id_are_refused(store):
    put(store, UNIT)
    put(store, replace(UNIT, sigma=0.5, image_sha="ffff"))
    with pytest.raises(StoreError, match=r"image_id 7 has pixel hash (a1b2|ffff) in units/part-.*"):
        store.units()


def test_any_history_of_deliveries_gives_the_oracle_counts(tmp_path):
    rng = random.Random(5)
    units = [
        replace(
            UNIT,
            sigma=sigma,
            image_id=image,
            image_sha=f"{image:x}",
            stream=stream,
            start=start,
            stop=start + length,
            target=target,
            classes=(-2, target + 1),
            counts=(count := rng.randrange(length + 1), length - count),
        )
        for sigma in (0.1, 0.25)
        for image in (0, 3, 2**40)
        for stream in ("select", "estimate")
        for start in (0, 10)
        for length in (5, 10)
        for target in (-1, 5)
    ]
    for case in range(5):
        store = RunStore.create(str(tmp_path / str(case)), DOCUMENT)
        delivered = rng.choices(units, k=60)
        for low in range(0, 60, 12):
            put(store, *delivered[low : low + 12])
        expected = {
            key(row): dict(sorted(zip(row.classes, row.counts, strict=True))) for row in delivered
        }
        assert votes(store) == expected
        assert list(votes(store)) == sorted(expected)
        done = store.done_units()
        assert held(done) == set(expected)
        assert len(done) == len(expected)


def test_list_comparison_agrees_with_python_lists():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 2, rng.integers(0, 4)).tolist() for _ in range(200)]
    column = pa.chunked_array(
        [pa.array(part, pa.list_(pa.int32())) for part in (lists[:77], lists[77:])]
    )
    left, right = rng.integers(0, 200, (2, 2000))
    expected = [lists[a] == lists[b] for a, b in zip(left, right, strict=True)]
    assert Lists.of(column).equal(left, right).tolist() == expected


def test_keys_tell_rows_apart_and_order_them_even_beyond_64_bits():
    rng = np.random.default_rng(1)
    big = [rng.integers(-(2**61), 2**61, 300) * rng.integers(0, 2, 300) for _ in range(3)]
    table = pa.table({"a": big[0], "b": big[1], "c": big[2], "d": rng.choice(list("xyz"), 300)})
    keys = packed_keys(table, ("a", "b", "c", "d"))
    rows = list(zip(*(table[name].to_pylist() for name in "abcd"), strict=True))
    assert len(set(keys.tolist())) == len(set(rows))
    assert [rows[i] for i in np.argsort(keys, kind="stable")] == sorted(rows)


# --- resume


def test_stored_units_are_held_once_however_many_parts_hold_them(store):
    put(store, replace(UNIT, start=100, stop=200))
    put(store, UNIT)
    table = store.units()
    group = DoneUnits.from_table(table).groups[0.25, "estimate"]
    for name in ("image_id", "start", "stop", "target", "nfe", "seconds"):
        assert table[name].num_chunks == 1
        assert np.shares_memory(getattr(group, name), table[name].chunk(0).to_numpy())


def test_joining_parts_lets_go_of_each_of_their_columns():
    waiting = {"a": pa.chunked_array([[1], [2]]), "b": pa.chunked_array([[3], [4]])}
    left = []

    def change(column):
        left.append(list(waiting))
        return column.combine_chunks()

    joined = column_by_column(waiting, pa.schema({"a": pa.int64(), "b": pa.int64()}), change)
    assert joined.to_pydict() == {"a": [1, 2], "b": [3, 4]}
    assert left == [["b"], []]


def test_done_units_give_an_images_counts_in_vote_order(store):
    put(store, replace(UNIT, start=100, stop=200, classes=(3,), counts=(100,)), UNIT)
    put(store, replace(UNIT, image_id=9))
    group = store.done_units().groups[0.25, "estimate"]
    found = [(group.start[i], *map(list, group.votes(i))) for i in group.rows(7)]
    assert found == [(0, [1, 3], [10, 90]), (100, [3], [100])]
    assert list(group.rows(8)) == []
    assert list(group.rows(10**9)) == []


def test_an_empty_run_has_no_units(store):
    assert store.units().num_rows == store.certificates().num_rows == len(store.done_units()) == 0
    assert store.units().schema.names == UNIT_SCHEMA.names
    assert held(store.done_units()) == set()


def test_store_survives_pickling(store):
    put(store, UNIT)
    assert len(votes(pickle.loads(pickle.dumps(store)))) == 1


# --- damage


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_part_is_named_or_left_out_as_asked(store, keep):
    whole, hurt = put(store, UNIT), put(store, replace(UNIT, start=100, stop=200))
    path = Path(store.address, hurt)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(StoreError, match=f"1 damaged files.*{hurt}.*on_damaged=.recompute"):
        store.units()
    lenient = RunStore.open(store.address, on_damaged="recompute")
    done = lenient.done_units()
    assert [damage.name for damage in lenient.damaged] == [hurt]
    assert held(done) == {key(UNIT)}
    assert Path(store.address, whole).exists()


def test_flipped_bit_in_the_data_is_noticed_even_under_a_name_that_fits_it(store):
    rng = random.Random(3)
    rows = [replace(UNIT, start=i, stop=i + 100, seconds=rng.random()) for i in range(2000)]
    name = put(store, *rows)
    path = Path(store.address, name)
    whole, writer = path.read_bytes(), part_number(name)[1]
    chunk = pq.read_metadata(path).row_group(0).column(10)
    assert chunk.path_in_schema == "seconds"
    first = chunk.dictionary_page_offset
    for offset in np.linspace(first, first + chunk.total_compressed_size - 1, 20, dtype=int):
        data = bytearray(whole)
        data[offset] ^= 1
        path = named_anew(path, bytes(data))
        with pytest.raises(StoreError, match=f"damaged files.*{writer}.*: "):
            store.units()


def test_part_deleted_by_hand_is_noticed_and_its_units_recomputed_if_asked(store):
    writer = store.writer()
    for start in (0, 100, 200):
        writer.add_units([replace(UNIT, start=start, stop=start + 100)])
        writer.flush(force=True)
    store.location.delete(store.location.list("units")[1])
    gone = f"units/part-{writer.name}-000001*.parquet"
    with pytest.raises(StoreError, match=re.escape(f"{gone} (missing)")):
        store.units()
    lenient = RunStore.open(store.address, on_damaged="recompute")
    assert held(lenient.done_units()) == {key(UNIT), key(replace(UNIT, start=200, stop=300))}
    assert str(lenient.damaged[0]) == f"{gone} (missing)"


def test_part_of_a_later_program_version_is_refused_with_the_remedy(store):
    part = Path(store.address, put(store, UNIT))
    table = pq.read_table(part)
    later = table.replace_schema_metadata({b"diffcert.schema": b"units/4"})
    edited(part, later)
    with pytest.raises(StoreError, match="version 4, this program knows 3: upgrade"):
        RunStore.open(store.address, on_damaged="recompute").units()


def test_credentials_of_the_storage_options_are_refused_in_the_run_document():
    options = {"key": "AKIAEXAMPLE", "client_kwargs": {"aws_secret_access_key": "hunter22"}}
    for document in (b'key = "AKIAEXAMPLE"', b'x = "hunter22"'):
        with pytest.raises(ValueError, match="leave storage options out"):
            RunStore.create("s3://bucket/run", document, options)
    assert "hunter22" not in repr(open_location("s3://bucket/run", options))


# --- other readers


def test_plain_pandas_pyarrow_and_duckdb_read_a_run(store):
    duckdb = pytest.importorskip("duckdb")
    put(store, UNIT, replace(UNIT, sigma=0.5))
    put(store, UNIT)
    units = f"{store.address}/units"
    frame = pd.read_parquet(units).drop_duplicates(list(UNIT_KEY))
    table = ds.dataset(units).to_table()
    rows = duckdb.sql(
        "SELECT DISTINCT ON (sigma, stream, image_id, start, stop, target) * "
        f"FROM read_parquet('{units}/*.parquet') ORDER BY sigma"
    ).fetchall()
    assert frame["sigma"].tolist() == [0.25, 0.5]
    assert (table.num_rows, table.schema.field("sigma").type) == (3, pa.float64())
    assert [row[0] for row in rows] == [0.25, 0.5]
