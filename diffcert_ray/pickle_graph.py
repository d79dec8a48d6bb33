"""Read a pickle as data: what it would build, as a graph in which nothing has been called.

The opcodes of a pickle are carried out on plain values and on placeholders. Where the real machine
would import a name or call something, this one notes the name or the call. So nothing in a file can
run, whatever it asks for; and a name that the caller did not allow is refused where it stands. One
call is understood: `_codecs.encode(TEXT, "latin1")`, by which protocols 0 to 2 spell bytes.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

_MAX_OPCODES = 2_000_000
_MAX_STACK = 100_000
_MAX_SMALL = 1 << 20  # bytes of one argument that is not left in the file
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_KEYS = (str, int, float, bool, bytes, type(None))
_ENCODE = "_codecs.encode"
_LATIN_1 = ("latin1", "latin-1")
_SHOWN = 80


class PickleError(ValueError):
    """A pickle that is damaged, too large, or asks for what is not allowed."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle refers to; never imported.

    Attributes:
        name: module and qualified name, joined by a dot.
    """

    name: str


@dataclass(eq=False)
class Made:
    """An object that the pickle would make by a call; never made.

    Attributes:
        by: what would be called.
        args: with these positional arguments.
        state: what `__setstate__` or `__dict__` would get afterwards; None for nothing.
        items: what would be set by key afterwards.
    """

    by: Global
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stored:
    """Bytes that are left where the pickle has them.

    Attributes:
        data: a read-only view of them; valid as long as it is referred to.
    """

    data: memoryview


def read_pickle_graph(source: Path | bytes, allowed: Container[str]) -> Any:
    """Read the one object of a pickle as a graph.

    Args:
        source: the pickle; a file is read lazily, so that large byte strings cost no memory until
            they are used.
        allowed: names ("module.name") that the pickle may refer to.

    Returns:
        Plain values (None, bool, int, float, str, bytes, tuple, list, dict, set), `Global`, `Made`,
        and `Stored` for byte strings above 1 MiB. Text of Python 2 is bytes: nothing says in which
        encoding it is.

    Raises:
        PickleError: a name that is not allowed, an opcode that is not data, a damaged or truncated
            pickle, or more objects than any checkpoint or dataset has.
    """
    content, view = _opened(source)
    machine = _Machine(allowed)
    try:
        for name, argument, position in _opcodes(content, view):
            try:
                if machine.carry_out(name, argument):
                    return machine.result()
            except PickleError as error:
                raise PickleError(f"{error} (opcode {name} at byte {position})") from None
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError(
            f"damaged or truncated pickle: {type(error).__name__}: {str(error)[:_SHOWN]}"
        ) from None
    raise PickleError("damaged or truncated pickle: it ends before its last opcode")


def _opened(source: Path | bytes) -> tuple[mmap.mmap | BytesIO, memoryview]:
    if isinstance(source, bytes):
        return BytesIO(source), memoryview(source)
    with source.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise PickleError("the file is empty") from None
    return content, memoryview(content)


def _opcodes(content: mmap.mmap | BytesIO, view: memoryview) -> Iterator[tuple[str, Any, int]]:
    """(name, argument, position) of each opcode; large byte strings stay where they are."""
    for _ in range(_MAX_OPCODES):
        position = content.tell()
        code = content.read(1)
        if not code:
            return
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise PickleError(f"damaged pickle: unknown opcode {code!r} at byte {position}")
        argument: Any = None
        if opcode.name in _BYTES:
            argument = _bytes(content, view, _BYTES[opcode.name])
        elif opcode.arg is not None:
            argument = opcode.arg.reader(cast("IO[bytes]", content))
        yield opcode.name, argument, position
    raise PickleError(f"more than {_MAX_OPCODES:,} opcodes: no checkpoint or dataset has so many")


_BYTES = {
    "SHORT_BINBYTES": "<B", "BINBYTES": "<I", "BINBYTES8": "<Q", "BYTEARRAY8": "<Q",
    "SHORT_BINSTRING": "<B", "BINSTRING": "<i",
}  # fmt: skip


def _bytes(content: mmap.mmap | BytesIO, view: memoryview, width: str) -> bytes | Stored:
    length = struct.unpack(width, content.read(struct.calcsize(width)))[0]
    start = content.tell()
    if not 0 <= length <= len(view) - start:
        raise PickleError(
            f"damaged or truncated pickle: {length:,} bytes announced, {len(view) - start:,} left"
        )
    if length <= _MAX_SMALL:
        return content.read(length)
    content.seek(start + length)
    return Stored(view[start : start + length])


class _Machine:
    """The stack, marks and memo of one pickle, and what each opcode does to them."""

    def __init__(self, allowed: Container[str]) -> None:
        self._allowed = allowed
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """The object that STOP leaves on the stack."""
        return self._pop()

    def carry_out(self, name: str, argument: Any) -> bool:
        """Carry out one opcode.

        Args:
            name: of the opcode, as in pickletools.
            argument: what follows it in the file.

        Returns:
            Whether it was the last one.

        Raises:
            PickleError: it is not data, or refers to a name that is not allowed.
        """
        if name in _IGNORED:
            return False
        if name in _PUSHED:
            self._push(argument)
        elif name == "STRING":  # text of Python 2
            self._push(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name]())
        elif name in _PUTS:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name in _GETS:
            self._push(self._memo[argument])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name != "STOP":
            raise PickleError(_refusal(name, argument))
        return name == "STOP"

    def _push(self, value: Any) -> None:
        if len(self._stack) >= _MAX_STACK:
            raise PickleError(f"more than {_MAX_STACK:,} objects on the stack")
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] >= len(self._stack):
            raise PickleError("damaged pickle: an opcode takes what lies before a mark")
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def pop(self, _: Any) -> None:
        self._pop()

    def pop_mark(self, _: Any) -> None:
        self._since_mark()

    def duplicate(self, _: Any) -> None:
        self._push(self._stack[-1])

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def tuple_since_mark(self, _: Any) -> None:
        self._push(tuple(self._since_mark()))

    def list_since_mark(self, _: Any) -> None:
        self._push(self._since_mark())

    def dict_since_mark(self, _: Any) -> None:
        values = self._since_mark()
        self._push({})
        self._set(values)

    def frozenset_since_mark(self, _: Any) -> None:
        self._push(frozenset(_key(value) for value in self._since_mark()))

    def append(self, _: Any) -> None:
        self._extend([self._pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise PickleError(f"it appends to {_shown(target)}, which is no list")
        target.extend(values)

    def add_items(self, _: Any) -> None:
        values = self._since_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise PickleError(f"it adds items to {_shown(target)}, which is no set")
        target.update(_key(value) for value in values)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        items = target.items if isinstance(target, Made) else target
        if not isinstance(items, dict):
            raise PickleError(f"it sets items of {_shown(target)}, which is no mapping")
        if len(values) % 2:
            raise PickleError("damaged pickle: a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_key(key)] = value

    def global_named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._global(module, name)

    def global_on_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError(f"damaged pickle: {_shown(module)} is no name of a module")
        full = f"{module}.{name}"
        # A dotted name reaches into a module's own imports ("os.system" of an allowed module).
        if "." in name or full not in self._allowed:
            raise PickleError(f"it asks for {full[:_SHOWN]!r}, which is not allowed")
        self._push(Global(full))

    def call(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        made = _made(function, args)
        self._push(_encoded(args) if made.by.name == _ENCODE else made)

    def new(self, _: Any) -> None:
        args, cls = self._pop(), self._pop()
        self._push(_made(cls, args))

    def new_with_keywords(self, _: Any) -> None:
        keywords, args, cls = self._pop(), self._pop(), self._pop()
        if keywords != {}:
            raise PickleError(f"it calls {_shown(cls)} with keywords, which is not allowed")
        self._push(_made(cls, args))

    def build(self, _: Any) -> None:
        state, target = self._pop(), self._stack[-1]
        if not isinstance(target, Made):
            raise PickleError(f"it sets the state of {_shown(target)}, which is not allowed")
        if target.state is not None:
            raise PickleError(f"it sets the state of {_shown(target)} twice, which is not allowed")
        target.state = state


def _made(function: Any, args: Any) -> Made:
    if not isinstance(function, Global):
        raise PickleError(f"it calls {_shown(function)}, which is no allowed name")
    if not isinstance(args, tuple):
        raise PickleError(f"it calls {function.name!r} with {_shown(args)} in place of a tuple")
    return Made(function, args)


def _encoded(args: tuple[Any, ...]) -> bytes:
    """The bytes that a pickle of protocol 0 to 2 has as a call of `_codecs.encode`."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in _LATIN_1:
        raise PickleError(f"it calls {_ENCODE!r} in another way than bytes need")
    return args[0].encode("latin-1")


def _key(value: Any) -> Any:
    """A key of a mapping or set: plain, so that hashing it takes no time that a file chooses."""
    if not isinstance(value, _KEYS):
        raise PickleError(f"it has {_shown(value)} as a key, which is not allowed")
    return value


def _shown(value: Any) -> str:
    """A short description that does not look into what may be endless."""
    if isinstance(value, Global):
        return repr(value.name)
    if isinstance(value, Made):
        return f"an object made by {value.by.name!r}"
    return f"a {type(value).__name__}"


def _refusal(name: str, argument: Any) -> str:
    if name in ("EXT1", "EXT2", "EXT4"):
        return f"it asks for number {argument} of the extension registry, which is not allowed"
    if name in ("PERSID", "BINPERSID"):
        named = f" {str(argument)[:_SHOWN]!r}" if argument is not None else ""
        return f"it asks for a persistent id{named}, which is not allowed"
    if name == "INST":
        asked = str(argument).replace(" ", ".")[:_SHOWN]
        return f"it asks for an instance of {asked!r}, which is not allowed"
    return f"opcode {name} is not allowed"


_IGNORED = ("PROTO", "FRAME")
_PUSHED = (
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_PUTS = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_since_mark,
    "DICT": _Machine.dict_since_mark,
    "FROZENSET": _Machine.frozenset_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_named,
    "STACK_GLOBAL": _Machine.global_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
}
