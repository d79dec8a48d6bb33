"""Weights are found within what training programs save; other networks are named."""

import itertools
import re

import numpy as np
import pytest
import torch
from torchvision import models

from diffcert_ray.checkpoints.image_classifier import load_classifier
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.checkpoints.network_family import not_read
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import CheckpointError
from tests.test_checkpoint_formats import TOLERANCE, deviation, golden, state_dict_file

PREFIXES = (
    "module.", "_orig_mod.", "model.", "unet.", "model.diffusion_model.", "1.module.",
    "module._orig_mod.model.", "module.unet._orig_mod.", "pipeline.net.",
)  # fmt: skip
WRAPPERS = (
    "model_state_dict", "ema_state_dict", "params_ema", "state_dict", "ema", "model", "net",
    "something_else",
)  # fmt: skip


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def changed(state):
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_denoiser_is_found_behind_any_prefix_in_any_wrapper(tmp_path, prefix, wrapper):
    bare = len(prefix) % 2  # the network with "model." before its names, or without
    path, io = state_dict_file(
        tmp_path, "ddpmpp_cond",
        wrap=lambda state: {
            wrapper: {"state_dict": prefixed(
                {name[6:]: t for name, t in state.items()} if bare else state, prefix
            )},
            "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 2)}}},
            "args": {"lr": 1e-3},
        },
    )  # fmt: skip
    assert deviation(load_denoiser(path), io) < TOLERANCE


@pytest.mark.parametrize(
    ("averaged", "other"),
    list(
        itertools.product(
            ("ema", "model_ema", "ema_state_dict", "params_ema", "unet_ema"),
            ("model", "state_dict"),
        )
    ),
)
def test_averaged_weights_are_preferred_and_said(tmp_path, caplog, averaged, other):
    path, io = state_dict_file(
        tmp_path, "ddpmpp_cond", wrap=lambda state: {other: changed(state), averaged: state}
    )
    assert deviation(load_denoiser(path), io) < TOLERANCE
    assert f"averaged weights are taken, '{averaged}'" in caplog.text


def test_averaged_weights_are_preferred_by_their_prefix_too(tmp_path, caplog):
    path, io = state_dict_file(
        tmp_path, "ddpmpp_cond",
        wrap=lambda state: prefixed(changed(state), "online_model.")
        | prefixed(state, "ema_model.") | {"initted": torch.tensor(True), "step": torch.tensor(7)},
    )  # fmt: skip
    assert deviation(load_denoiser(path), io) < TOLERANCE
    assert "below 'ema_model." in caplog.text


def test_stray_step_counters_are_left_out(tmp_path):
    path, io = state_dict_file(
        tmp_path, "ddpmpp_cond",
        wrap=lambda state: state | {"global_step": 5, "n_averaged": torch.tensor(3), "epoch": 1},
    )  # fmt: skip
    assert deviation(load_denoiser(path), io) < TOLERANCE


def test_numpy_scalar_beside_the_weights_is_named(tmp_path):
    path, _ = state_dict_file(
        tmp_path, "ddpmpp_cond", wrap=lambda state: {"model": state, "best": np.float64(0.9)}
    )
    with pytest.raises(CheckpointError, match=r"number or array of numpy.*state_dict\(\) alone"):
        load_denoiser(path)


FAMILIES = {
    "DDPM": ("down.0.block.0.norm1.weight", "temb.dense.0.weight"),
    "k-diffusion": ("inner_model.u_net.d_blocks.0.0.main.0.weight", "inner_model.mapping.w"),
    "DiT": ("x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight"),
    "score-SDE": ("all_modules.0.W", "all_modules.3.weight"),
    "a diffusers network": ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "lucidrains": ("init_conv.weight", "downs.0.0.block1.proj.weight"),
    "EDM2": ("enc.64x64_block0.conv_res0.weight", "enc.64x64_block0.emb_gain"),
    "an image classifier": ("layer1.0.conv1.weight", "fc.weight"),
    "a noisy-image classifier": ("input_blocks.0.0.weight", "out.2.c_proj.weight"),
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "ema_model.module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_network_that_is_not_read_is_told_apart_by_name(tmp_path, family, prefix):
    state = {f"{prefix}{name}": torch.zeros(2, 2) for name in FAMILIES[family]}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as error:
        load_denoiser(tmp_path / "a.pt")
    assert re.search(rf"are those of .*{family}", str(error.value))
    assert f"{prefix}{FAMILIES[family][0]}" in str(error.value)


@pytest.mark.parametrize("name", ["ddpmpp_cond", "ncsnpp_cond", "adm_cond"])
def test_network_that_is_read_is_of_no_other_family(name):
    assert not_read(golden(name)[0]) is None


def resnet(tmp_path, wrap, **classifier):
    """A classifier's file and what its network returns for an image."""
    torch.manual_seed(3)
    network = models.resnet18(num_classes=10).eval()
    torch.save(wrap(network.state_dict()), tmp_path / "c.pt")
    about = {"checkpoint": str(tmp_path / "c.pt"), "architecture": "resnet18", **classifier}
    config = load_config({"method": {"name": "classify"}, "classifier": about})
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return lambda: load_classifier(config, 10, (3, 32, 32))(x), lambda m, s: network((x - m) / s)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "ema_state_dict"])
def test_classifier_is_found_behind_any_prefix_in_any_wrapper(tmp_path, prefix, wrapper):
    found, expected = resnet(
        tmp_path, lambda state: {wrapper: prefixed(state, prefix), "arch": "resnet18", "epoch": 4}
    )
    torch.testing.assert_close(found(), expected(0, 1))


@pytest.mark.parametrize("keys", [("means", "sds"), ("mean", "std")])
@pytest.mark.parametrize("outer", ["", "module."])
def test_normalisation_layer_before_the_network_is_taken(tmp_path, keys, outer):
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    layer = {f"{outer}0.{keys[0]}": mean, f"{outer}0.{keys[1]}": std}
    found, expected = resnet(
        tmp_path, lambda state: {"state_dict": prefixed(state, f"{outer}1.module.") | layer}
    )
    torch.testing.assert_close(found(), expected(mean.view(3, 1, 1), std.view(3, 1, 1)))


def test_normalisation_layer_that_keeps_no_numbers_is_asked_for(tmp_path):
    wrap = lambda state: {"state_dict": prefixed(state, "1.module.")}  # noqa: E731
    found, _ = resnet(tmp_path, wrap)
    with pytest.raises(CheckpointError, match=r"classifier\.mean and classifier\.std"):
        found()
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    found, expected = resnet(tmp_path, wrap, **given)
    mean, std = (torch.tensor(given[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(found(), expected(mean, std))
