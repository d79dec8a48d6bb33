"""Gaussian noise as a function of its address: (seed, sigma, image, stream, vote, purpose, level).

Smoothing noise comes as integers, steps of the grid (``method.grid``), from 64-bit uniforms;
internal noise as float32 numbers, from 32-bit ones.

Nothing is drawn from a generator with a state, so a vote's noise is the same on every worker, after
every restart and in every batch. The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3"), followed by the Box-Muller transform in float64,
rounded to float32 at the end: libraries differ in the last bits of a float64 logarithm or cosine,
and almost none of these differences survives the rounding.

Layout of an address. The 64-bit key is a hash of (seed, sigma), the 128-bit counter is
``[block, vote, image, stream | purpose | level]``; a block of internal noise has four numbers, one
of smoothing noise two. Within one seed and sigma no two
addresses can meet: they are different counters of one bijection.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import MAX_IMAGE_ID, STREAM_NAMES
from diffcert_ray.datasets.pixel_grid import STEPS
from diffcert_ray.denoisers.device import sent
from diffcert_ray.method.grid import MIDDLE, check_sigma_on_grid
from diffcert_ray.method.noise_key import noise_key

SMOOTHING, INTERNAL = 0, 1
"""What noise is for, a bit of its address: no internal noise equals a smoothing noise."""
MAX_VOTE = 2**32 - 1
MAX_LEVEL = 2**24 - 1
MAX_ELEMENTS = 2**34

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on many counters at once.

    Args:
        counter: four int64 tensors of one (broadcastable) shape, values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, values uniform in [0, 2^32).

    Source: Salmon et al. 2011, section 3.3; known-answer vectors of the Random123 library.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit numbers wraps in int64, but its 64 bits are those of the
        # unsigned product; the shift is arithmetic, so the high word needs the mask.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal noise of one run at one smoothing level.

    Args:
        seed: the run's seed, 0 <= seed < 2^63.
        sigma: smoothing noise in pixel units; it only tells the streams of two sigmas apart.
        elements: numbers in one noise tensor, D = C * H * W.

    Raises:
        ValueError: the seed or the number of elements is out of range.
    """

    seed: int
    sigma: float
    elements: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}: it must be in [0, 2^63); choose another one")
        if not 1 <= self.elements < MAX_ELEMENTS:
            raise ValueError(
                f"an image has {self.elements} elements: "
                f"the noise address holds 1 to {MAX_ELEMENTS - 1}"
            )

    @property
    def key(self) -> tuple[int, int]:
        """The two key words of Philox for this seed and sigma."""
        return noise_key(self.seed, self.sigma)

    def steps(
        self,
        image_id: np.ndarray,
        stream: np.ndarray,
        vote: np.ndarray,
        *,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Smoothing noise for N addresses, in steps of the grid: K = round(sigma G / h).

        Args:
            image_id: int64 [N], in [0, 2^32).
            stream: int64 [N], index into conventions.STREAM_NAMES.
            vote: int64 [N], in [0, 2^32).
            device: where the numbers are made.

        Returns:
            int32 [N, elements], equal for any N and order; on CPU and GPU equal but with the
            probability that ``grid.slack`` accounts for.

        Raises:
            ValueError: part of an address is out of range, or sigma does not fit the grid.
        """
        check_sigma_on_grid(self.sigma)
        words = self._words(image_id, stream, vote, SMOOTHING, 0, -(-self.elements // 2), device)
        normal = _box_muller_64(*words)[:, : self.elements]
        return torch.round(normal.mul_(self.sigma * STEPS)).to(torch.int32)

    def normal(
        self,
        image_id: np.ndarray,
        stream: np.ndarray,
        vote: np.ndarray,
        level: np.ndarray | int = 0,
        *,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Internal noise of the base classifier for N addresses: standard normal numbers.

        Args:
            image_id: int64 [N], in [0, 2^32).
            stream: int64 [N], index into conventions.STREAM_NAMES.
            vote: int64 [N], in [0, 2^32).
            level: index of the noise level, int64 [N] or one number, in [0, 2^24).
            device: where the numbers are made.

        Returns:
            float32 [N, elements], equal on CPU and GPU to 1e-5, equal for any N and order.

        Raises:
            ValueError: part of an address is out of range.
        """
        blocks = -(-self.elements // 4)
        words = self._words(image_id, stream, vote, INTERNAL, level, blocks, device)
        return _box_muller(*words)[:, : self.elements].to(torch.float32)

    def _words(
        self,
        image_id: np.ndarray,
        stream: np.ndarray,
        vote: np.ndarray,
        purpose: int,
        level: np.ndarray | int,
        blocks: int,
        device: torch.device | str,
    ) -> tuple[Tensor, ...]:
        """Four uniform words [N, blocks] for each block of each address."""
        _check_range("image_id", image_id, MAX_IMAGE_ID)
        _check_range("vote", vote, MAX_VOTE)
        _check_range("level", level, MAX_LEVEL)
        _check_range("stream", stream, len(STREAM_NAMES) - 1)
        tag = np.asarray(stream, np.int64) | (purpose << 1)
        words = np.empty((3, len(vote)), np.int64)
        words[0], words[1] = vote, image_id
        words[2] = (tag << 24) | level
        address = sent(words, device)[:, :, None]
        block = torch.arange(blocks, device=device)[None, :]
        return philox4x32((block, address[0], address[1], address[2]), self.key)


def noisy_model_images(points: Tensor, steps: Tensor) -> Tensor:
    """What a base classifier is shown of images under smoothing noise, and all that it is shown.

    Args:
        points: int32, images as grid points (``grid.to_grid``), any shape.
        steps: int32, their noise, the same shape.

    Returns:
        float32, model space: a function of the integers ``points + steps`` alone, by an exact
        subtraction, one division in float64 and one rounding. ``2 x - 1`` of the noisy pixels.
    """
    return ((points + steps - MIDDLE).to(torch.float64) / MIDDLE).to(torch.float32)


def _box_muller(x0: Tensor, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    """Four uniform words per block to four normals: [N, blocks] each -> float64 [N, 4 * blocks]."""
    # The middle of each of the 2^32 cells: never 0 or 1, and symmetric.
    scale = 2.0**-32
    radius = torch.stack((x0, x2), dim=-1).double().add_(0.5).mul_(scale).log_().mul_(-2.0).sqrt_()
    angle = torch.stack((x1, x3), dim=-1).double().add_(0.5).mul_(scale * 2.0 * np.pi)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(1)


def _box_muller_64(x0: Tensor, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    """Two uniforms of 64 bits per block to two normals: [N, blocks] each -> [N, 2 * blocks].

    The errors of every step are counted in ``grid.slack``.
    """
    scale = 2.0**-64
    # Middles of cells of 2^-64: U in (0, 1), V in (-1/2, 1/2), each rounded once.
    u = (x0.double().mul_(2.0**32)).add_(x1.double().add_(0.5)).mul_(scale)
    v = ((x2 - 2**31).double().mul_(2.0**32)).add_(x3.double().add_(0.5)).mul_(scale)
    radius = u.log_().mul_(-2.0).sqrt_()
    angle = v.mul_(2.0 * np.pi)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(1)


def _check_range(name: str, values: np.ndarray | int, limit: int) -> None:
    array = np.asarray(values)
    if array.size and (int(array.min()) < 0 or int(array.max()) > limit):
        raise ValueError(
            f"{name} {int(array.min())}..{int(array.max())} is out of range: "
            f"a noise address holds 0 to {limit}; number the images and votes from 0"
        )
