"""What a loaded network computes on this device, told by a fixed probe batch, bit by bit.

Its *numerics kind*, and the smaller batches in which its rows have the same bits.
"""

import hashlib
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.noise import NoiseSource

logger = logging.getLogger(__name__)

PROBE_SEED = 0x0D1FFCE7


def numerics_kind(denoiser: Denoiser, batch: int, device: str) -> str:
    """Hash of what the network returns on a fixed probe batch: equal kinds give equal bits.

    The probe is evaluated twice, the second time in another order; a network whose rows depend on
    their position gets a kind of its own and a warning, because its votes then depend on packing.

    Args:
        denoiser: the loaded network.
        batch: rows of every batch of the run.
        device: where the network lives.

    Returns:
        12 hex digits, with the suffix "-positional" where rows depend on their position.
    """
    return _kind(_evaluation(denoiser, batch, device), batch, device)


def kind_of_logits(
    logits: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], batch: int, device: str
) -> str:
    """The numerics kind of a trained classifier, as `numerics_kind`.

    Args:
        logits: of images [B, C, H, W] and their noise levels [B].
        shape: (C, H, W).
        batch: rows of every batch of the run.
        device: where the classifier lives.
    """
    z, s, _ = _probe(shape, batch, device)
    return _kind(lambda rows: logits(z[rows], s[rows]), batch, device)


def short_batches(denoiser: Denoiser, batch: int, device: str) -> tuple[int, ...]:
    """Halves, quarters, ... of a batch in which the probe's rows have the bits of the whole one.

    Libraries choose their algorithm by the batch's shape: on a CPU the digits network's rows are
    the same down to 16 and others below. The first size with other bits ends the search.

    Args:
        denoiser: the loaded network, eager.
        batch: rows of every batch of the run.
        device: where the network lives; on a GPU nothing is tried.

    Returns:
        Sizes, descending.
    """
    if device != "cpu":
        return ()
    evaluate, rows, found = _evaluation(denoiser, batch, device), torch.arange(batch), []
    with torch.inference_mode():
        whole, size = evaluate(rows), batch // 2
        while size and bool((evaluate(rows[:size]) == whole[:size]).all()):
            found.append(size)
            size //= 2
    return tuple(found)


def _evaluation(denoiser: Denoiser, batch: int, device: str) -> Callable[[Tensor], Tensor]:
    """Rows of the probe batch, int64 [n], to what the network returns for them."""
    z, s, row = _probe(denoiser.image_shape, batch, device)
    y = torch.from_numpy(row % (denoiser.num_classes or 1)).to(device)
    if denoiser.has_unconditional:
        y[:: 7 if denoiser.num_classes else 1] = -1
    return lambda rows: denoiser(z[rows], s[rows], y[rows])


def _probe(shape: tuple[int, ...], batch: int, device: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise [batch, C, H, W] at noise levels [batch] that go up, and the row numbers."""
    row = np.arange(batch)
    source = NoiseSource(PROBE_SEED, 0.0, int(np.prod(shape)))
    noise = source.normal(row, np.zeros_like(row), row, "internal", device=device)
    s = torch.linspace(0.1, 3.0, batch, device=device)
    return (s[:, None] * noise).reshape(batch, *shape), s, row


def _kind(evaluate: Callable[[Tensor], Tensor], batch: int, device: str) -> str:
    """Hash of what rows 0 to batch - 1 give, evaluated in this order and in the reverse one."""
    straight_rows = torch.arange(batch, device=device)
    order = torch.flip(straight_rows, [0])
    with torch.inference_mode():
        straight = evaluate(straight_rows)
        turned = evaluate(order)[order]
    kind = hashlib.sha256(straight.cpu().numpy().tobytes()).hexdigest()[:12]
    if bool((straight == turned).all()):
        return kind
    logger.warning("rows of a batch depend on their position on this device: kind=%s", kind)
    return kind + "-positional"
