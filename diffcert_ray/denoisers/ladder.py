"""The ladder of blocks down and up the resolutions that the EDM networks share.

Shape letters: B samples, C channels, H W pixels, E embedding channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcert_ray.denoisers.layers import Conv2d, UNetBlock

Blocks = Callable[..., UNetBlock]
"""block(in_channels, out_channels, *, attention=False, up=False, down=False)."""


@dataclass(frozen=True)
class Ladder:
    """Resolutions and widths of a network.

    Attributes:
        img_resolution: H = W of the image.
        widths: channels of each level, from the highest resolution down.
        num_blocks: blocks of a level on the way down; one more on the way up.
        attn_resolutions: resolutions whose blocks have attention.
        convolutions: a mere convolution, in place of a block, changes the resolution.
    """

    img_resolution: int
    widths: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    convolutions: bool = False

    def levels(self) -> list[tuple[int, int]]:
        """(resolution, channels) of each level, from the highest resolution down."""
        return [(self.img_resolution >> i, width) for i, width in enumerate(self.widths)]


def build_encoder(
    ladder: Ladder,
    block: Blocks,
    *,
    img_channels: int,
    first_channels: int,
    residual_filter: tuple[int, ...] | None = None,
) -> tuple[nn.ModuleDict, list[int]]:
    """The layers on the way down, and the channels that each leaves for the way up.

    Args:
        ladder: resolutions and widths.
        block: makes one block.
        img_channels: channels of the image.
        first_channels: channels after the first convolution.
        residual_filter: taps of the filter that feeds the image itself, ever smaller, into each
            level (the "residual" encoder of NCSN++); None for none.

    Returns:
        The layers by name, and the channels of every non-auxiliary layer's output in order.
    """
    layers, skip_channels = nn.ModuleDict(), [first_channels]
    channels, aux_channels = first_channels, img_channels
    for level, (res, width) in enumerate(ladder.levels()):
        name = f"{res}x{res}"
        if level == 0:
            layers[f"{name}_conv"] = Conv2d(img_channels, first_channels, 3)
        else:
            layers[f"{name}_down"] = (
                nn.Conv2d(channels, channels, 3, stride=2, padding=1)
                if ladder.convolutions
                else block(channels, channels, down=True)
            )
            skip_channels.append(channels)
            if residual_filter is not None:
                layers[f"{name}_aux_residual"] = Conv2d(
                    aux_channels, channels, 3,
                    down=True, resample_filter=residual_filter, fused_resample=True,
                )  # fmt: skip
                aux_channels = channels
        for index in range(ladder.num_blocks):
            attention = res in ladder.attn_resolutions
            layers[f"{name}_block{index}"] = block(channels, width, attention=attention)
            channels = width
            skip_channels.append(channels)
    return layers, skip_channels


def build_decoder(
    ladder: Ladder, block: Blocks, *, skip_channels: list[int], attention_everywhere: bool
) -> nn.ModuleDict:
    """The blocks on the way up.

    Args:
        ladder: resolutions and widths.
        block: makes one block.
        skip_channels: what the encoder left, in its order.
        attention_everywhere: attention in all blocks of the resolutions that have it (ADM), or
            only in the last one of each (DDPM++, NCSN++).

    Returns:
        The blocks by name. Those named "block" take a skip beside their input.
    """
    blocks, remaining = nn.ModuleDict(), list(skip_channels)
    channels = ladder.widths[-1]
    for level, (res, width) in reversed(list(enumerate(ladder.levels()))):
        name = f"{res}x{res}"
        if level == len(ladder.widths) - 1:
            blocks[f"{name}_in0"] = block(channels, channels, attention=True)
            blocks[f"{name}_in1"] = block(channels, channels)
        else:
            blocks[f"{name}_up"] = (
                Conv2d(channels, channels, 3, up=True)
                if ladder.convolutions
                else block(channels, channels, up=True)
            )
        for index in range(ladder.num_blocks + 1):
            here = attention_everywhere or index == ladder.num_blocks
            attention = here and res in ladder.attn_resolutions
            taken = channels + remaining.pop()
            blocks[f"{name}_block{index}"] = block(taken, width, attention=attention)
            channels = width
    return blocks


def encode(layers: nn.ModuleDict, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Go down the ladder from [B, C, H, W] and embedding [B, E]; return the end and the skips.

    Args:
        layers: the blocks, from the finest.
        x: [B, C, H, W].
        emb: embedding of noise and class [B, E].
    """
    skips: list[Tensor] = []
    aux = x
    for name, layer in layers.items():
        if name.endswith("aux_residual"):
            x = aux = skips[-1] = (x + layer(aux)) / math.sqrt(2)
        else:
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
    return x, skips


def decode(blocks: nn.ModuleDict, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
    """Go up the ladder, using up the skips.

    Args:
        blocks: from the coarsest.
        x: [B, C, H, W], where encoding ended.
        skips: what encoding left, used up from the last.
        emb: embedding of noise and class [B, E].
    """
    for name, block in blocks.items():
        if "_block" in name:
            x = torch.cat([x, skips.pop()], dim=1)
        if isinstance(block, UNetBlock):
            x = block(x, emb)
        elif name.endswith("_up"):
            x = block(x)
        # Anything else is a layer of the network's head, which checkpoints file under the decoder.
    return x
