"""Numpy arrays out of pickles without unpickling: built from the graph in which nothing was called.

Of the names that a pickle may ask for, those by which numpy describes its arrays are known here;
every other one is refused by name, and no name is ever looked up.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from diffcert_ray.errors import DatasetError
from diffcert_ray.pickle_graph import Global, Made, PickleError, Stored, read_pickle_graph

_RECONSTRUCT: Final = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NDARRAY, _DTYPE = "numpy.ndarray", "numpy.dtype"
KNOWN: Final = frozenset({*_RECONSTRUCT, _NDARRAY, _DTYPE, "_codecs.encode"})
KINDS: Final = frozenset({"u1", "i1", "i2", "i4", "i8", "f4", "f8"})
_MOST_DIMENSIONS: Final = 8


def read_pickle(data: bytes, where: str) -> Any:
    """The data in a pickle of numbers, text, containers and numpy arrays.

    Arrays, read-only, stand at its top or as values of a dictionary there. Text of Python 2 is
    bytes.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.

    Raises:
        DatasetError: it asks for any other name, uses another instruction, or is damaged; nothing
            of it has run.
    """
    try:
        root = read_pickle_graph(data, KNOWN)
        if isinstance(root, dict):
            return {key: _built(value) for key, value in root.items()}
        return _built(root)
    except PickleError as error:
        raise DatasetError(
            f"{where} is not opened, and nothing of it was run: {error}; fetch the file again from "
            "its source"
        ) from None


def _built(value: Any) -> Any:
    """A value of the graph with an array, or large bytes, in the place of their description."""
    if isinstance(value, Stored):
        return bytes(value.data)
    if isinstance(value, Global):
        raise PickleError(f"it ends in {value.name!r}, a part of an array")
    return _array(value) if isinstance(value, Made) else value


def _array(made: Made) -> np.ndarray:
    """The array that numpy describes by (version, shape, dtype, Fortran order, bytes)."""
    if made.by.name not in _RECONSTRUCT:
        raise PickleError(f"it calls {made.by.name!r}, which makes no array")
    if made.args[:1] != (Global(_NDARRAY),) or not isinstance(made.state, tuple):
        raise PickleError("damaged: an array of no type, or without content")
    if len(made.state) != 5 or made.items:
        raise PickleError("damaged: an array that is not described as numpy does")
    _, shape, described, fortran, data = made.state
    data = data.data if isinstance(data, Stored) else data
    if not isinstance(data, bytes | memoryview):
        raise PickleError("an array of something else than bytes")
    dtype = np.dtype(_kind(described)).newbyteorder("<")
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_DIMENSIONS
        or not all(map(_is_size, shape))
    ):
        raise PickleError("an array of no shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise PickleError(f"an array of shape {shape} with {len(data)} bytes")
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _kind(described: Any) -> str:
    """A dtype's kind and size, such as "u1", where it is one of little-endian numbers."""
    if isinstance(described, Made) and described.by.name == _DTYPE and described.args:
        kind = _text(described.args[0])
        state = described.state if isinstance(described.state, tuple) else ()
        order = _text(state[1]) if len(state) > 1 else "<"
        if kind in KINDS and order in ("<", "|", "="):
            return kind
        raise PickleError(f"an array of {order + kind!r:.20}, not of little-endian numbers")
    raise PickleError("an array of no known kind of numbers")


def _text(value: Any) -> str:
    """A text of Python 2 or 3; empty for anything else."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""
