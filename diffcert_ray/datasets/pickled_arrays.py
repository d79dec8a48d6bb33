"""Numpy arrays out of pickles without unpickling: an interpreter that can build data only.

A pickle is a program, and Python's unpickler runs it. This one knows the instructions that make
numbers, text, bytes, lists, tuples and dictionaries, and the three names by which numpy's arrays
are described. It calls nothing and sets no attribute: an array is made from the description in the
end. Everything else is refused by name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np

from diffcert_ray.errors import DatasetError

_RECONSTRUCT: Final = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
KNOWN: Final = frozenset({*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE})
KINDS: Final = frozenset({"u1", "i1", "i2", "i4", "i8", "f4", "f8"})
MAX_OPCODES: Final = 5_000_000


class _Name:
    """A name that the pickle asks for; never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Kind:
    """A numpy dtype as described."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.order = kind, "<"


class _Array:
    """A numpy array as described; ``value`` once its content has come."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


class _Mark:
    """Where the items of a list, tuple or dictionary begin."""


def read_pickle(data: bytes, where: str) -> Any:
    """The data in a pickle of numbers, text, containers and numpy arrays.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.

    Returns:
        What it holds, numpy arrays read-only; text of Python 2 is bytes.

    Raises:
        DatasetError: it asks for any other name, uses another instruction, or is damaged; nothing
            of it has run.
    """
    machine = _Machine(where)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                machine.refuse(f"has more than {MAX_OPCODES} instructions")
            if opcode.name == "STOP":
                return _finished(machine.pop(), where)
            machine.step(opcode.name, argument)
    except DatasetError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, MemoryError, OverflowError) as error:
        raise DatasetError(f"{where} is damaged or no pickle of arrays: {error!r}") from None
    raise DatasetError(f"{where} is cut short: fetch it again")


class _Machine:
    """Stack and memo of the interpreter."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode]())
        elif opcode in _VALUES:
            self._stack.append(argument)
        elif opcode in _OLD_TEXT:
            self._stack.append(argument.encode("latin-1"))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in _IGNORED:
            about = f" {argument}" if isinstance(argument, str) else ""
            self.refuse(f"uses the instruction {opcode}{about[:200]}")

    def refuse(self, what: str) -> NoReturn:
        raise DatasetError(
            f"{self._where} {what}, which no file of this dataset needs: it is not opened, and "
            "nothing of it was run; fetch the file again from its source"
        )

    def pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value was due")
        return value

    # ---- instructions ----------------------------------------------------------------------------

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            items.append(value)
        return items[::-1]

    def _collect(self, build: Callable[[list[Any]], Any]) -> None:
        self._stack.append(build(self._since_mark()))

    def _collect_last(self, count: int) -> None:
        self._stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _update(self, items: list[Any]) -> None:
        self._top(dict).update(_pairs(items))

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"no {kind.__name__} where one was due")
        return self._stack[-1]

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else int(index)] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def _name(self, name: str) -> None:
        if name not in KNOWN:
            self.refuse(f"asks for {name}")
        self._stack.append(_Name(name))

    def _stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        self._name(f"{_as_text(module)}.{_as_text(name)}")

    def _reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            self.refuse("calls something that is no name")
        if function.name in _RECONSTRUCT:
            if not (isinstance(arguments[0], _Name) and arguments[0].name == _NDARRAY):
                self.refuse("reconstructs something that is no array")
            self._stack.append(_Array())
        elif function.name == _DTYPE:
            self._stack.append(_Kind(_as_text(arguments[0])))
        elif function.name == _ENCODE and arguments[1:] in (("latin1",), ("latin-1",)):
            self._stack.append(arguments[0].encode("latin-1"))
        else:
            self.refuse(f"calls {function.name}")

    def _build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, _Kind):
            target.order = _as_text(state[1])
        elif isinstance(target, _Array):
            target.value = _array(state)
        else:
            self.refuse("sets attributes of something that is no array")


def _array(state: tuple[Any, ...]) -> np.ndarray:
    """The array that numpy describes by (version, shape, dtype, Fortran order, bytes)."""
    _, shape, kind, fortran, data = state
    if not isinstance(kind, _Kind) or kind.kind not in KINDS or kind.order not in ("<", "|", "="):
        found = f"{kind.order}{kind.kind}" if isinstance(kind, _Kind) else kind
        raise ValueError(f"an array of {found!r}, not of little-endian numbers")
    if not isinstance(data, bytes):
        raise ValueError("an array without its bytes")
    dtype = np.dtype(kind.kind).newbyteorder("<")
    shape = tuple(int(n) for n in shape)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any, where: str) -> Any:
    """Descriptions of arrays replaced by the arrays, in a value and the containers' first level."""

    def array(entry: Any) -> Any:
        if isinstance(entry, _Name | _Kind) or (isinstance(entry, _Array) and entry.value is None):
            raise DatasetError(f"{where} ends in a part of an array: it is no file of a dataset")
        return entry.value if isinstance(entry, _Array) else entry

    if isinstance(value, dict):
        return {key: array(entry) for key, entry in value.items()}
    return array(value)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _as_text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"{type(value).__name__} where text was due")
    return value if isinstance(value, str) else value.decode("latin-1")


_IGNORED: Final = frozenset({"PROTO", "FRAME"})
_VALUES: Final = frozenset(
    {
        *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_OLD_TEXT: Final = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})  # bytes of Python 2
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": _Mark,
}
_ACTIONS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "LIST": lambda m, _: m._collect(list),
    "TUPLE": lambda m, _: m._collect(tuple),
    "DICT": lambda m, _: m._collect(_pairs),
    "TUPLE1": lambda m, _: m._collect_last(1),
    "TUPLE2": lambda m, _: m._collect_last(2),
    "TUPLE3": lambda m, _: m._collect_last(3),
    "APPEND": lambda m, _: m._extend([m.pop()]),
    "APPENDS": lambda m, _: m._extend(m._since_mark()),
    "SETITEM": lambda m, _: m._update([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m._update(m._since_mark()),
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": lambda m, name: m._name(str(name).replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_name(),
    "REDUCE": lambda m, _: m._reduce(),
    "BUILD": lambda m, _: m._build(),
    "POP": lambda m, _: m._stack.pop() and None,
}
