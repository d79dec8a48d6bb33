"""Layers that the EDM networks are made of, named as in their published checkpoints.

Shape letters: B samples, C channels, H W pixels, E embedding channels, P = H*W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The axes that the channels of a qkv layer stand for, in the orders that checkpoints have.
_QKV_AXES = {
    "interleaved": ("heads", "channels", "qkv"),
    "head": ("heads", "qkv", "channels"),
    "parts": ("qkv", "heads", "channels"),
}


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common.

    Attributes:
        emb_channels: width E of the embedding that every block sees.
        eps: epsilon of the group norms.
        skip_scale: factor after each residual sum.
        adaptive_scale: the embedding scales and shifts (True) or only shifts (False).
        resample_proj: a block that resamples has a 1x1 convolution on its skip path.
        resample_filter: taps of the separable low-pass filter used when resampling.
        dropout: probability of dropping an activation while training.
        norm_groups: groups of every group norm; None for 32, or fewer so that each has four
            channels.
        qkv_order: "interleaved", "head" or "parts", see `EdmConfiguration`.
    """

    emb_channels: int
    eps: float
    skip_scale: float
    adaptive_scale: bool
    resample_proj: bool
    resample_filter: tuple[int, ...] = (1, 1)
    dropout: float = 0.0
    norm_groups: int | None = None
    qkv_order: str = "interleaved"


def group_norm(channels: int, eps: float, groups: int | None = None) -> nn.GroupNorm:
    """Group norm; if no groups are given, with 32, or fewer of four channels each.

    Args:
        channels: C of [B, C, H, W].
        eps: added to the variance.
        groups: of channels, or None.
    """
    return nn.GroupNorm(groups or min(32, channels // 4), channels, eps=eps)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all parameters zero, so that a fresh residual branch starts silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Conv2d(nn.Module):
    """Convolution (kernel 1, 3, ...) or nothing (kernel 0), after resampling by two if asked.

    With `fused_resample` the filter of a down-sampling comes after the kernel instead.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: side of the kernel; 0: no convolution.
        up: double the resolution first.
        down: halve the resolution.
        resample_filter: taps of the resampling, in each direction.
        fused_resample: as said above.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.down, self.fused = up, down, fused_resample
        self.box_filter = tuple(resample_filter) == (1, 1)
        self.kernel_padding = kernel // 2
        self.filter_padding = (len(resample_filter) - 1) // 2
        if kernel:
            fan_in = in_channels * kernel**2
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            nn.init.uniform_(self.weight, -math.sqrt(3 / fan_in), math.sqrt(3 / fan_in))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        if up or down:
            # On the CPU even where weights are not made yet (meta): it is a constant.
            taps = torch.tensor(resample_filter, dtype=torch.float32, device="cpu")
            separable = torch.outer(taps, taps) / taps.sum() ** 2
            self.register_buffer("resample_filter", separable[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        if self.fused and self.down:
            x = F.conv2d(x, self.weight, padding=self.kernel_padding + self.filter_padding)
            return self._downsample(x, padding=0) + self.bias[:, None, None]
        if self.up:
            x = self._upsample(x)
        elif self.down:
            x = self._downsample(x, padding=self.filter_padding)
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel_padding)

    def _upsample(self, x: Tensor) -> Tensor:
        if self.box_filter:  # the transposed convolution with four ones, several times faster
            return F.interpolate(x, scale_factor=2, mode="nearest")
        taps = (4 * self.resample_filter).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self.filter_padding, groups=x.shape[1])

    def _downsample(self, x: Tensor, padding: int) -> Tensor:
        if self.box_filter:
            return F.avg_pool2d(x, 2)
        taps = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise label at geometrically spaced frequencies."""

    freqs: Tensor

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        half = channels // 2
        steps = torch.arange(half, dtype=torch.float32, device="cpu") / (half - int(endpoint))
        self.register_buffer("freqs", (1 / 10000) ** steps, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map [B] to [B, channels]: cosines, then sines."""
        angle = torch.outer(c_noise, self.freqs)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the noise label at random frequencies kept with the weights."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        # On the CPU even where weights are not made yet (meta): there, torch would load a compiler.
        self.register_buffer("freqs", torch.randn(channels // 2, device="cpu") * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map [B] to [B, channels]: cosines, then sines."""
        angle = torch.outer(c_noise, 2 * math.pi * self.freqs)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class UNetBlock(nn.Module):
    """Residual block with two convolutions, the embedding between them, attention after them.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        style: what tells the families of networks apart.
        up: double the resolution.
        down: halve the resolution.
        heads: of the attention; 0: none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.style, self.heads = style, heads
        resampled = partial(Conv2d, up=up, down=down, resample_filter=style.resample_filter)
        affine_channels = out_channels * (2 if style.adaptive_scale else 1)
        self.norm0 = group_norm(in_channels, style.eps, style.norm_groups)
        self.conv0 = resampled(in_channels, out_channels, 3)
        self.affine = nn.Linear(style.emb_channels, affine_channels)
        self.norm1 = group_norm(out_channels, style.eps, style.norm_groups)
        self.conv1 = zeroed(Conv2d(out_channels, out_channels, 3))
        self.skip = None
        if in_channels != out_channels or up or down:
            project = in_channels != out_channels or style.resample_proj
            self.skip = resampled(in_channels, out_channels, int(project))
        if heads:
            self.norm2 = group_norm(out_channels, style.eps, style.norm_groups)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zeroed(Conv2d(out_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [B, C, H, W] and the embedding [B, E] to [B, C', H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        shift = self.affine(emb)[:, :, None, None]
        if self.style.adaptive_scale:
            scale, shift = shift.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + shift))
        h = self.conv1(F.dropout(h, self.style.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if self.heads:
            h = (self.proj(self._attend(self.norm2(h))) + h) * self.style.skip_scale
        return h

    def _attend(self, h: Tensor) -> Tensor:
        """Let every pixel of [B, C, H, W] look at all the others; softmax is taken in float32."""
        sizes = {"heads": self.heads, "channels": h.shape[1] // self.heads, "qkv": 3}
        axes = _QKV_AXES[self.style.qkv_order]
        qkv = self.qkv(h).reshape(h.shape[0], *(sizes[axis] for axis in axes), -1)
        order = [1 + axes.index(axis) for axis in ("qkv", "heads", "channels")]
        q, k, v = qkv.permute(order[0], 0, order[1], 4, order[2])  # each [B, heads, P, C/heads]
        if h.is_cuda:  # the fused kernels want the channels of a head side by side
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(h.shape)
