"""The configuration of a diffusers folder: network, prediction and noise; needs no diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from diffcert_ray.denoisers.noise_steps import levels_of_betas, step_levels
from diffcert_ray.errors import CheckpointError, explained

OWN_FILE = "diffcert.json"
"""Settings that a folder's own files lack, in the form of `config=`; part of its hash."""

_STEPPED = (
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "DPMSolverMultistep",
    "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "EulerDiscrete",
    "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
)  # fmt: skip
_EDM = ("EDMEuler", "EDMDPMSolverMultistep")
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


class DiffusersConfiguration(BaseModel):
    """What is needed, beside the weights, to call a diffusers network as a denoiser.

    Attributes:
        model_class: name of the network's class in diffusers.
        model_folder: where its config.json is, relative to the checkpoint.
        img_resolution: H = W in pixels, or (H, W).
        img_channels: C.
        out_channels: C, or 2C if a variance is learned.
        num_class_embeds: rows of the table of class embeddings; 0 for an unconditional network.
        last_class_is_none: the last of these rows stands for "no class".
        prediction: what the network predicts, "epsilon", "v" or "sample".
        noise: "steps" of a chain, or "edm" for EDM's preconditioning (which has no "sample").
        beta_schedule: of the chain, as diffusers names it.
        beta_start: first beta.
        beta_end: last beta.
        steps: number of steps of the chain.
        trained_betas: the betas themselves, in place of a schedule.
        zero_terminal_snr: the betas are rescaled so that the last step is pure noise.
        nearest_step: noise levels between steps are rounded, not interpolated.
        sigma_data: standard deviation of the data in model space ("edm").
        s_range: noise levels, in model space, that the network is made for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_class: str
    model_folder: str
    img_resolution: PositiveInt | tuple[PositiveInt, PositiveInt]
    img_channels: PositiveInt
    out_channels: PositiveInt
    num_class_embeds: int = 0
    last_class_is_none: bool = False
    prediction: Literal["epsilon", "v", "sample"]
    noise: Literal["steps", "edm"]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: PositiveFloat = 0.0001
    beta_end: PositiveFloat = 0.02
    steps: PositiveInt = 1000
    trained_betas: tuple[PositiveFloat, ...] | None = None
    zero_terminal_snr: bool = False
    nearest_step: bool = False
    sigma_data: PositiveFloat = 0.5
    s_range: tuple[PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.out_channels not in (self.img_channels, 2 * self.img_channels):
            raise ValueError(
                f"out_channels is {self.out_channels} for {self.img_channels} channels: neither "
                "the image nor the image and a variance"
            )
        if self.noise == "edm" and self.prediction == "sample":
            raise ValueError("EDM's preconditioning has epsilon and v prediction only")
        if self.last_class_is_none and self.num_class_embeds < 2:
            raise ValueError("last_class_is_none needs two classes or more")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        size = self.img_resolution
        return (self.img_channels, *((size, size) if isinstance(size, int) else size))

    @property
    def label_dim(self) -> int:
        """Number of classes K; 0 for an unconditional network."""
        return self.num_class_embeds - int(self.last_class_is_none)

    @property
    def unconditional(self) -> bool:
        """Whether "no class" is meaningful."""
        return self.num_class_embeds == 0 or self.last_class_is_none

    @property
    def noise_range(self) -> tuple[float, float]:
        """`s_range`, or that of the chain or of EDM."""
        if self.s_range is not None:
            return self.s_range
        if self.noise == "edm":
            return (0.002, 80.0)
        levels = self.levels()
        return float(levels[0]), float(levels[-1])

    def levels(self) -> np.ndarray:
        """Noise levels of the chain in model space, without an infinite last one, float64 [T]."""
        if self.trained_betas is None and self.beta_schedule == "squaredcos_cap_v2":
            levels = step_levels("cosine", self.steps)
        else:
            levels = levels_of_betas(self._betas())
        if self.zero_terminal_snr:
            # Lin et al. 2024 (arXiv:2305.08891), algorithm 1: sqrt(abar) shifted and scaled.
            kept = 1 / np.sqrt(1 + levels**2)
            kept = (kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])
            levels = np.sqrt(1 / kept[:-1] ** 2 - 1)
        return levels

    def _betas(self) -> np.ndarray:
        if self.trained_betas is not None:
            return np.array(self.trained_betas)
        start, end, steps = self.beta_start, self.beta_end, self.steps
        if self.beta_schedule == "scaled_linear":
            return np.linspace(start**0.5, end**0.5, steps) ** 2
        if self.beta_schedule == "sigmoid":
            return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
        return np.linspace(start, end, steps)


def read_diffusers_configuration(
    folder: Path, config: Mapping[str, Any] | None = None
) -> DiffusersConfiguration:
    """Read the configuration of a folder that diffusers' `save_pretrained` wrote.

    Args:
        folder: of a pipeline (unet/ or another network, scheduler/) or of a network alone.
        config: settings that replace or complete those of the files (and of `OWN_FILE` there).

    Returns:
        The validated configuration.

    Raises:
        CheckpointError: no network or scheduler, one that is not supported, or settings that are
            missing or not valid.
    """
    settings = _network(folder) | _scheduler(folder)
    if (folder / OWN_FILE).is_file():
        settings |= _json(folder / OWN_FILE)
    settings |= dict(config or {})
    try:
        return DiffusersConfiguration.model_validate(settings)
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {folder}: its configuration is not valid: {explained(error)}; what its "
            f"files lack may be given in {OWN_FILE} there, or in config="
        ) from None


def _network(folder: Path) -> dict[str, Any]:
    candidates = [folder / "config.json", *sorted(folder.glob("*/config.json"))]
    contents = [(path, _json(path)) for path in candidates if path.is_file()]
    networks = [(path, c) for path, c in contents if "in_channels" in c and "_class_name" in c]
    if len(networks) != 1:
        names = ", ".join(path.parent.name for path, _ in networks) or "none"
        raise CheckpointError(
            f"checkpoint folder {folder} must hold one diffusers network (config.json with "
            f"_class_name and in_channels), but it holds: {names}"
        )
    path, content = networks[0]
    if content.get("class_embed_type") is not None:
        raise CheckpointError(
            f"checkpoint {folder}: class_embed_type is {content['class_embed_type']!r}, and only a "
            "table of class embeddings (null) is supported"
        )
    settings = {
        "model_class": content["_class_name"],
        "model_folder": path.parent.relative_to(folder).as_posix(),
        "img_channels": content["in_channels"],
        "out_channels": content.get("out_channels") or content["in_channels"],
        "num_class_embeds": content.get("num_class_embeds") or 0,
    }
    if content.get("sample_size") is not None:
        settings["img_resolution"] = content["sample_size"]
    return settings


def _scheduler(folder: Path) -> dict[str, Any]:
    candidates = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return {}
    content = _json(path)
    name = str(content.get("_class_name")).removesuffix("Scheduler")
    prediction = content.get("prediction_type", "epsilon")
    flow = any(content.get(key) for key in ("use_flow_sigmas", "use_exponential_flow"))
    if name not in (*_STEPPED, *_EDM) or prediction not in _PREDICTIONS or flow:
        raise CheckpointError(
            f"checkpoint {folder}: scheduler {name}Scheduler with prediction_type {prediction!r}"
            f"{' and flow sigmas' if flow else ''} is not supported; those that are: "
            f"{', '.join((*_STEPPED, *_EDM))}, with {', '.join(_PREDICTIONS)}"
        )
    settings: dict[str, Any] = {"prediction": _PREDICTIONS[prediction]}
    if name in _EDM:
        low, high = content.get("sigma_min", 0.002), content.get("sigma_max", 80.0)
        sigma_data = content.get("sigma_data", 0.5)
        return settings | {"noise": "edm", "s_range": (low, high), "sigma_data": sigma_data}
    keys = {
        "beta_schedule": "beta_schedule", "beta_start": "beta_start", "beta_end": "beta_end",
        "num_train_timesteps": "steps", "trained_betas": "trained_betas",
        "rescale_betas_zero_snr": "zero_terminal_snr",
    }  # fmt: skip
    taken = {ours: content[key] for key, ours in keys.items() if content.get(key) is not None}
    return settings | {"noise": "steps"} | taken


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content
