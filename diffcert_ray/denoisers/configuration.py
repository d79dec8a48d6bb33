"""The configuration of an EDM network, as kept beside its weights; needs no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

_S_RANGES = {"edm": (0.002, 80.0), "vp": (0.0012, 152.0), "ve": (0.02, 100.0)}
_SONG_ONLY = (
    "embedding_type", "encoder_type", "decoder_type", "channel_mult_noise", "resample_filter",
)  # fmt: skip


class EdmConfiguration(BaseModel):
    """What is needed, beside the weights, to build a network and its preconditioning.

    Attributes:
        model_type: "SongUNet" (DDPM++, NCSN++) or "DhariwalUNet" (ADM).
        img_resolution: H = W in pixels.
        img_channels: C.
        label_dim: classes K; 0 for an unconditional network.
        model_channels: channels of the first level are this times channel_mult[0].
        channel_mult: one factor per level; each level halves the resolution.
        num_blocks: residual blocks per level on the way down.
        attn_resolutions: resolutions with attention.
        augment_dim: width of the augmentation labels used in training; 0 for none.
        embedding_type: of the noise level, "positional" or "fourier" (SongUNet).
        encoder_type: "standard" or "residual" (SongUNet).
        decoder_type: "standard" (SongUNet).
        channel_mult_noise: width of the noise embedding over model_channels (SongUNet).
        resample_filter: taps used when changing resolution (SongUNet).
        dropout: probability while training; evaluation ignores it.
        preconditioning: "edm", or "vp" or "ve" for the baseline checkpoints.
        sigma_data: standard deviation of the data in model space, used by "edm".
        s_range: noise levels, in model space, that the network is made for.
        has_unconditional: whether "no class" was trained (label dropout, or no labels at all).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_type: Literal["SongUNet", "DhariwalUNet"]
    img_resolution: PositiveInt
    img_channels: PositiveInt
    label_dim: NonNegativeInt = 0
    model_channels: PositiveInt
    channel_mult: tuple[PositiveInt, ...] = Field(min_length=1)
    num_blocks: PositiveInt
    attn_resolutions: tuple[PositiveInt, ...] = ()
    augment_dim: NonNegativeInt = 0
    embedding_type: Literal["positional", "fourier"] = "positional"
    encoder_type: Literal["standard", "residual"] = "standard"
    decoder_type: Literal["standard"] = "standard"
    channel_mult_noise: PositiveInt = 1
    resample_filter: tuple[PositiveInt, ...] = (1, 1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    preconditioning: Literal["edm", "vp", "ve"] = "edm"
    sigma_data: PositiveFloat = 0.5
    s_range: tuple[PositiveFloat, PositiveFloat] | None = None
    has_unconditional: bool | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        step = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % step:
            raise ValueError(
                f"img_resolution is {self.img_resolution} but {len(self.channel_mult)} levels "
                f"halve it {len(self.channel_mult) - 1} times: it must be a multiple of {step}"
            )
        if self.model_type == "DhariwalUNet":
            fields = type(self).model_fields
            foreign = [key for key in _SONG_ONLY if getattr(self, key) != fields[key].default]
            if foreign:
                raise ValueError(f"{foreign} are settings of SongUNet, not of DhariwalUNet")
        if self.label_dim == 0 and self.has_unconditional is False:
            raise ValueError("label_dim is 0, so has_unconditional cannot be false")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.img_channels, self.img_resolution, self.img_resolution)

    @property
    def noise_range(self) -> tuple[float, float]:
        """`s_range`, or the published range of the preconditioning."""
        return self.s_range or _S_RANGES[self.preconditioning]

    @property
    def unconditional(self) -> bool:
        """`has_unconditional`; when not said, only a network without labels has that mode."""
        return self.label_dim == 0 if self.has_unconditional is None else self.has_unconditional
