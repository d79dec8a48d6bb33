"""What the golden outputs tell apart, and tests of the facts that they cannot."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.denoisers.layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    UNetBlock,
    group_norm,
)
from tests.test_edm_networks import (
    CIFAR10,
    IMAGENET64,
    NAMES,
    NCSNPP,
    TOLERANCE,
    deviation,
    golden,
)

CONDITIONAL = ("ddpmpp_cond", "ncsnpp_cond", "adm_cond")


def parts(denoiser: nn.Module, kind: type[nn.Module]) -> list:
    found = [part for part in denoiser.modules() if isinstance(part, kind)]
    assert found
    return found


def restyle(**changes):
    def mutate(denoiser):
        for block in parts(denoiser, UNetBlock):
            block.style = replace(block.style, **changes)

    return mutate


def scale_groups(factor):
    def mutate(denoiser):
        for norm in parts(denoiser, nn.GroupNorm):
            norm.num_groups = int(norm.num_groups * factor)

    return mutate


def resample_with(*taps):
    def mutate(denoiser):
        kernel = torch.tensor(taps, dtype=torch.float32)
        for layer in parts(denoiser, Conv2d):
            if layer.up or layer.down:
                layer.resample_filter = (torch.outer(kernel, kernel) / kernel.sum() ** 2)[
                    None, None
                ]
                layer.box_filter, layer.filter_padding = False, (len(taps) - 1) // 2

    return mutate


def scale_labels(factor):
    def mutate(denoiser):
        denoiser.class_rows = denoiser.class_rows * factor

    return mutate


def more_heads(denoiser):
    for block in parts(denoiser, UNetBlock):
        block.heads *= 2


def swap_halves_of_the_embedding(denoiser):
    embed = denoiser.model.map_noise.forward
    denoiser.model.map_noise.forward = lambda c: embed(c).roll(embed(c).shape[1] // 2, dims=1)


def other_frequencies(denoiser):
    noise, channels = denoiser.model.map_noise, denoiser.configuration.model_channels
    if isinstance(noise, FourierEmbedding):
        noise.freqs = noise.freqs / 16
        return
    half, endpoint = len(noise.freqs), denoiser.configuration.model_type == "DhariwalUNet"
    assert half == channels // 2
    noise.freqs = (1 / 10000) ** (torch.arange(half) / (half - int(endpoint)))


def other_residual_scale(denoiser):
    here = denoiser.model.enc["16x16_block0"].style.skip_scale
    restyle(skip_scale=math.sqrt(0.5) if here == 1 else 1.0)(denoiser)


def swap_scale_and_shift(denoiser):
    for block in parts(denoiser, UNetBlock):
        block.affine.weight.copy_(block.affine.weight.roll(block.affine.out_features // 2, dims=0))


def filter_before_the_kernel(denoiser):
    for layer in parts(denoiser, Conv2d):
        layer.fused = False


MUTATIONS: dict[str, tuple[Callable[[nn.Module], None], tuple[str, ...]]] = {
    "q, k and v as guided-diffusion has them": (restyle(qkv_order="head"), NAMES),
    "q, k and v as consistency_models has them": (restyle(qkv_order="parts"), NAMES),
    "twice the heads": (more_heads, NAMES),
    "half the groups": (scale_groups(0.5), NAMES),
    "twice the groups": (scale_groups(2), NAMES),
    "box filter": (resample_with(1, 1), ("ncsnpp_cond",)),
    "wide filter": (resample_with(1, 3, 3, 1), ("ddpmpp_cond", "ddpmpp_uncond", "adm_cond")),
    "binomial filter of other taps": (resample_with(1, 2, 2, 1), NAMES),
    "filter before the kernel": (filter_before_the_kernel, ("ncsnpp_cond",)),
    "labels not scaled": (scale_labels(math.sqrt(0.1)), CONDITIONAL),
    "labels scaled twice": (scale_labels(math.sqrt(10)), CONDITIONAL),
    "sines and cosines swapped": (swap_halves_of_the_embedding, NAMES),
    "the other family's frequencies": (other_frequencies, NAMES),
    "the other family's residual scale": (other_residual_scale, NAMES),
    "scale and shift swapped": (swap_scale_and_shift, ("adm_cond",)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_golden_outputs_tell_a_changed_network(mutation):
    mutate, names = MUTATIONS[mutation]
    for name in names:
        denoiser, io = golden(name)
        mutate(denoiser)
        assert deviation(denoiser(io["x"], io["sigma"], io.get("labels")), io["D"]) > 10 * TOLERANCE


def attention_by_hand(qkv: np.ndarray, heads: int) -> np.ndarray:
    """EDM's attention pixel by pixel: channel 3 (h C/heads + c) + j of qkv is channel c of head h.

    j = 0, 1, 2 for query, key and value. ``qkv`` is [3 C, P]; returns [C, P].
    """
    width, pixels = len(qkv) // (3 * heads), qkv.shape[1]
    out = np.zeros((width * heads, pixels))
    for head in range(heads):
        q, k, v = (
            np.array([qkv[3 * (head * width + c) + j] for c in range(width)]) for j in range(3)
        )
        for p in range(pixels):
            weight = np.exp(q[:, p] @ k / math.sqrt(width))
            out[head * width : (head + 1) * width, p] = v @ (weight / weight.sum())
    return out


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_lie_one_after_the_other_in_the_channels(heads):
    # The golden ADM network has one head, so its data cannot tell.
    style = BlockStyle(8, 1e-5, 1.0, adaptive_scale=True, resample_proj=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = UNetBlock(16, 16, style, heads=heads).requires_grad_(False)
        h = torch.randn(2, 16, 2, 3)
    qkv = F.conv2d(h, block.qkv.weight, block.qkv.bias).flatten(2).double().numpy()
    expected = np.stack([attention_by_hand(rows, heads) for rows in qkv])
    np.testing.assert_allclose(block._attend(h).flatten(2).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "eps"),
    [(CIFAR10, 1e-6), (CIFAR10 | NCSNPP, 1e-6), (IMAGENET64, 1e-5)],
    ids=["ddpmpp", "ncsnpp", "adm"],
)
def test_published_sizes_have_their_groups_epsilons_and_heads(settings, eps):
    # A tenth of epsilon moves the golden outputs by less than the tolerance; no golden network has
    # 128 channels, from which on there are 32 groups, or more than one head.
    with torch.device("meta"):
        denoiser = EdmDenoiser(EdmConfiguration(**settings))
    norms = parts(denoiser, nn.GroupNorm)
    assert {norm.eps for norm in norms} == {eps}
    assert {norm.num_groups for norm in norms} == {32}
    adm = settings is IMAGENET64
    heads = {
        (block.norm1.num_channels, block.heads)
        for block in parts(denoiser, UNetBlock)
        if block.heads
    }
    assert heads == ({(384, 6), (576, 9), (768, 12)} if adm else {(256, 1)})


def test_narrow_networks_have_groups_of_four_channels():
    assert [group_norm(c, 1e-5).num_groups for c in (16, 64, 124, 128, 192)] == [4, 16, 31, 32, 32]
