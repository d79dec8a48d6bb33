"""DDPM++ and NCSN++: the network of Song et al. as EDM trains it for CIFAR-10.

Shape letters: B samples, C H W image, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.ladder import Ladder, build_decoder, build_encoder, decode, encode
from diffcert_ray.denoisers.layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    PositionalEmbedding,
    UNetBlock,
    group_norm,
    zeroed,
)

_EPS = 1e-6


class SongUNet(nn.Module):
    """The raw network F(x; c_noise, class) of DDPM++ (positional) and NCSN++ (fourier, residual).

    Source: Song et al. 2021 (arXiv:2011.13456), appendix H; Karras et al. 2022
    (arXiv:2206.00364), appendix F and table 7.
    """

    def __init__(self, configuration: EdmConfiguration) -> None:
        super().__init__()
        c = configuration
        noise_channels = c.model_channels * c.channel_mult_noise
        emb_channels = c.model_channels * 4
        self.label_dim = c.label_dim
        if c.embedding_type == "fourier":
            self.map_noise: nn.Module = FourierEmbedding(noise_channels)
        else:
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        self.map_label = nn.Linear(c.label_dim, noise_channels) if c.label_dim else None
        # Says how a training image was augmented: kept for the checkpoints, silent for others.
        self.map_augment = (
            nn.Linear(c.augment_dim, noise_channels, bias=False) if c.augment_dim else None
        )
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self._build_ladder(c, emb_channels)

    def _build_ladder(self, c: EdmConfiguration, emb_channels: int) -> None:
        style = BlockStyle(
            emb_channels, _EPS, math.sqrt(0.5), adaptive_scale=False, resample_proj=True,
            resample_filter=c.resample_filter, dropout=c.dropout,
        )  # fmt: skip

        def block(
            n_in: int, n_out: int, *, attention: bool = False, up: bool = False, down: bool = False
        ) -> UNetBlock:
            return UNetBlock(n_in, n_out, style, up=up, down=down, heads=int(attention))

        widths = tuple(c.model_channels * mult for mult in c.channel_mult)
        ladder = Ladder(c.img_resolution, widths, c.num_blocks, c.attn_resolutions)
        self.enc, skip_channels = build_encoder(
            ladder,
            block,
            img_channels=c.img_channels,
            first_channels=c.model_channels,
            residual_filter=c.resample_filter if c.encoder_type == "residual" else None,
        )
        self.dec = build_decoder(
            ladder, block, skip_channels=skip_channels, attention_everywhere=False
        )
        self.head = f"{c.img_resolution}x{c.img_resolution}_aux"
        self.dec[f"{self.head}_norm"] = group_norm(widths[0], _EPS)
        self.dec[f"{self.head}_conv"] = zeroed(Conv2d(widths[0], c.out_channels, 3))

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
        cosines, sines = self.map_noise(c_noise).to(x.dtype).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(classes.to(x.dtype) * math.sqrt(self.label_dim))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        bottom, skips = encode(self.enc, x, emb)
        x = decode(self.dec, bottom, skips, emb)
        raw = self.dec[f"{self.head}_conv"](F.silu(self.dec[f"{self.head}_norm"](x)))
        return raw, bottom
