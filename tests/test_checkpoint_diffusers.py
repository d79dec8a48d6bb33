"""Folders that diffusers wrote, as denoisers: against diffusers' own networks and schedulers."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcert_ray.checkpoints.files import checkpoint_sha256, read_configuration
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.errors import CheckpointError

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

SHAPE = (3, 1, 1, 1)
Y = torch.tensor([0, 3, 9])


def network(**settings):
    """A tiny UNet2DModel with random weights everywhere."""
    torch.manual_seed(2)
    made = diffusers.UNet2DModel(
        **{
            "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
            "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **settings,
        }
    )  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def save(folder, made, scheduler):
    made.save_pretrained(folder / "unet")
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    return folder


def inputs(scheduler, steps):
    """Images noised to these steps, in model space, and their noise levels, by the scheduler."""
    kept = scheduler.alphas_cumprod[torch.tensor(steps)].double()
    s = ((1 - kept) / kept).sqrt().float()
    torch.manual_seed(3)
    return torch.randn(3, 1, 8, 8) * (1 + s.reshape(SHAPE)), s


def original_sample(scheduler, output, t, x):
    """The scheduler's own estimate of the clean image, from one image at one step."""
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler.step(output, t, x).pred_original_sample


CHAINS = {
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.0008, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "short": {"beta_schedule": "linear", "num_train_timesteps": 100, "beta_end": 0.2},
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("chain", ["linear", "cosine"])
def test_denoiser_is_the_schedulers_estimate_of_the_clean_image(tmp_path, prediction, chain):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=prediction, clip_sample=False, **CHAINS[chain]
    )
    made = network(num_class_embeds=10)
    denoiser = load_denoiser(save(tmp_path, made, scheduler))
    steps = [5, 400, 900]
    u, s = inputs(scheduler, steps)
    x = u / (1 + s**2).sqrt().reshape(SHAPE)
    output = made(x, torch.tensor(steps), class_labels=Y).sample
    expected = torch.cat(
        [
            original_sample(scheduler, output[i : i + 1], t, x[i : i + 1])
            for i, t in enumerate(steps)
        ]
    )
    found = denoiser(u, s, Y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * expected.std().item())


@pytest.mark.parametrize("chain", CHAINS)
def test_noise_levels_are_the_schedulers(tmp_path, chain):
    scheduler = diffusers.DDIMScheduler(**CHAINS[chain])
    save(tmp_path, network(), scheduler)
    levels = torch.from_numpy(read_configuration(tmp_path).levels().copy())
    kept = 1 / (1 + levels**2)
    torch.testing.assert_close(kept, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)


def test_chain_rescaled_to_end_in_pure_noise_leaves_out_its_last_step(tmp_path):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    save(tmp_path, network(), scheduler)
    levels = torch.from_numpy(read_configuration(tmp_path).levels().copy())
    kept = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(1 / (1 + levels**2), kept[:-1], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_schedulers_preconditioning(tmp_path, prediction):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_max=40.0)
    made = network()
    denoiser = load_denoiser(save(tmp_path, made, scheduler))
    s, u = torch.tensor([0.1, 1.0, 20.0]), torch.randn(3, 1, 8, 8)
    sigma = s.reshape(SHAPE)
    output = made(scheduler.precondition_inputs(u, sigma), scheduler.precondition_noise(s)).sample
    torch.testing.assert_close(
        denoiser(u, s), scheduler.precondition_outputs(u, output, sigma), rtol=1e-4, atol=1e-4
    )
    assert denoiser.s_range == (0.002, 40.0)


def test_unconditional_network_takes_no_class(tmp_path):
    denoiser = load_denoiser(save(tmp_path, network(), diffusers.DDPMScheduler()))
    assert isinstance(denoiser, Denoiser)
    assert (denoiser.num_classes, denoiser.has_unconditional) == (0, True)
    u, s = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    torch.testing.assert_close(denoiser(u, s), denoiser(u, s, torch.full((3,), -1)))


def test_conditional_network_needs_classes_unless_its_last_one_stands_for_none(tmp_path):
    made = network(num_class_embeds=11)
    save(tmp_path, made, diffusers.DDPMScheduler())
    u, s = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    plain = load_denoiser(tmp_path)
    assert (plain.num_classes, plain.has_unconditional) == (11, False)
    with pytest.raises(ValueError, match="no unconditional mode"):
        plain(u, s)
    with pytest.raises(IndexError):
        plain(u, s, torch.tensor([0, 1, 11]))
    free = load_denoiser(tmp_path, {"last_class_is_none": True})
    assert (free.num_classes, free.has_unconditional) == (10, True)
    last = torch.full((3,), 10)
    torch.testing.assert_close(free(u, s), plain(u, s, last))
    torch.testing.assert_close(free(u, s, torch.tensor([-1, 2, -1]))[0], plain(u, s, last)[0])
    with pytest.raises(IndexError):
        free(u, s, torch.tensor([0, 1, 10]))


def test_learned_variance_is_left_out(tmp_path):
    made = network(out_channels=2)
    scheduler = diffusers.DDPMScheduler(prediction_type="sample", variance_type="learned_range")
    denoiser = load_denoiser(save(tmp_path, made, scheduler))
    u, s = inputs(scheduler, [5, 400, 900])
    x = u / (1 + s**2).sqrt().reshape(SHAPE)
    expected = made(x, torch.tensor([5, 400, 900])).sample[:, :1]
    torch.testing.assert_close(denoiser(u, s), expected, rtol=1e-3, atol=1e-3)


def test_low_precision_runs_in_the_network_only(tmp_path):
    save(tmp_path, network(num_class_embeds=10), diffusers.DDPMScheduler())
    exact, low = load_denoiser(tmp_path), load_denoiser(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    u, s = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0])
    found, expected = low(u, s, Y), exact(u, s, Y)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.2 * expected.std()


def test_settings_that_the_files_lack_may_stand_in_the_folder(tmp_path):
    made = network(sample_size=None)
    made.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"img_resolution.*diffcert\.json"):
        load_denoiser(tmp_path)
    settings = {"img_resolution": 8, "prediction": "epsilon", "noise": "edm"}
    alone = checkpoint_sha256(tmp_path)
    (tmp_path / "diffcert.json").write_text(json.dumps(settings))
    assert load_denoiser(tmp_path).image_shape == (1, 8, 8)
    assert checkpoint_sha256(tmp_path) != alone


def test_hash_of_a_folder_is_that_of_its_sorted_json_and_safetensors_files(tmp_path):
    save(tmp_path, network(), diffusers.DDPMScheduler())
    before = checkpoint_sha256(tmp_path)
    lines = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        )
    ]
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    (tmp_path / "README.md").write_text("about")
    assert checkpoint_sha256(tmp_path) == before
    load_denoiser(tmp_path, sha256=before)


def test_folder_at_an_address_is_fetched_whole(tmp_path, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("DIFFCERT_CACHE", str(tmp_path / "cache"))
    local = tmp_path / "folder"
    save(local, network(), diffusers.DDPMScheduler())
    fsspec.filesystem("memory").put(str(local), "/weights/folder", recursive=True)
    try:
        remote = load_denoiser("memory://weights/folder")
        assert checkpoint_sha256("memory://weights/folder") == checkpoint_sha256(local)
    finally:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
    u, s = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    assert torch.equal(remote(u, s), load_denoiser(local)(u, s))


def _drop_weight(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def _pickled_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), folder / "unet" / "diffusion_pytorch_model.bin")
    path.unlink()


def _edit(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_weight, r"1 missing \(conv_in.weight\)"),
        (_pickled_weights, "cannot be loaded"),
        (_edit("unet/config.json", _class_name="os"), "no network 'os'"),
        (_edit("unet/config.json", _class_name="AutoencoderKL"), "is not called with"),
        (_edit("unet/config.json", out_channels=5), "out_channels is 5 for 1"),
        (_edit("unet/config.json", class_embed_type="timestep"), "class_embed_type"),
        (
            _edit("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "FlowMatchEulerDiscreteScheduler",
        ),
        (_edit("scheduler/scheduler_config.json", prediction_type="flow"), "'flow'"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "must hold one diffusers"),
    ],
)
def test_folder_that_cannot_be_trusted_or_used_is_refused(tmp_path, change, message, capfd):
    save(tmp_path, network(), diffusers.DDPMScheduler())
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(tmp_path)
