"""Networks that are not read, told apart by the names of their tensors, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

_OWN = "load it in Python and give it as denoiser= (the protocol Denoiser)"
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("EDM2 (magnitude-preserving layers)" f", which is not read as a state dict: {_OWN}",
     (r"emb_gain$", r"conv_res0\.weight$")),
    ("a noisy-image classifier of guided-diffusion, no denoiser: give the diffusion model's file",
     (r"input_blocks\.0\.0\.weight$", r"out\.\d\.(c_proj|positional_embedding)")),
    ("k-diffusion" f": {_OWN}", (r"(u_net\.d_blocks|inner_model\.(u_net|mapping|down_levels))\.",)),
    ("score-SDE (NCSN++ or DDPM++ by Song et al.)"
     f": take EDM's checkpoint of the same data, or {_OWN}", (r"all_modules\.\d+\.",)),
    ("a diffusers network without its folder: put it as diffusion_pytorch_model.safetensors into a "
     "folder with its config.json and the scheduler's scheduler_config.json, and give the folder",
     (r"down_blocks\.0\.", r"(time_embedding\.linear_1|conv_in)\.weight$")),
    ("DiT (a diffusion transformer, mostly of autoencoder latents)" f": {_OWN}",
     (r"blocks\.0\.adaLN_modulation\.", r"x_embedder\.")),
    ("U-ViT" f": {_OWN}", (r"in_blocks\.0\.", r"out_blocks\.0\.")),
    ("denoising-diffusion-pytorch (lucidrains)" f": {_OWN}",
     (r"downs\.0\.", r"(init_conv|time_mlp\.\d+)\.weight$")),
    ("an autoencoder of latents, no denoiser", (r"(encoder\.down\.0|quant_conv)\.",)),
    ("DDPM (Ho et al. and its PyTorch ports): convert it to a diffusers folder (UNet2DModel, as "
     f"diffusers' scripts do), or {_OWN}", (r"down\.0\.block\.0\.", r"temb\.dense\.0\.")),
    ("an image classifier, no denoiser: name it in classifier.checkpoint",
     (r"(layer1\.0\.conv1|features\.0)\.weight$", r"(fc|classifier|linear)\b.*weight$")),
    ("a vision transformer that classifies, no denoiser: name it in classifier.checkpoint",
     (r"(blocks|layers?|encoder_layer_0)\.?.*attn", r"(patch_embed|conv_proj|class_token)")),
)  # fmt: skip


def not_read(names: Iterable[str]) -> str | None:
    """The family of a network that is not read, with what to do; None where no family fits.

    Args:
        names: of its tensors, with any prefixes.
    """
    names = list(names)
    for family, marks in _FAMILIES:
        if all(any(re.search(rf"(?:^|\.){mark}", name) for name in names) for mark in marks):
            return family
    return None
