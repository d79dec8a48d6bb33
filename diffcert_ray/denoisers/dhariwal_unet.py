"""ADM: the network of Dhariwal and Nichol as EDM trains it for ImageNet-64.

Shape letters: B samples, C H W image, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.ladder import Ladder, build_decoder, build_encoder, decode, encode
from diffcert_ray.denoisers.layers import (
    BlockStyle,
    Conv2d,
    PositionalEmbedding,
    UNetBlock,
    group_norm,
    zeroed,
)

_EPS = 1e-5
_CHANNELS_PER_HEAD = 64


class DhariwalUNet(nn.Module):
    """The raw network F(x; c_noise, class) of ADM.

    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3; Karras et al. 2022
    (arXiv:2206.00364), appendix F and table 7.
    """

    def __init__(self, configuration: EdmConfiguration) -> None:
        super().__init__()
        c = configuration
        emb_channels = c.model_channels * 4
        self.map_noise = PositionalEmbedding(c.model_channels, endpoint=False)
        # Says how a training image was augmented: kept for the checkpoints, silent for others.
        self.map_augment = (
            nn.Linear(c.augment_dim, c.model_channels, bias=False) if c.augment_dim else None
        )
        self.map_layer0 = nn.Linear(c.model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(c.label_dim, emb_channels, bias=False) if c.label_dim else None
        self._build_ladder(c, emb_channels)

    def _build_ladder(self, c: EdmConfiguration, emb_channels: int) -> None:
        style = BlockStyle(
            emb_channels, _EPS, 1.0, adaptive_scale=True, resample_proj=False, dropout=c.dropout,
            norm_groups=c.norm_groups, qkv_order=c.qkv_order,
        )  # fmt: skip

        def block(
            n_in: int, n_out: int, *, attention: bool = False, up: bool = False, down: bool = False
        ) -> UNetBlock:
            heads = c.num_heads or n_out // (c.num_head_channels or _CHANNELS_PER_HEAD)
            return UNetBlock(n_in, n_out, style, up=up, down=down, heads=heads if attention else 0)

        widths = tuple(c.model_channels * mult for mult in c.channel_mult)
        ladder = Ladder(
            c.img_resolution, widths, c.num_blocks, c.attn_resolutions,
            convolutions=c.resampling == "convolution",
        )  # fmt: skip
        self.enc, skip_channels = build_encoder(
            ladder, block, img_channels=c.img_channels, first_channels=widths[0]
        )
        self.dec = build_decoder(
            ladder, block, skip_channels=skip_channels, attention_everywhere=True
        )
        self.out_norm = group_norm(widths[0], _EPS, c.norm_groups)
        self.out_conv = zeroed(Conv2d(widths[0], c.out_channels, 3))

    def forward(self, x: Tensor, c_noise: Tensor, classes: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: scaled noisy images [B, C, H, W], of the network's dtype.
            c_noise: noise labels [B], float32.
            classes: one row per sample, one-hot or all zero for no class, [B, K].

        Returns:
            The raw output [B, C, H, W], with 2C channels if a variance is learned.
        """
        return self.with_bottom(x, c_noise, classes)[0]

    def with_bottom(self, x: Tensor, c_noise: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the activations where encoding ends [B, C', H', W'].

        Args:
            x: as `forward`.
            c_noise: as `forward`.
            classes: as `forward`.
        """
        emb = self.map_noise(c_noise).to(x.dtype)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(classes.to(x.dtype))
        emb = F.silu(emb)
        bottom, skips = encode(self.enc, x, emb)
        x = decode(self.dec, bottom, skips, emb)
        return self.out_conv(F.silu(self.out_norm(x))), bottom
