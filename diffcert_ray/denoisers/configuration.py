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

from diffcert_ray.denoisers.noise_steps import step_levels

_S_RANGES = {"edm": (0.002, 80.0), "vp": (0.0012, 152.0), "ve": (0.02, 100.0)}
_SONG_ONLY = (
    "embedding_type", "encoder_type", "decoder_type", "channel_mult_noise", "resample_filter",
)  # fmt: skip
_ADM_ONLY = ("resampling", "num_heads", "num_head_channels", "norm_groups", "qkv_order")
PREDICTIONS = ("epsilon", "v", "sample")
"""Preconditionings of networks trained on a chain of discrete noise steps."""


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
        resampling: how the resolution changes, by a residual "block" or a mere "convolution" (ADM).
        num_heads: heads of every attention; None for one per num_head_channels (ADM).
        num_head_channels: channels of a head where num_heads is None; None for 64 (ADM).
        norm_groups: groups of every group norm; None for 32, or fewer so that each has four
            channels (ADM).
        qkv_order: how queries, keys and values lie in the channels of a qkv layer: "interleaved"
            within a head (EDM), one after the other within a "head" (guided-diffusion) or over
            all heads in three "parts" (guided-diffusion's new order) (ADM).
        learned_variance: the network returns twice the channels; the first half is used.
        preconditioning: "edm"; "vp" or "ve" for the baseline checkpoints; "epsilon", "v" or
            "sample", after what the network predicts, where it was trained on discrete steps.
        schedule: noise of the discrete steps, "linear" or "cosine".
        steps: number of discrete steps.
        nearest_step: noise levels between steps are rounded, not interpolated.
        c_noise_scale: factor of what the network is told of the noise level.
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
    resampling: Literal["block", "convolution"] = "block"
    num_heads: PositiveInt | None = None
    num_head_channels: PositiveInt | None = None
    norm_groups: PositiveInt | None = None
    qkv_order: Literal["interleaved", "head", "parts"] = "interleaved"
    learned_variance: bool = False
    preconditioning: Literal["edm", "vp", "ve", "epsilon", "v", "sample"] = "edm"
    schedule: Literal["linear", "cosine"] | None = None
    steps: PositiveInt | None = Field(default=None, le=100_000)
    nearest_step: bool = False
    c_noise_scale: PositiveFloat = 1.0
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
        adm = self.model_type == "DhariwalUNet"
        fields = type(self).model_fields
        others = _SONG_ONLY if adm else _ADM_ONLY
        foreign = [key for key in others if getattr(self, key) != fields[key].default]
        if foreign:
            other = "SongUNet" if adm else "DhariwalUNet"
            raise ValueError(f"{foreign} are settings of {other}, not of {self.model_type}")
        if self.learned_variance and self.preconditioning not in PREDICTIONS:
            raise ValueError(
                "learned_variance is true, which no network of preconditioning "
                f"{self.preconditioning!r} has: give one of {', '.join(PREDICTIONS)}, and the "
                "chain of noise that it was trained on"
            )
        if self.label_dim == 0 and self.has_unconditional is False:
            raise ValueError("label_dim is 0, so has_unconditional cannot be false")
        return self

    @model_validator(mode="after")
    def _has_steps_if_it_needs_them(self) -> Self:
        given = [key for key in ("schedule", "steps") if getattr(self, key) is not None]
        if self.preconditioning in PREDICTIONS and len(given) < 2:
            raise ValueError(
                f"preconditioning is {self.preconditioning!r}: give schedule ('linear' or "
                "'cosine') and steps, the chain of noise that the network was trained on"
            )
        if self.preconditioning not in PREDICTIONS and (given or self.nearest_step):
            raise ValueError(
                f"preconditioning is {self.preconditioning!r}: {given or ['nearest_step']} "
                f"belong to {', '.join(PREDICTIONS)}"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.img_channels, self.img_resolution, self.img_resolution)

    @property
    def out_channels(self) -> int:
        """Channels that the network returns."""
        return self.img_channels * (2 if self.learned_variance else 1)

    @property
    def noise_range(self) -> tuple[float, float]:
        """`s_range`, or the published range of the preconditioning or of its steps."""
        if self.s_range is not None:
            return self.s_range
        if self.schedule is not None and self.steps is not None:
            levels = step_levels(self.schedule, self.steps)
            return float(levels[0]), float(levels[-1])
        return _S_RANGES[self.preconditioning]

    @property
    def unconditional(self) -> bool:
        """`has_unconditional`; when not said, only a network without labels has that mode."""
        return self.label_dim == 0 if self.has_unconditional is None else self.has_unconditional
