"""What is said where a batch does not fit into memory: which one would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from diffcert_ray.denoisers.device import device_name
from diffcert_ray.engine.memory import out_of_memory
from diffcert_ray.errors import PoolError

T = TypeVar("T")


def evaluated(evaluate: Callable[[int], T], batch: int, device: str, *, smaller: bool = True) -> T:
    """What ``evaluate`` returns of a batch size.

    Args:
        evaluate: by the batch size; as `evaluate` of a worker.
        batch: rows.
        device: where memory may run out.
        smaller: look which smaller batch fits; not where each size is compiled for a minute.

    Raises:
        PoolError: memory ran out; the message names ``numerics.batch`` and the batch to set.
    """
    ran_out = ""
    try:
        return evaluate(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        ran_out = str(error).strip().partition("\n")[0]
    # Here the error is gone, and with it what its frames held.
    fits = _largest_fitting(evaluate, batch, device) if smaller else batch // 2
    raise PoolError(_said(batch, fits, device, ran_out, tried=smaller))


@contextmanager
def named(batch: int, device: str) -> Iterator[None]:
    """Say of memory that runs out within the context that it was the batch's (PoolError)."""
    ran_out = None
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        ran_out = str(error).strip().partition("\n")[0]
    if ran_out is not None:
        raise PoolError(_said(batch, batch // 2, device, ran_out, tried=False))


def _largest_fitting(evaluate: Callable[[int], object], batch: int, device: str) -> int:
    """The largest half, quarter, ... that fits; 0 if none does."""
    size = batch // 2
    while size:
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        try:
            evaluate(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        size //= 2
    return 0


def _said(batch: int, fits: int, device: str, ran_out: str, *, tried: bool) -> str:
    remedy = "take a smaller network, or a device with more memory"
    if fits:
        sure = "which fits" if tried else "or less"
        remedy = (
            f"set numerics.batch = {fits}, {sure}, in a new run (--run), since the [numerics] of a "
            "run never change, or give each worker more memory (execution.gpus_per_actor)"
        )
    return (
        f"a batch of numerics.batch = {batch} rows does not fit into the memory of "
        f"{device_name(device)} ({ran_out}): {remedy}"
    )
