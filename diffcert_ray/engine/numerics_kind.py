"""What a loaded network computes on this device, told by a fixed probe batch, bit by bit.

Its *numerics kind*, and the smaller batches in which its rows have the same bits.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.shortlist_head import ShortlistHead, with_bottom
from diffcert_ray.method.noise import NoiseSource

logger = logging.getLogger(__name__)

PROBE_SEED = 0x0D1FFCE7
POSITIONAL = "-positional"
COMPARED_ROWS = 32  # in each short batch size: another order of sums changes nearly every row
ROUNDING = 0.05  # of a row's largest output: one that moves by more depends on the other rows


def numerics_kind(denoiser: Denoiser, batch: int, device: str) -> str:
    """Hash of what the network returns on a fixed probe batch: equal kinds give equal bits.

    The probe is evaluated twice, the second time at other positions among other rows. A network
    whose rows then have other bits gets a kind of its own and a warning, because its votes depend
    on packing; one whose rows differ by more than rounding is refused, because its votes would not
    be independent, which every certificate assumes.

    Returns:
        12 hex digits, with the suffix "-positional" where rows depend on their position.

    Raises:
        ValueError: what the network returns for a row depends on the other rows, or on chance.
    """
    return _kind(_evaluation(denoiser, batch, device), batch, device)


def kind_of_heads(
    denoiser: Denoiser, heads: Sequence[ShortlistHead], batch: int, device: str
) -> str:
    """The numerics kind of a network and what heads say of its activations, as `numerics_kind`.

    The network is evaluated in the way in which its activations are had, which compiled may give
    other bits than the call without them.
    """
    z, s, y = _probe_of(denoiser, batch, device)
    call = with_bottom(denoiser)

    def evaluated(rows: Tensor) -> Tensor:
        estimate, bottom = call(z[rows], s[rows], y[rows])
        # Probabilities, since logarithms of small ones would hide everything beside them.
        said = [head(head.pooled(estimate, bottom)).exp() for head in heads]
        return torch.cat([estimate.flatten(1), *said], dim=1)

    return _kind(evaluated, batch, device)


def joint_kind(kinds: Sequence[str]) -> str:
    """One numerics kind for networks that a vote needs together; of one network, its own."""
    if len(kinds) == 1:
        return kinds[0]
    kind = hashlib.sha256("+".join(kinds).encode()).hexdigest()[:12]
    return kind + (POSITIONAL if any(k.endswith(POSITIONAL) for k in kinds) else "")


def kind_of_logits(
    logits: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], batch: int, device: str
) -> str:
    """The numerics kind of a trained classifier, as `numerics_kind`, refusals included.

    ``logits`` takes images [B, C, H, W] of a ``shape`` (C, H, W), and their noise levels [B].
    """
    z, s, _ = _probe(shape, batch, device)
    return _kind(lambda rows: logits(z[rows], s[rows]), batch, device)


def short_batches(denoiser: Denoiser, batch: int, device: str) -> tuple[int, ...]:
    """Halves, quarters, ... of a batch in which probe rows have the bits of the whole one.

    Libraries choose their algorithm by the batch's shape: on a CPU the digits network's rows are
    the same down to 16 and others below. The first size with other bits ends the search. The
    network is eager and in float32; on a GPU nothing is tried.
    """
    if device != "cpu":
        return ()
    evaluate = _evaluation(denoiser, batch, device)
    # Noise levels mixed: at low ones alone the network's output counts little.
    rows = torch.randperm(batch, generator=torch.Generator().manual_seed(PROBE_SEED))
    sizes: list[int] = []
    size = batch // 2
    with torch.inference_mode():
        whole = evaluate(rows)
        while size:
            for start in range(0, min(max(size, COMPARED_ROWS), batch - size + 1), size):
                stop = start + size
                if not torch.equal(evaluate(rows[start:stop]), whole[start:stop]):
                    return tuple(sizes)
            sizes.append(size)
            size //= 2
    return tuple(sizes)


def _evaluation(denoiser: Denoiser, batch: int, device: str) -> Callable[[Tensor], Tensor]:
    """Rows of the probe batch, int64 [n], to what the network returns for them."""
    z, s, y = _probe_of(denoiser, batch, device)
    return lambda rows: denoiser(z[rows], s[rows], y[rows])


def _probe_of(denoiser: Denoiser, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, noise levels and classes of a probe batch of a network."""
    z, s, row = _probe(denoiser.image_shape, batch, device)
    y = torch.from_numpy(row % (denoiser.num_classes or 1)).to(device)
    if denoiser.has_unconditional:
        y[:: 7 if denoiser.num_classes else 1] = NO_CLASS
    return z, s, y


def _probe(shape: tuple[int, ...], batch: int, device: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise [batch, C, H, W] at noise levels [batch] that go up, and the row numbers."""
    row = np.arange(batch)
    source = NoiseSource(PROBE_SEED, 0.0, int(np.prod(shape)))
    noise = source.normal(row, np.zeros_like(row), row, device=device)
    s = torch.linspace(0.1, 3.0, batch, device=device)
    return (s[:, None] * noise).reshape(batch, *shape), s, row


def _kind(evaluate: Callable[[Tensor], Tensor], batch: int, device: str) -> str:
    """Hash of what rows 0 to batch - 1 give, and whether each gives it anywhere among any rows."""
    rows = torch.arange(batch, device=device)
    elsewhere = torch.flip(rows % -(-batch // 2), [0])  # other neighbours, too: some rows twice
    with torch.inference_mode():
        straight = evaluate(rows)
        moved, same = evaluate(elsewhere), straight[elsewhere]
    kind = hashlib.sha256(straight.cpu().numpy().tobytes()).hexdigest()[:12]
    if bool((moved == same).all()):
        return kind
    # Row by row, so that no large row hides another; NaN is a value like others.
    moved, same = (torch.nan_to_num(t.float()).flatten(1) for t in (moved, same))
    gaps, sizes = (moved - same).abs().amax(1), same.abs().amax(1)
    if bool((gaps > ROUNDING * sizes).any()):
        worst = int((gaps - ROUNDING * sizes).argmax())
        raise ValueError(
            "what the network returns for an image depends on the other images of its batch, or "
            f"on chance (by {float(gaps[worst]):.3g} where outputs are at most "
            f"{float(sizes[worst]):.3g}): votes would not be independent, and no certificate would "
            "hold; put it in evaluation mode, without normalisation over the batch"
        )
    logger.warning("rows of a batch depend on their position on this device: kind=%s", kind)
    return kind + POSITIONAL
