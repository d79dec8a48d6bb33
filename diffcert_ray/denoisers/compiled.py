"""Compile a network once for one batch shape, for runs long enough to pay for it."""

from __future__ import annotations

import torch
from torch import nn

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.errors import CheckpointError

REMEDY = "set numerics.compile = false, or give a new run folder if this one was started compiled"

# No autotuning: a kernel chosen by timing would make the last bits depend on the moment.
_OPTIONS = {"freezing": True, "max_autotune": False}


def compile_denoiser(denoiser: Denoiser) -> None:
    """Compile a denoiser in place; the first call with a batch shape then takes a minute or so.

    Weights become constants of the compiled code, so they must not change afterwards. What it
    returns may differ from the eager network's in the last bits: another numerics kind.

    Args:
        denoiser: a torch module, in evaluation mode and without gradients for its weights.

    Raises:
        CheckpointError: it is no torch module.
    """
    if not isinstance(denoiser, nn.Module):
        raise CheckpointError(
            f"numerics.compile is true, but a {type(denoiser).__name__} is no torch module, and "
            f"only those can be compiled: {REMEDY}"
        )
    torch.use_deterministic_algorithms(True, warn_only=True)  # of the compiler, too
    denoiser.compile(fullgraph=True, dynamic=False, options=_OPTIONS)


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
        f"install a C++ compiler (g++), or {REMEDY}; torch {torch.__version__}"
    )
