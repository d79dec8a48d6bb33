"""The floor of an evaluation's time on this device, from its operations and bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.edm import NETWORK_DTYPES
from diffcert_ray.engine.memory import eager, example_rows, network_bytes
from diffcert_ray.engine.speed import seconds

COUNTED_ROWS = 2
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}
ROUNDS = 5  # of a measurement, of which the fastest counts


@dataclass(frozen=True)
class Speeds:
    """What the device does at its best.

    Args:
        flop_per_s: of a large product of matrices in the network's dtype, per second.
        bytes_per_s: read and written by a large copy, per second.
    """

    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Floor:
    """The least that one evaluation takes.

    Args:
        flop: operations of one evaluation, two for a multiplication and an addition.
        bytes: moved for one evaluation in batches of ``batch``: the weights' share, and what
            convolutions and products of matrices read and write, everything else being merged
            into them.
        batch: rows that share the weights.
        speeds: of the device.
    """

    flop: float
    bytes: float
    batch: int
    speeds: Speeds

    @property
    def nfe_per_s(self) -> float:
        """Evaluations per second if the device did nothing but its best."""
        return 1.0 / max(self.flop / self.speeds.flop_per_s, self.bytes / self.speeds.bytes_per_s)


def device_speeds(device: str, dtype: str) -> Speeds:
    """Measure the best that the device does in a dtype; the fastest of some rounds."""
    kind = NETWORK_DTYPES[dtype]
    a = torch.ones(SIDE[device], SIDE[device], dtype=kind, device=device)
    source = torch.ones(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    product = a @ a
    multiplying, copying = [], []
    for _ in range(ROUNDS):
        began = seconds(device)
        torch.matmul(a, a, out=product)
        middle = seconds(device)
        copy.copy_(source)
        multiplying.append(middle - began)
        copying.append(seconds(device) - middle)
    flop = 2.0 * SIDE[device] ** 3
    return Speeds(flop / min(multiplying), 2.0 * COPIED_BYTES[device] / min(copying))


def floor(denoiser: Denoiser, batch: int, device: str, speeds: Speeds) -> Floor:
    """Count the operations and bytes of an evaluation in batches of ``batch`` rows."""
    rows = example_rows(denoiser, COUNTED_ROWS, device)
    network = eager(denoiser)
    # Not in inference mode, which hides the parts of composite operations.
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        network(*rows)
    weights = network_bytes(denoiser)
    moved = max(0, traffic.bytes - weights) / COUNTED_ROWS + weights / batch
    return Floor(flops.get_total_flops() / COUNTED_ROWS, moved, batch, speeds)


class _Traffic(TorchDispatchMode):
    """Bytes that convolutions and products of matrices read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            for leaf in tree_leaves((args, kwargs, out)):
                if isinstance(leaf, Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return out
