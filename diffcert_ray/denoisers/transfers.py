"""Arrays between the host and the device of the networks, without waiting for the device.

On a CPU both are the same memory. On a GPU arrays go through pinned memory, so that a copy joins
the queue of the device's work and the host goes on; only reading a ``Coming`` array waits.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def sent(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array on the device.

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
    """A tensor on its way to the host.

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
