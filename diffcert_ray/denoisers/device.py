"""Where a network computes: its device, memory order and compilation, and copies to and from it."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import BottomDenoiser
from diffcert_ray.errors import CheckpointError, ConfigError

_REMEDY = "set numerics.compile = false, or give a new run folder if this one was started compiled"

# No autotuning: a kernel chosen by timing would make the last bits depend on the moment.
_OPTIONS: dict[str, Any] = {"freezing": True, "max_autotune": False}


def resolve_device(asked: str, key: str = "execution.device") -> str:
    """The device that "auto", "cpu" or "cuda" stands for on this machine.

    Args:
        asked: one of the three.
        key: the setting that an error is to name.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError(
            f'{key} = "cuda", but torch finds no GPU here: check the driver (nvidia-smi) '
            f'and that torch has CUDA, or set {key} = "cpu"'
        )
    return "cuda" if asked != "cpu" and available else "cpu"


def check_device(device: str, worker: str) -> None:
    """Refuse, by name, a worker that has no such device: whoever asked for it had none to look at.

    Raises:
        ConfigError: the device is "cuda", and torch finds no GPU in this process.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"worker {worker!r} on {socket.gethostname()} is to compute on a GPU "
            f"(execution.device), but torch {torch.__version__} finds none there: check its driver "
            "(nvidia-smi) and that its torch has CUDA, start its Ray with the GPUs that it really "
            'has, or set execution.device = "cpu"'
        )


def device_name(device: str) -> str:
    """What stored rows say of a device: the model of the GPU, or "cpu"."""
    return torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device


def device_model(device: str) -> str:
    """What a kind of numbers depends on: the model of the GPU, or the CPU's vectors; and torch."""
    if torch.device(device).type == "cuda":
        model = torch.cuda.get_device_name()
    else:
        model = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{model}, torch {torch.__version__}"


def set_up_torch(dtype: str = "float32") -> None:
    """Let this process compute the way that every worker does, in a ``numerics.dtype``."""
    # One thread for each CPU worker: two threads in each of two processes are 30 times slower.
    torch.set_num_threads(1)
    compute_alike(dtype)


def compute_alike(dtype: str = "float32") -> None:
    """Let this process compute the numbers that every worker computes; its threads stay."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may vary, and warns
    torch.backends.cudnn.benchmark = False
    # What use_deterministic_algorithms does, without seconds of importing the compiler.
    torch.set_deterministic_debug_mode("warn")
    # It would write NaN to all memory before it is used, 4 to 8 % of an evaluation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():  # float32 is what it says: a GPU's votes are to be a CPU's
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


def keep_channels_last(denoiser: Denoiser) -> None:
    """Let a denoiser keep all channels of a pixel together, in place.

    Convolutions hand on the order of their filters, so nothing needs to be done to the input. What
    it returns may differ from the usual order's in the last bits: another numerics kind.

    Args:
        denoiser: a torch module.

    Raises:
        CheckpointError: it is no torch module.
    """
    if not isinstance(denoiser, nn.Module):
        raise CheckpointError(
            f"numerics.channels_last is true, but a {type(denoiser).__name__} is no torch module: "
            "set numerics.channels_last = false"
        )
    denoiser.to(memory_format=torch.channels_last)


def compile_denoiser(denoiser: Denoiser, *, bottom: bool = False) -> None:
    """Compile a denoiser in place; the first call with a batch shape then takes a minute or so.

    Weights become constants of the compiled code, so they must not change afterwards. What it
    returns may differ from the eager network's in the last bits: another numerics kind.

    Args:
        denoiser: a torch module, in evaluation mode and without gradients for its weights.
        bottom: its ``with_bottom`` is what will be called, if it has one.

    Raises:
        CheckpointError: it is no torch module.
    """
    if not isinstance(denoiser, nn.Module):
        raise CheckpointError(
            f"numerics.compile is true, but a {type(denoiser).__name__} is no torch module, and "
            f"only those can be compiled: {_REMEDY}"
        )
    torch.use_deterministic_algorithms(True, warn_only=True)  # of the compiler, too
    denoiser.compile(fullgraph=True, dynamic=False, options=_OPTIONS)
    if bottom and isinstance(denoiser, BottomDenoiser):
        way = torch.compile(denoiser.with_bottom, fullgraph=True, dynamic=False, options=_OPTIONS)
        denoiser.with_bottom = way  # type: ignore[method-assign]


def compile_classifier(network: nn.Module) -> None:
    """Compile any torch module in place, as `compile_denoiser`; parts that cannot be stay eager."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    network.compile(dynamic=False, options=_OPTIONS)


def compiled_how() -> str:
    """How this process came to its compiled networks: "anew", or "from the cache".

    The compiler keeps its code on each machine's disk (TORCHINDUCTOR_CACHE_DIR): the first worker
    of a node pays for it, the others and later runs load it.
    """
    from torch._dynamo.utils import counters

    seen = counters["inductor"]
    if seen["fxgraph_cache_hit"] and not seen["fxgraph_cache_miss"]:
        return "from the cache"
    return "anew"


def compilation_failures() -> tuple[type[Exception], ...]:
    """What a compiled denoiser's first call raises where it cannot be compiled."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    return (
        BackendCompilerFailed, Unsupported, CppCompileError, InductorError, InvalidCxxCompiler,
    )  # fmt: skip


def no_compiler(error: Exception) -> CheckpointError:
    """The one error for a denoiser that could not be compiled on this machine."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"numerics.compile is true, but the network cannot be compiled on this machine ({reason}): "
        f"install a C++ compiler (g++), or {_REMEDY}; torch {torch.__version__}"
    )


def sent(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array on the device, without waiting for the device.

    On a GPU it goes through pinned memory, so that the copy joins the queue of the device's work
    and the host goes on.

    Args:
        array: any shape; on a CPU the tensor may share its memory.
        device: "cpu" or "cuda".

    Returns:
        A tensor of the same shape and type, ready for what is queued on the device after it.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Coming:
    """A tensor on its way to the host; only reading it waits for the device.

    Args:
        tensor: on any device; what is queued there before this call is in it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: Any = None
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def array(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()
