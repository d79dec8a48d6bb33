"""A pretended CUDA device: values that the CPU computes, under the rules that CUDA has.

Tensors say that they are on "cuda:0". Operands on two devices are refused, a copy to the host that
nobody has waited for is rubbish, a pinned source must not change before its copy has ended, and
everything that would make the host wait for the device is written down, with the line that asked.
Gradients are not pretended.
"""

import hashlib
import traceback
import unittest.mock
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended GPU"
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
RUBBISH = 0xEE

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.to.device, aten.to.dtype_layout, aten.to.dtype, aten.to.other}
INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
    aten._index_put_impl_.default, aten._unsafe_index.Tensor,
}  # fmt: skip
READS = {
    aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default,
    aten.masked_select.default, aten.equal.default, aten.is_nonzero.default,
}  # fmt: skip
"""What has to know a value, or how many there are, before the host can go on."""
VIEWS = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "split", "alias",
         "unsqueeze", "squeeze", "detach", "unbind", "chunk", "as_strided", "aten.t.")  # fmt: skip
"""What no kernel is launched for."""


class PretendedTensor(torch.Tensor):
    """Says that it is on the GPU; its values are those of ``inner``, on the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, gpu: "PretendedGpu") -> "PretendedTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CUDA
        )

    def __init__(self, inner: torch.Tensor, gpu: "PretendedGpu") -> None:
        self.inner, self.gpu = inner, gpu

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (gpu,) = {id(t.gpu): t.gpu for t in tree_leaves((args, kwargs)) if on_gpu(t)}.values()
        return gpu.run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


def on_gpu(thing: object) -> bool:
    return isinstance(thing, PretendedTensor)


class PretendedGpu(TorchDispatchMode):
    """The device: what it was given, what the host waited for, and what was done wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # of the host, by line of the package
        self.faults: list[str] = []
        self.launches: Counter[str] = Counter()  # kernels, by operation
        self._issued = 0
        self._under_way: deque[tuple[int, Callable[[], None]]] = deque()
        self._pinned: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    # ---- streams

    @property
    def issued(self) -> int:
        """Operations that it was given so far."""
        return self._issued

    def end(self, at: int) -> None:
        """Let everything happen that was issued up to a moment."""
        while self._under_way and self._under_way[0][0] <= at:
            self._under_way.popleft()[1]()

    def synchronize(self, *_: object) -> None:
        self.end(self._issued)

    def _wait(self, what: str) -> None:
        self.waits[f"{what} @ {line_of_the_package()}"] += 1
        self.synchronize()

    # ---- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        to = _destination(func, args, kwargs)
        if func is aten.is_pinned.default:
            return any(args[0] is p for p in self._pinned)
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            return self._pin(args[0].clone())
        if not any(on_gpu(t) for t in leaves) and to != "cuda":
            if not kwargs.get("pin_memory"):
                return func(*args, **kwargs)
            return self._pin(func(*args, **kwargs | {"pin_memory": False}))
        self._issued += 1
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func in MOVES and to is not None:
            return self._move(func, args, kwargs, to)
        self._check(func, args, leaves)
        if not any(name in str(func) for name in VIEWS):
            self.launches[str(func)] += 1
        return self._compute(func, args, kwargs, to)

    def _check(self, func: Any, args: Any, leaves: list[Any]) -> None:
        host = [t for t in leaves if isinstance(t, torch.Tensor) and not on_gpu(t) and t.dim()]
        if host and func in INDEXING and on_gpu(args[0]):
            if any(t.numel() for t in host):
                self._wait("indices on the host")
        elif host:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got some on cuda:0 and "
                f"others on cpu @ {line_of_the_package()}"
            )
        if func in INDEXING and any(
            isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1])
        ):
            self._wait("a mask")
        if func in READS:
            self._wait(str(func))

    def _compute(self, func: Any, args: Any, kwargs: Any, to: str | None) -> Any:
        known = {id(t.inner): t for t in tree_leaves((args, kwargs)) if on_gpu(t)}
        args, kwargs = tree_map(_inner, args), dict(tree_map(_inner, kwargs))
        if to is not None:
            kwargs["device"] = CPU
        out = func(*args, **kwargs)

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            same = known.get(id(value))
            return PretendedTensor(value, self) if same is None else same

        return tree_map(wrapped, out)

    # ---- copies

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.add(tensor)
        return tensor

    def _move(self, func: Any, args: Any, kwargs: Any, to: str) -> torch.Tensor:
        source, inner = args[0], _inner(args[0])
        on_its_own = func is aten.to.device
        dtype = kwargs.get("dtype") or (args[2] if on_its_own else None) or inner.dtype
        later = kwargs.get("non_blocking") or (on_its_own and len(args) > 3 and args[3])
        if to == "cpu":
            if on_gpu(source):
                self._wait("a copy to the host")
            return inner.to(dtype).clone()
        order = kwargs.get("memory_format") or torch.preserve_format
        moved = inner.to(dtype).clone(memory_format=order)
        if not on_gpu(source) and inner.numel():
            if later and any(source is p for p in self._pinned):
                self._watch_source(source)
            else:
                self._wait("a copy from pageable memory")
        return PretendedTensor(moved, self)

    def _watch_source(self, source: torch.Tensor) -> None:
        before, line = _digest(source), line_of_the_package()

        def check() -> None:
            if _digest(source) != before:
                self.faults.append(f"a pinned source changed before its copy ended @ {line}")

        self._under_way.append((self._issued, check))

    def _copy(self, target: Any, source: Any, non_blocking: bool = False) -> Any:
        into, value = _inner(target), _inner(source)
        if on_gpu(target) or not on_gpu(source):
            into.copy_(value)
        elif non_blocking and any(target is p for p in self._pinned):
            value = value.clone()
            if into.numel():
                into.view(torch.uint8).fill_(RUBBISH)  # until somebody waits
            self._under_way.append((self._issued, lambda: into.copy_(value)))
        else:
            self._wait("a copy to the host")
            into.copy_(value)
        return target


class _FirstDevice(TorchFunctionMode):
    """ "cuda" means "cuda:0": without a number torch asks the driver which device is current."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def numbered(value: Any) -> Any:
            if isinstance(value, torch.device):
                return CUDA if value.type == "cuda" else value
            return "cuda:0" if isinstance(value, str) and value == "cuda" else value

        named = {name: numbered(value) for name, value in (kwargs or {}).items()}
        return func(*(numbered(value) for value in args), **named)


@contextmanager
def pretended_gpu(free_bytes: int = 80 * 2**30) -> Iterator[PretendedGpu]:
    """Let torch find a GPU, this one, within the context."""
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, where there is no driver
    gpu = PretendedGpu()

    class Event:
        def record(self, stream: object = None) -> None:
            self.at = gpu.issued

        def synchronize(self) -> None:
            gpu.waits[f"an event @ {line_of_the_package()}"] += 1
            gpu.end(self.at)

    there = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None,
        "device_count": lambda: 1, "current_device": lambda: 0, "Event": Event,
        "synchronize": gpu.synchronize, "get_device_name": lambda *_: NAME,
        "mem_get_info": lambda *_: (free_bytes, free_bytes), "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None, "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
    }  # fmt: skip
    future = torch.__future__
    with ExitStack() as stack:
        stack.callback(
            future.set_overwrite_module_params_on_conversion,
            future.get_overwrite_module_params_on_conversion(),
        )
        future.set_overwrite_module_params_on_conversion(True)
        for name, value in there.items():
            stack.enter_context(unittest.mock.patch.object(torch.cuda, name, value))
        # Wrappers cannot be tensors of inference mode.
        stack.enter_context(unittest.mock.patch.object(torch, "inference_mode", torch.no_grad))
        stack.enter_context(gpu)
        stack.enter_context(_FirstDevice())
        yield gpu
        gpu.synchronize()


def line_of_the_package() -> str:
    """The innermost line of diffcert_ray that is being executed."""
    for frame in reversed(traceback.extract_stack()):
        _, found, path = frame.filename.rpartition("/diffcert_ray/")
        if found:
            return f"{path}:{frame.name}"
    return "?"


def _inner(thing: Any) -> Any:
    return thing.inner if on_gpu(thing) else thing


def _digest(tensor: torch.Tensor) -> str:
    if not tensor.numel():
        return ""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _destination(func: Any, args: Any, kwargs: Any) -> str | None:
    """The kind of device that an operation names, if it names one."""
    device = kwargs.get("device")
    if device is None and func is aten.to.device:
        device = args[1]
    return None if device is None else torch.device(device).type
