"""The reader of pickled arrays: equal to Python's own on data, and closed to everything else."""

import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.pickled_arrays import read_pickle
from diffcert_ray.errors import DatasetError
from tests.test_datasets_cifar import Python2Pickler, write_python


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2, 2**70, True, None, 1.5], b"b": (1, (2,), (1, 2, 3), (1, 2, 3, 4), ())},
        [[], {}, [[1], {"x": [2]}], "täxt", b"\x00\xff" * 300],
        {k: list(range(k)) for k in range(5)},
    ],
)
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    data = pickle.dumps(value, protocol)
    assert read_pickle(data, "x") == pickle.loads(data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.linspace(0, 1, 7),
    ],
)
def test_arrays_are_read_as_numpy_reads_them(array, protocol):
    found = read_pickle(pickle.dumps({"data": array}, protocol), "x")["data"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert not found.flags.writeable


def test_text_of_python_2_comes_as_bytes():
    file = io.BytesIO()
    Python2Pickler(file, 2).dump({"key": ["a" * 300, np.arange(3)]})
    expected = pickle.loads(file.getvalue(), encoding="bytes")
    found = read_pickle(file.getvalue(), "x")
    assert list(found) == list(expected) == [b"key"]
    assert found[b"key"][0] == expected[b"key"][0]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(canary):
    """Pickles that would make the file ``canary`` if they ran, or eat memory; and what they ask."""
    touch = f"open({canary!r}, 'w').close()"
    raw = f"touch {canary}".encode()
    yield "posix.system", pickle.dumps({"data": Calls(os.system, f"touch {canary}")}, 2)
    yield "posix.system", pickle.dumps({"data": Calls(os.system, f"touch {canary}")}, 4)
    yield "builtins.exec", pickle.dumps([Calls(exec, touch)], 4)
    yield "__builtin__.eval", b"c__builtin__\neval\n(V1\ntR."
    yield "builtins.getattr", b"cbuiltins\ngetattr\n."
    yield "instance of 'os.system'", b"(V" + raw + b"\nios\nsystem\n."
    yield "os.system", b"(cos\nsystem\nV" + raw + b"\no."
    yield "os.system", b"\x80\x02cos\nsystem\nq\x00X\x01\x00\x00\x00x\x85R."
    yield "numpy.f2py.diagnose.run", b"cnumpy.f2py.diagnose\nrun\n)R."
    yield "numpy.load", b"cnumpy\nload\n."
    yield "calls 'numpy.ndarray'", b"\x80\x02cnumpy\nndarray\n)\x81."
    yield "persistent id 'something'", b"Psomething\n."
    yield "persistent id", b"\x80\x02K\x01Q."
    yield "extension registry", b"\x80\x02\x82\x01."
    yield "sets the state of 'numpy.dtype'", b"\x80\x02cnumpy\ndtype\n}b."
    yield "calls 'numpy.ndarray'", b"\x80\x02cnumpy\nndarray\n)R."
    yield "calls a int, which is no allowed name", b"\x80\x02K\x01)R."
    yield "damaged", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R."
    yield "ends in 'numpy.ndarray', a part of an array", b"\x80\x02cnumpy\nndarray\n."
    yield (
        "calls '_codecs.encode'",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R.",
    )
    yield "calls '_codecs.encode'", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00x\x85R."
    yield "cut short|damaged", pickle.dumps({"data": list(range(100))}, 2)[:50]
    yield "damaged", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."  # a text of 2**62 bytes
    yield "damaged", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"."
    yield "damaged", b"not a pickle at all"
    yield "damaged", b"."
    yield "damaged", b"(."
    yield "damaged", b"h\x07."
    yield "damaged", b"]K\x01s."
    yield "an array of", pickle.dumps({"data": np.array([{}, None])}, 2)
    yield "an array of", pickle.dumps({"data": np.arange(3, dtype=">i4")}, 2)
    yield "damaged", b""


def huge_memo_index() -> bytes:
    """A memo index of 2**31 - 1, for which Python's unpickler allocates 32 GiB."""
    return b"\x80\x02K\x01r" + struct.pack("<I", 2**31 - 1) + b"."


def test_hostile_pickles_are_refused_by_name_and_nothing_runs(tmp_path):
    canary = str(tmp_path / "canary")
    for asked, data in hostile(canary):
        with pytest.raises(DatasetError, match=asked) as caught:
            read_pickle(data, "batch.pkl")
        assert "batch.pkl" in str(caught.value)
        assert not os.path.exists(canary)
    assert read_pickle(huge_memo_index(), "x") == 1


def test_the_canary_would_have_been_made_by_pythons_own_unpickler(tmp_path):
    canary = str(tmp_path / "canary")
    _, data = next(hostile(canary))
    pickle.loads(data)
    assert os.path.exists(canary)


def test_an_array_with_another_shape_than_its_bytes_is_refused():
    data = pickle.dumps({"data": np.zeros((3, 4), np.uint8)}, 2)
    shape = pickle.dumps((3, 4), 2)[2:-1]
    position = data.index(b"K\x03K\x04\x86")
    forged = data[:position] + b"K\x03K\x05\x86" + data[position + 5 :]
    assert shape.startswith(b"K\x03K\x04\x86")
    pickletools.dis(forged, out=io.StringIO())
    with pytest.raises(DatasetError, match=r"shape \(3, 5\) with 12 bytes"):
        read_pickle(forged, "x")


def test_a_hostile_cifar_batch_is_refused_by_name(tmp_path):
    write_python(tmp_path, "cifar10")
    canary = str(tmp_path / "canary")
    (tmp_path / "test_batch").write_bytes(next(hostile(canary))[1])
    with pytest.raises(DatasetError, match=r"test_batch is not opened.* asks for 'posix\.system'"):
        load_dataset({"name": "cifar10", "path": str(tmp_path)})
    assert not os.path.exists(canary)


def test_damage_anywhere_is_a_refusal_and_never_another_error():
    good = pickle.dumps({"data": np.arange(6, dtype=np.uint8), "labels": [1, 2], b"x": "y"}, 2)
    random = np.random.default_rng(0)
    for _ in range(600):
        data = bytearray(good)
        for position in random.integers(0, len(data), 2):
            data[position] = random.integers(0, 256)
        try:
            read_pickle(bytes(data), "x")
        except DatasetError:
            continue
