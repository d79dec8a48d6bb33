"""The run on an object store: moto's real HTTP server, and a proxy that injects faults."""

import os
import pickle
import socket
from dataclasses import replace

import pytest
from aiobotocore.session import AioSession

from diffcert_ray.conventions import ALL_CLASSES
from diffcert_ray.errors import StoreError
from diffcert_ray.storage import object_prefix
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.schemas import UnitRow
from diffcert_ray.storage.store import RunStore
from tests.s3_proxy import Faults, proxied

pytestmark = pytest.mark.usefixtures("waited")

DOCUMENT = b'votes_id = "v1"\n'
UNIT = UnitRow(
    0.25, 7, "a1", "select", 0, 10, ALL_CLASSES, (1, 3), (4, 6), 120, 0.5, "cpu", "kind-a", "w", 0
)


@pytest.fixture(scope="module")
def options(endpoint) -> dict[str, object]:
    """Storage options of the server, with one session: making its clients is the slow part."""
    return {"endpoint_url": endpoint, "session": AioSession()}


@pytest.fixture
def store(options, address):
    return RunStore.create(address, DOCUMENT, options)


def unit(start):
    return replace(UNIT, start=start, stop=start + 10)


def put(store, *rows):
    with store.writer() as writer:
        writer.add_units(rows)


def starts(store):
    return store.units()["start"].to_pylist()


# --- as on disk


def test_run_is_written_read_and_resumed_as_on_disk(store, options, address):
    put(store, unit(0), unit(20))
    put(store, unit(10), unit(0))
    again = RunStore.open(address, options)
    assert again.run_document() == DOCUMENT
    assert starts(again) == [0, 10, 20]
    group = again.done_units().groups[0.25, "select"]
    assert [group.start[row] for row in group.rows(7)] == [0, 10, 20]
    with pytest.raises(StoreError, match="already holds another run"):
        RunStore.create(address, b"other", options)


def test_listing_is_never_cached(store, options, address):
    other = RunStore.open(address, options)
    assert other.location.list("units") == []
    put(store, unit(0))
    assert len(other.location.list("units")) == 1
    assert other.location.exists(other.location.list("units")[0])
    other.location.delete(other.location.list("units")[0])
    assert store.location.list("units") == []
    assert not store.location.exists("units/part-w-000000.parquet")


def test_compaction_on_s3_keeps_every_row(store):
    for start in (0, 10, 20):
        put(store, unit(start), unit(0))
    assert compact(store, delete_sources=True).deleted == 3
    assert store.location.list("units") == []
    put(store, unit(30))
    assert starts(store) == [0, 10, 20, 30]


def test_truncated_object_is_named_or_left_out_as_asked(store, options, address):
    put(store, unit(0))
    put(store, unit(10))
    name = store.location.list("units")[0]
    data = store.location.read(name)
    store.location.filesystem().pipe_file(f"{address.removeprefix('s3://')}/{name}", data[:-9])
    with pytest.raises(StoreError, match=name):
        store.units()
    lenient = RunStore.open(address, options, on_damaged="recompute")
    assert len(starts(lenient)) == 1
    put(lenient, unit(0), unit(10))  # computed again
    assert lenient.supersede("writer") == 1
    assert starts(store) == [0, 10]
    assert store.location.exists(name)


def test_pyarrow_and_pandas_read_the_objects(store, endpoint):
    pandas = pytest.importorskip("pandas")
    put(store, unit(0), unit(10))
    options = {"endpoint_url": endpoint}
    [name] = store.location.list("units")
    frame = pandas.read_parquet(f"{store.address}/{name}", storage_options=options)
    assert frame["start"].tolist() == [0, 10]


# --- created only once


def test_second_writer_of_a_name_is_refused_by_the_server(options, address):
    first, second = (open_location(address, options) for _ in range(2))
    first.create("x", b"one")
    for data in (b"two", b"one"):
        with pytest.raises(FileExistsError, match="already stored"):
            second.create("x", data)
    assert second.read("x") == b"one"


def test_store_that_ignores_conditions_is_refused_before_the_run(options, address):
    faults = Faults(drop_headers=("if-none-match",))
    with (
        proxied(options["endpoint_url"], faults) as url,
        pytest.raises(StoreError, match="ignores create-only writes"),
    ):
        RunStore.create(address, DOCUMENT, options | {"endpoint_url": url})


def test_missing_bucket_and_wrong_endpoint_are_named_with_a_remedy(options):
    with pytest.raises(StoreError, match=r"s3://nobody/run/.*make the bucket first"):
        RunStore.create("s3://nobody/run", DOCUMENT, options)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreError, match="check the endpoint"):
            RunStore.create("s3://nobody/run", DOCUMENT, options | {"endpoint_url": closed})


def test_missing_credentials_are_named_with_a_remedy(endpoint, address, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match="check the credentials"):
        RunStore.create(address, DOCUMENT, {"endpoint_url": endpoint})


def test_credentials_reach_neither_the_run_nor_messages_nor_logs(endpoint, address, caplog):
    secrets = {"key": "OPTION-ACCESS", "secret": "OPTION-SECRET"}
    with proxied(endpoint, Faults({"PUT": ["503", "500"]})) as url:
        store = RunStore.create(address, DOCUMENT, {"endpoint_url": url, **secrets})
        put(store, unit(0))
        stored = b"".join(
            store.location.read(name) for name in ["run.toml", *store.location.list("units")]
        )
    with proxied(endpoint, Faults({"PUT": ["503"] * 9})) as url:
        broken = RunStore(open_location(address, {"endpoint_url": url, **secrets}))
        with pytest.raises(StoreError) as caught:
            put(broken, unit(10))
    seen = f"{stored!r} {store!r} {broken!r} {caught.value} {caplog.text}"
    assert "trying again" in caplog.text
    assert "OPTION-" not in seen


# --- processes


def test_location_survives_pickling_and_a_fork(endpoint, address):
    store = RunStore.create(address, DOCUMENT, {"endpoint_url": endpoint})
    put(store, unit(0))
    copy = pickle.loads(pickle.dumps(store))
    assert starts(copy) == [0]
    pid = os.fork()
    if pid == 0:  # the child: no pytest here, only an exit code
        code = 1
        try:
            put(store, unit(10))
            code = 0 if starts(store) == [0, 10] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert starts(store) == [0, 10]


# --- faults on the way


def through(url, options, address):
    """The run seen through a proxy, with a read timeout that suits a test."""
    slow = {"endpoint_url": url, "config_kwargs": {"read_timeout": 0.5}}
    return RunStore(open_location(address, options | slow))


@pytest.mark.parametrize(
    "plan",
    [
        ["500"],
        ["503", "503", "500"],
        ["before"],
        ["after"],
        ["timeout"],
        ["after", "503", "before", "after"],
    ],
    ids="-".join,
)
def test_put_disturbed_on_the_way_is_stored_exactly_once(store, options, address, plan):
    faults = Faults({"PUT": plan})
    with proxied(options["endpoint_url"], faults) as url:
        put(through(url, options, address), unit(0))
    tries = [fault for method, fault in faults.requests if method == "PUT"]
    assert tries == [*plan, ""]
    assert len(store.location.list("units")) == 1
    assert starts(store) == [0]


@pytest.mark.parametrize("fault", ["after", "timeout", "before"])
def test_create_whose_answer_was_lost_succeeds(store, options, address, fault):
    faults = Faults({"PUT": [fault]})
    with proxied(options["endpoint_url"], faults) as url:
        through(url, options, address).location.create("x", b"mine")
    assert [request for request in faults.requests if request[0] == "PUT"] == [
        ("PUT", fault),
        ("PUT", ""),
    ]
    assert store.location.read("x") == b"mine"


def test_create_after_a_lost_answer_still_loses_to_another_writers_file(store, options, address):
    store.location.create("x", b"theirs")
    with proxied(options["endpoint_url"], Faults({"PUT": ["after"]})) as url:
        location = through(url, options, address).location
        with pytest.raises(FileExistsError):
            location.create("x", b"mine!!")
    assert store.location.read("x") == b"theirs"


@pytest.mark.parametrize("fault", ["500", "503", "after", "timeout", "short"])
def test_reads_and_listings_disturbed_on_the_way_are_repeated(store, options, address, fault):
    put(store, *(unit(start) for start in range(0, 1000, 10)))
    faults = Faults({"GET": [fault, "", fault, ""]})
    with proxied(options["endpoint_url"], faults) as url:
        assert len(starts(through(url, options, address))) == 100
    assert [request for request in faults.requests if request[1]] == [("GET", fault)] * 2


def test_dead_store_is_given_up_after_a_known_number_of_tries(store, options, address):
    faults = Faults({"GET": ["after"] * 100})
    with proxied(options["endpoint_url"], faults) as url:
        dead = through(url, options, address)
        with pytest.raises(StoreError, match=r"cannot read .*run.toml .*check the endpoint"):
            dead.run_document()
    tries = len(object_prefix.RETRY_DELAYS_S) + 1
    assert len(faults.requests) in (tries, 2 * tries)  # aiohttp repeats a request once by itself


def test_unwritable_store_keeps_rows_until_it_comes_back(store, options, address):
    refused = 2 * (len(object_prefix.RETRY_DELAYS_S) + 1)
    faults = Faults({"PUT": ["503"] * refused})
    with proxied(options["endpoint_url"], faults) as url:
        writer = through(url, options, address).writer(flush_s=0)
        writer.add_units([unit(0)])
        assert not writer.flush()
        with pytest.raises(StoreError, match=r"check the endpoint.* 1 rows are not stored"):
            writer.close()
        assert [r for r in faults.requests if r[0] == "PUT"] == [("PUT", "503")] * refused
        assert starts(store) == []
        writer.close()
    assert starts(store) == [0]
