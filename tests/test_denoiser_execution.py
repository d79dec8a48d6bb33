"""How networks are run: compiled without graph breaks, channels last, in low precision."""

import pytest
import torch

from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.device import keep_channels_last
from diffcert_ray.denoisers.edm import EdmDenoiser

SMALL = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 16,
    "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,),
}  # fmt: skip
STEPS = {"preconditioning": "epsilon", "schedule": "cosine", "steps": 1000}
KINDS = {
    "ddpmpp": {"model_type": "SongUNet"},
    "ncsnpp": {
        "model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual",
        "resample_filter": (1, 3, 3, 1), "channel_mult_noise": 2, "preconditioning": "ve",
    },
    "adm": {"model_type": "DhariwalUNet", "num_heads": 2},
    "openai": {
        "model_type": "DhariwalUNet", "num_heads": 2, "norm_groups": 8, "qkv_order": "parts",
        "resampling": "convolution", "learned_variance": True, **STEPS,
    },
    "iddpm": {"model_type": "DhariwalUNet", "num_heads": 1, "nearest_step": True, **STEPS},
}  # fmt: skip


def made(kind, dtype="float32"):
    torch.manual_seed(4)
    denoiser = EdmDenoiser(EdmConfiguration(**{**SMALL, **KINDS[kind]}), dtype=dtype).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return denoiser.requires_grad_(False)


def batch():
    torch.manual_seed(5)
    s = torch.tensor([0.05, 0.5, 3.0, 20.0])
    return torch.randn(4, 1, 8, 8) * (1 + s[:, None, None, None]), s, torch.tensor([0, 3, 9, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_network_compiles_as_one_graph(kind):
    denoiser = made(kind)
    torch._dynamo.reset()
    # fullgraph makes any graph break an error; this backend runs the graph as it was traced.
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(*batch()), denoiser(*batch()))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_gives_the_same_images(kind):
    u, s, y = batch()
    expected = made(kind)(u, s, y)
    last = made(kind)
    keep_channels_last(last)
    found = last(u, s, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_low_precision_is_the_networks_alone(kind, dtype, bound):
    expected, low = made(kind)(*batch()), made(kind, dtype)
    found = low(*batch())
    assert found.dtype == torch.float32
    assert low.model.map_layer0.weight.dtype == getattr(torch, dtype)
    assert 0 < (found - expected).abs().max() < bound * expected.std() + bound


def test_a_diffusers_network_compiles_as_one_graph():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffcert_ray.denoisers.diffusers_configuration import DiffusersConfiguration
    from diffcert_ray.denoisers.diffusers_denoiser import DiffusersDenoiser

    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, num_class_embeds=10,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    configuration = DiffusersConfiguration(
        model_class="UNet2DModel", model_folder=".", img_resolution=8, img_channels=1,
        out_channels=1, num_class_embeds=10, prediction="epsilon", noise="steps",
    )  # fmt: skip
    denoiser = DiffusersDenoiser(network, configuration, dtype="float32").eval()
    denoiser.requires_grad_(False)
    torch._dynamo.reset()
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager", dynamic=False)
    u, s, _ = batch()
    y = torch.tensor([0, 3, 9, 1])
    torch.testing.assert_close(compiled(u, s, y), denoiser(u, s, y))
