"""Memory of a network: what tensors take at their peak while something is evaluated."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcert_ray.denoisers.denoiser import Denoiser


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that are still alive.

    Compiled code is one operation here, whose inner buffers are not seen: evaluate eagerly.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take note of what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Most bytes of tensors that some work has alive at once, beyond what was there before.

    On a CPU compiled code hides its own.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveTensors() as live:
        work()
    return live.peak


def example_rows(denoiser: Denoiser, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [B, C, H, W] at levels [B] inside the network's range, and classes [B].

    The values matter to no time, as long as they are no denormal numbers.
    """
    low, high = denoiser.s_range
    s = torch.linspace(max(0.1, low), min(3.0, high), batch, device=device)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, *denoiser.image_shape, generator=generator).to(device)
    y = torch.arange(batch, device=device) % max(1, denoiser.num_classes)
    return u * s[:, None, None, None], s, y if denoiser.num_classes else y - 1


def activation_bytes(denoiser: Denoiser, batch: int, device: str) -> int:
    """Peak of the tensors of one batch without the weights, input and output included."""
    network = eager(denoiser) if device == "cpu" else denoiser
    with torch.inference_mode():
        return peak_bytes(lambda: network(*example_rows(denoiser, batch, device)), device)


def network_bytes(denoiser: Denoiser) -> int:
    """Bytes of parameters and buffers; 0 for what is no torch module."""
    if not isinstance(denoiser, nn.Module):
        return 0
    return sum(t.numel() * t.element_size() for t in (*denoiser.parameters(), *denoiser.buffers()))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def needed_bytes(denoiser: Denoiser, batch: int) -> int:
    """Weights and activations of a batch on a CPU, from the live tensors of a batch of two."""
    return network_bytes(denoiser) + activation_bytes(denoiser, 2, "cpu") * batch // 2


def eager(denoiser: Denoiser) -> Denoiser:
    """The same network, not compiled."""
    return _Eager(denoiser) if isinstance(denoiser, nn.Module) else denoiser


class _Eager:
    def __init__(self, network: Any) -> None:
        self._network = network
        self.image_shape, self.num_classes = network.image_shape, network.num_classes
        self.has_unconditional, self.s_range = network.has_unconditional, network.s_range

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        # nn.Module.compile() replaces calls of the module; its forward stays as it was.
        return self._network.forward(u, s, y)
