"""A CIFAR-sized Parquet on an object store: what is fetched, and what stays in memory."""

import tracemalloc
from collections.abc import Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.datasets.parquet_files import TAIL_BYTES
from diffcert_ray.errors import DatasetError
from tests.s3_proxy import Faults, proxied
from tests.s3_server import BUCKET, s3_server
from tests.test_datasets_files import png
from tests.test_datasets_parquet import live  # noqa: F401 (a fixture)

KEY = "cifar/test-00000-of-00001.parquet"
ROWS, GROUP, DIFFERENT = 50_000, 5000, 8
KEPT = 3 * 2**20


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """A few 32 x 32 images, black but for a row, of which the 50,000 are made."""
    random = np.random.default_rng(7)
    found = [np.zeros((32, 32, 3), np.uint8) for _ in range(DIFFERENT)]
    for image in found:
        image[5] = random.integers(0, 256, (32, 3))
    return found


@pytest.fixture(scope="module")
def endpoint(images) -> Iterator[str]:
    """The address of an S3 server on loopback that holds the file."""
    with s3_server() as address:
        store = fsspec.filesystem("s3", endpoint_url=address, skip_instance_cache=True)
        store.pipe_file(f"{BUCKET}/{KEY}", parquet_file(images))
        yield address


def parquet_file(images) -> bytes:
    """50,000 images in row groups of 5000, in the layout that Hugging Face writes."""
    encoded = pa.array([png(image) for image in images])
    which = np.arange(ROWS) % DIFFERENT
    cells = pa.StructArray.from_arrays(
        [encoded.take(pa.array(which)), pa.array(np.full(ROWS, "x.png"))], ["bytes", "path"]
    )
    table = pa.table({"img": cells, "label": which % 10})
    sink = pa.BufferOutputStream()
    # Without a dictionary, or repeated images would be stored once.
    pq.write_table(table, sink, row_group_size=GROUP, use_dictionary=False, compression="NONE")
    return sink.getvalue().to_pybytes()


def spec(**keys):
    return {"name": "parquet", "path": f"s3://{BUCKET}/cifar", **keys}


def assert_is(image, expected):
    assert np.array_equal(np.rint(image * 255), expected.transpose(2, 0, 1))


def test_one_image_fetches_one_row_group_and_a_pass_fetches_each_once(
    endpoint,
    images,
    live,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr("diffcert_ray.datasets.parquet_files.KEPT_BYTES", KEPT)
    _, alive = live
    faults = Faults()
    with proxied(endpoint, faults) as url:
        options = {"endpoint_url": url, "skip_instance_cache": True}
        one = load_dataset(spec(ids=[31_999]), options)
        about = [size for path, size in faults.sent if KEY in path]
        # The file's end, then the labels of one row group: nothing of the images.
        assert len(about) == 2
        assert sum(about) < TAIL_BYTES + GROUP * 8 * 2
        faults.sent.clear()
        assert_is(one.image(31_999), images[31_999 % DIFFERENT])
        [(path, size)] = faults.sent
        chunk = GROUP * len(png(images[0]))
        assert KEY in path
        assert 0.9 * chunk < size < 1.2 * chunk
        one.image(31_999)
        assert len(faults.sent) == 1
        every = load_dataset(spec(every=100), options)
        assert len(every) == 500
        assert every.labels.tolist() == [k % DIFFERENT for k in range(0, ROWS, 100)]
        faults.sent.clear()
        alive.clear()
        checked = check_images(every, every.ids)
        assert len(checked.shas) == 500
        assert len(faults.sent) == ROWS // GROUP
        # So many fit; one has just come, and one more is kept by `one`.
        assert max(alive) <= KEPT // chunk + 2 < ROWS // GROUP


def test_memory_does_not_grow_over_a_pass_of_all_row_groups(endpoint, images, monkeypatch):
    monkeypatch.setattr("diffcert_ray.datasets.parquet_files.KEPT_BYTES", KEPT)
    data = load_dataset(spec(every=250), {"endpoint_url": endpoint})
    chunk = GROUP * len(png(images[0]))
    held = []
    tracemalloc.start()
    try:
        before = pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0]
        for image_id in data.ids:
            data.image(image_id)
            now = pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0]
            held.append(now - before)
    finally:
        tracemalloc.stop()
    # Of ten chunks. What the server holds while it answers is in it, so the least of the last ones.
    assert max(held) > chunk
    assert min(held[-len(held) // 4 :]) < KEPT + 2 * chunk


def test_what_is_not_on_the_store_is_refused_by_its_address(endpoint):
    options = {"endpoint_url": endpoint}
    with pytest.raises(DatasetError, match=rf"s3://{BUCKET}/cifar10' does not exist or is empty"):
        load_dataset(spec(path=f"s3://{BUCKET}/cifar10"), options)
    with pytest.raises(DatasetError, match=rf"s3://{BUCKET}' has neither test_batch\.bin"):
        load_dataset({"name": "cifar10", "path": f"s3://{BUCKET}"}, options)


def test_binary_cifar_is_read_from_the_store_too(endpoint):
    store = fsspec.filesystem("s3", endpoint_url=endpoint, skip_instance_cache=True)
    records = np.random.default_rng(1).integers(0, 10, (3, 3073), np.uint8)
    store.pipe_file(f"{BUCKET}/c10/test_batch.bin", records.tobytes())
    found = load_dataset(
        {"name": "cifar10", "path": f"s3://{BUCKET}/c10"}, {"endpoint_url": endpoint}
    )
    assert found.labels.tolist() == records[:, 0].tolist()
    assert np.array_equal(np.rint(found.image(2) * 255).ravel(), records[2, 1:])


def test_a_cut_answer_is_an_error_of_the_store_and_not_a_corrupt_image(endpoint, monkeypatch):
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    faults = Faults()
    with proxied(endpoint, faults) as url:
        options = {
            "endpoint_url": url,
            "skip_instance_cache": True,
            "config_kwargs": {"retries": {"max_attempts": 0}},
        }
        data = load_dataset(spec(first=1), options)
        faults.plan["GET"] = ["short"] * 50
        with pytest.raises(Exception, match=r"payload|closed|bytes|Response") as caught:
            check_images(data, data.ids)
        assert not isinstance(caught.value, DatasetError)
