"""Hostile checkpoints: each is refused by a message that names what it asked for; nothing runs."""

import io
import pickle
import pickletools
import struct
import sys
import types

import pytest
import torch

from diffcert_ray import pickle_graph
from diffcert_ray.checkpoints.edm_pickle import ALLOWED
from diffcert_ray.checkpoints.files import read_configuration
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.errors import CheckpointError
from diffcert_ray.pickle_graph import PickleError, read_pickle_graph
from tests.edm_pickles import network_of, published_modules, write_checkpoint

_WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "exec", "compile",
    "import", "pickle.find_class", "socket.connect", "ctypes.dlopen", "builtins.input",
)  # fmt: skip
_seen: list[str] | None = None


def _audit(event, arguments):
    if _seen is not None and event in _WATCHED:
        _seen.append(event)


sys.addaudithook(_audit)  # cannot be taken back; does nothing outside `audited`


def audited(action):
    """What Python itself reports of an action: imports, code compiled or run, processes."""
    global _seen
    _seen = []
    try:
        action()
    finally:
        found, _seen = _seen, None
    return found


def op(name):
    return next(o.code for o in pickletools.opcodes if o.name == name).encode("latin-1")


def text(value):
    data = value.encode()
    return op("BINUNICODE") + struct.pack("<I", len(data)) + data


def named(module, name):
    return text(module) + text(name) + op("STACK_GLOBAL")


def by_line(module, name):
    return op("GLOBAL") + f"{module}\n{name}\n".encode()


PROTO, STOP, NONE = b"\x80\x04", b".", b"N"
ORDERED = named("collections", "OrderedDict")
DEEP = 200_000


def call(function, *arguments):
    return function + op("MARK") + b"".join(arguments) + op("TUPLE") + op("REDUCE")


def ema(body):
    """A pickle of {"ema": body}."""
    return PROTO + op("EMPTY_DICT") + text("ema") + body + op("SETITEM") + STOP


def meta(class_name, *items):
    """A persistent object with this class name and state."""
    state = op("EMPTY_DICT") + op("MARK") + b"".join(items) + op("SETITEMS")
    fields = (
        op("EMPTY_DICT") + op("MARK") + text("class_name") + text(class_name)
        + text("state") + state + op("SETITEMS")
    )  # fmt: skip
    return call(named("torch_utils.persistence", "_reconstruct_persistent_obj"), fields)


def sprung(tmp_path):
    return str(tmp_path / "sprung")


CODE = {
    "os.system": lambda trap: ema(call(named("os", "system"), text(f"touch {trap}"))),
    "posix.system": lambda trap: ema(call(by_line("posix", "system"), text(f"touch {trap}"))),
    "builtins.eval": lambda trap: ema(
        call(named("builtins", "eval"), text(f"open({trap!r}, 'w').close()"))
    ),
    "builtins.exec": lambda trap: ema(
        call(named("builtins", "exec"), text(f"open({trap!r}, 'w').close()"))
    ),
    "builtins.open": lambda trap: ema(call(named("builtins", "open"), text(trap), text("w"))),
    "builtins.getattr": lambda trap: ema(call(named("builtins", "getattr"), ORDERED, text("mro"))),
    "subprocess.Popen": lambda trap: ema(call(named("subprocess", "Popen"), text("sh"))),
    "torch.load": lambda trap: ema(call(named("torch", "load"), text(trap))),
    "functools.partial": lambda trap: ema(call(named("functools", "partial"), ORDERED)),
    "importlib.import_module": lambda trap: ema(
        call(named("importlib", "import_module"), text("antigravity"))
    ),
    "numpy.load": lambda trap: ema(call(named("numpy", "load"), text(trap))),
    "training.networks.SongUNet": lambda trap: ema(call(named("training.networks", "SongUNet"))),
    # A dotted name would reach through an allowed module into what it imported.
    "collections._sys.modules": lambda trap: ema(named("collections", "_sys.modules")),
    "torch._utils.sys": lambda trap: ema(named("torch._utils", "sys")),
    "os.path.join": lambda trap: ema(by_line("os.path", "join")),
}


@pytest.fixture(scope="module")
def _everything_imported(tmp_path_factory):
    """Load one good pickle and one torch storage first, so that later imports would be seen."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "a.pkl"
    keywords = {"img_resolution": 8, "in_channels": 1, "model_channels": 8, "channel_mult": [1]}
    network = network_of(
        {"model.x": torch.zeros(1)}, "EDMPrecond", "SongUNet",
        outer_keywords={}, inner_keywords=keywords,
    )  # fmt: skip
    write_checkpoint(path, network)
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_denoiser(path)


def refuse(tmp_path, content, message):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)

    def attempt():
        with pytest.raises(CheckpointError) as caught:
            load_denoiser(path)
        text.found = str(caught.value)

    ran = audited(attempt)
    assert ran == []
    assert message in text.found, text.found
    assert len(text.found) < 2000
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("_everything_imported")
@pytest.mark.parametrize("asked", CODE)
def test_name_that_is_not_allowed_is_refused_by_name(tmp_path, asked):
    refuse(tmp_path, CODE[asked](sprung(tmp_path)), f"asks for {asked!r}, which is not allowed")


@pytest.mark.parametrize("asked", ["builtins.eval", "builtins.exec"])
def test_the_traps_are_armed(tmp_path, asked):
    # What is refused above does run where a pickle is loaded the usual way.
    pickle.loads(CODE[asked](sprung(tmp_path)))
    assert (tmp_path / "sprung").exists()


def _code_in_module_src(trap):
    source = f"open({trap!r}, 'w')"
    network = network_of(
        {}, "EDMPrecond", "Evil", outer_keywords={}, inner_keywords={}, source=source
    )
    file = io.BytesIO()
    with published_modules():
        pickle.dump({"ema": network}, file)
    return file.getvalue()


def _nested_in_itself():
    """A module that is a part of itself."""
    kwargs = text("_init_kwargs") + op("EMPTY_DICT") + _interface()
    inner = meta("SongUNet", kwargs, text("_modules"), op("BINGET") + b"\x07")
    parts = op("EMPTY_DICT") + op("BINPUT") + b"\x07" + text("model") + inner + op("SETITEM")
    return ema(meta("EDMPrecond", text("_init_kwargs"), op("EMPTY_DICT"), text("_modules"), parts))


def _interface():
    one = b"K\x01"
    return (
        op("MARK") + text("img_resolution") + b"K\x08" + text("in_channels") + one
        + text("model_channels") + b"K\x08" + text("channel_mult") + op("EMPTY_LIST") + one
        + op("APPEND") + op("SETITEMS")
    )  # fmt: skip


STRUCTURE = {
    "code in module_src is not looked at": (_code_in_module_src, "its network is a 'Evil'"),
    "extension registry": (lambda _: ema(b"\x82\x01"), "number 1 of the extension registry"),
    "extension registry, 4 bytes": (
        lambda _: ema(b"\x84\x01\x00\x00\x00"), "number 1 of the extension registry",
    ),
    "persistent id": (lambda _: ema(b"Pstorage\n"), "persistent id 'storage'"),
    "persistent id on the stack": (lambda _: ema(text("x") + b"Q"), "persistent id"),
    "instance opcode": (lambda _: ema(b"(ios\nsystem\n"), "an instance of 'os.system'"),
    "object opcode": (lambda _: ema(b"(" + ORDERED + b"o"), "opcode OBJ is not allowed"),
    "out-of-band buffer": (lambda _: ema(b"\x97"), "opcode NEXT_BUFFER is not allowed"),
    "calling the result of a call": (
        lambda _: ema(call(call(ORDERED), text("x"))), "calls an object made by 'collections",
    ),
    "calling a text": (lambda _: ema(call(text("os.system"))), "calls a str"),
    "arguments that are no tuple": (
        lambda _: ema(ORDERED + text("x") + op("REDUCE")), "a str in place of a tuple",
    ),
    "state of a name": (
        lambda _: ema(ORDERED + op("EMPTY_DICT") + op("BUILD")), "sets the state of 'collections",
    ),
    "state twice": (
        lambda _: ema(
            call(ORDERED) + text("a") + op("BUILD") + text("b") + op("BUILD")
        ),
        "twice",
    ),
    "state of a dict": (lambda _: ema(op("EMPTY_DICT") + NONE + op("BUILD")), "state of a dict"),
    "keywords": (
        lambda _: ema(
            ORDERED + op("EMPTY_TUPLE") + op("EMPTY_DICT") + text("a") + NONE + op("SETITEM")
            + op("NEWOBJ_EX")
        ),
        "with keywords",
    ),
    "an object as a key": (
        lambda _: ema(op("EMPTY_DICT") + call(ORDERED) + NONE + op("SETITEM")), "as a key",
    ),
    "items of a text": (lambda _: ema(text("a") + text("b") + NONE + op("SETITEM")), "no mapping"),
    "appending to a tuple": (lambda _: ema(op("EMPTY_TUPLE") + NONE + op("APPEND")), "no list"),
    "bytes that are not there": (
        lambda _: ema(op("BINBYTES8") + struct.pack("<Q", 1 << 62)), "bytes announced",
    ),
    "text that is not there": (
        lambda _: ema(op("BINUNICODE8") + struct.pack("<Q", 1 << 62)), "damaged or truncated",
    ),
    "huge number": (lambda _: ema(b"L" + b"9" * 100_000 + b"L\n"), "damaged or truncated"),
    "memo never written": (lambda _: ema(op("LONG_BINGET") + b"\xff" * 4), "damaged or truncated"),
    "stack that grows": (lambda _: PROTO + NONE * DEEP + STOP, "objects on the stack"),
    "before a mark": (lambda _: PROTO + NONE + b"(" + b"0" + STOP, "before a mark"),
    "empty stack": (lambda _: PROTO + STOP, "damaged or truncated"),
    "unknown opcode": (lambda _: ema(b"\xfe"), "unknown opcode"),
    "no mapping": (lambda _: PROTO + NONE + STOP, "the pickle is no mapping"),
    "no ema": (lambda _: PROTO + op("EMPTY_DICT") + STOP, "no network under 'ema'"),
    "nested lists": (
        lambda _: ema(b"]" * 50_000 + b"a" * 49_999), "no network under 'ema'",
    ),
    "module in itself": (lambda _: _nested_in_itself(), "a part of itself"),
}  # fmt: skip


@pytest.mark.usefixtures("_everything_imported")
@pytest.mark.parametrize("what", STRUCTURE)
def test_malformed_structure_is_refused(tmp_path, what):
    make, message = STRUCTURE[what]
    refuse(tmp_path, make(sprung(tmp_path)), message)


def test_memo_index_costs_no_memory(tmp_path):
    # The stock machine makes room for every index below the one that is written.
    path = tmp_path / "a.pkl"
    path.write_bytes(PROTO + text("x") + op("LONG_BINPUT") + b"\xff\xff\xff\x7f" + STOP)
    assert read_pickle_graph(path, ()) == "x"


def test_endless_opcodes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_graph, "_MAX_OPCODES", 5000)
    with pytest.raises(PickleError, match="more than 5,000 opcodes"):
        _graph(tmp_path, PROTO + b"N0" * 3000 + NONE + STOP)
    assert _graph(tmp_path, PROTO + b"N0" * 2000 + NONE + STOP) is None


def test_doubling_structure_is_not_walked(tmp_path):
    # Each level holds the one before twice: 2**60 leaves for whoever walks, prints or hashes it.
    body = op("EMPTY_LIST") + op("MEMOIZE")
    for level in range(60):
        again = op("BINGET") + bytes([level])
        body += op("POP") + again + again + op("TUPLE2") + op("MEMOIZE")
    with pytest.raises(PickleError, match="as a key"):
        _graph(tmp_path, PROTO + op("EMPTY_DICT") + body + NONE + op("SETITEM") + STOP)
    path = tmp_path / "kwargs.pkl"
    kwargs = op("EMPTY_DICT") + text("in_channels") + body + op("SETITEM")
    inner = meta("SongUNet", text("_init_kwargs"), kwargs)
    parts = op("EMPTY_DICT") + text("model") + inner + op("SETITEM")
    content = meta("EDMPrecond", text("_init_kwargs"), op("EMPTY_DICT"), text("_modules"), parts)
    path.write_bytes(ema(content))
    with pytest.raises(CheckpointError, match="settings are not valid"):
        read_configuration(path)


def _graph(tmp_path, content):
    path = tmp_path / "graph.pkl"
    path.write_bytes(content)
    return read_pickle_graph(path, ALLOWED)


def storage_of(data):
    return call(
        named("torch.storage", "_load_from_bytes"),
        op("BINBYTES") + struct.pack("<I", len(data)) + data,
    )


def tensor_of(storage, size=b"K\x02", offset=b"K\x00"):
    one = b"K\x01" + op("TUPLE1")
    return call(
        named("torch._utils", "_rebuild_tensor_v2"),
        storage, offset, size + op("TUPLE1"), one, op("NEWFALSE"), call(ORDERED),
    )  # fmt: skip


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def typed(count):
    return torch.storage.TypedStorage(
        wrap_storage=torch.zeros(count).untyped_storage(), dtype=torch.float32, _internal=True
    )


STORAGES = {
    "untyped storage": (
        lambda _: tensor_of(storage_of(saved(
            torch.zeros(2).untyped_storage(), _use_new_zipfile_serialization=False
        ))),
        "storage of 'model.x' is",
    ),
    "a tensor where a storage belongs": (
        lambda _: tensor_of(storage_of(saved(torch.zeros(2)))), "only typed storages",
    ),
    "code in the storage": (
        lambda trap: tensor_of(storage_of(pickle.dumps(_Trap(trap), protocol=2))),
        "storage of 'model.x' is refused by torch",
    ),
    "code in a saved storage": (
        lambda trap: tensor_of(storage_of(saved(_Trap(trap)))),
        "storage of 'model.x' is refused by torch",
    ),
    "no storage": (lambda _: tensor_of(text("x")), "not built as storages are"),
    "storage of text": (
        lambda _: tensor_of(call(named("torch.storage", "_load_from_bytes"), text("x"))),
        "is no bytes",
    ),
    "torn storage": (
        lambda _: tensor_of(storage_of(
            saved(typed(2), _use_new_zipfile_serialization=False)[:-3]
        )),
        "storage of 'model.x' is refused by torch",
    ),
    "storage too small": (
        lambda _: tensor_of(
            storage_of(saved(typed(2), _use_new_zipfile_serialization=False)), size=b"K\x63"
        ),
        "its storage holds 2 numbers",
    ),
    "size that is no number": (
        lambda _: tensor_of(
            storage_of(saved(typed(2), _use_new_zipfile_serialization=False)), size=text("2")
        ),
        "sizes are whole numbers",
    ),
    "negative offset": (
        lambda _: tensor_of(
            storage_of(saved(typed(2), _use_new_zipfile_serialization=False)),
            offset=b"J" + struct.pack("<i", -1),
        ),
        "sizes are whole numbers",
    ),
    "no tensor": (lambda _: call(ORDERED), "'model.x' is not built as tensors are"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.usefixtures("_everything_imported")
@pytest.mark.parametrize("what", STORAGES)
def test_wrong_tensor_or_storage_is_refused(tmp_path, what):
    make, message = STORAGES[what]
    parameters = op("EMPTY_DICT") + text("x") + make(sprung(tmp_path)) + op("SETITEM")
    kwargs = op("EMPTY_DICT") + _interface()
    inner = meta("SongUNet", text("_init_kwargs"), kwargs, text("_parameters"), parameters)
    parts = op("EMPTY_DICT") + text("model") + inner + op("SETITEM")
    outer = meta("EDMPrecond", text("_init_kwargs"), op("EMPTY_DICT"), text("_modules"), parts)
    refuse(tmp_path, ema(outer), message)


def test_a_good_tensor_passes_this_far(tmp_path):
    # So that the refusals above are of what they say: here only the rest of the network is missing.
    good = tensor_of(storage_of(saved(typed(2), _use_new_zipfile_serialization=False)))
    parameters = op("EMPTY_DICT") + text("x") + good + op("SETITEM")
    kwargs = op("EMPTY_DICT") + _interface()
    inner = meta("SongUNet", text("_init_kwargs"), kwargs, text("_parameters"), parameters)
    parts = op("EMPTY_DICT") + text("model") + inner + op("SETITEM")
    outer = meta("EDMPrecond", text("_init_kwargs"), op("EMPTY_DICT"), text("_modules"), parts)
    refuse(tmp_path, ema(outer), "1 unexpected (model.x)")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    state = {"model.x": torch.zeros(1000)}
    network = network_of(state, "EDMPrecond", "SongUNet", outer_keywords={}, inner_keywords={})
    write_checkpoint(tmp_path / "a.pkl", network)
    whole = (tmp_path / "a.pkl").read_bytes()
    (tmp_path / "a.pkl").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"damaged or truncated|in no known format"):
        load_denoiser(tmp_path / "a.pkl")


def test_every_name_in_the_published_format_is_one_of_a_short_list():
    # Whoever adds a name here must see that it is only noted, and never imported or called.
    assert len(ALLOWED) < 40
    modules = {name.rpartition(".")[0] for name in ALLOWED}
    assert not modules & {"os", "sys", "subprocess", "posix", "functools", "operator", "importlib"}


def test_stub_modules_are_gone_after_writing():
    assert not isinstance(sys.modules.get("dnnlib"), types.ModuleType)
