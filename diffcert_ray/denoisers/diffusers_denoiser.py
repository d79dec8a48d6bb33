"""Networks of the diffusers library as denoisers D(u; s, y).

Shape letters: B samples, C H W image, K classes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcert_ray.conventions import NO_CLASS
from diffcert_ray.denoisers.diffusers_configuration import DiffusersConfiguration
from diffcert_ray.denoisers.edm import NETWORK_DTYPES, NetworkDtype, check_call
from diffcert_ray.denoisers.preconditioning import (
    PREDICTION,
    Coefficients,
    StepLabels,
    edm_coefficients,
)
from diffcert_ray.errors import CheckpointError


class DiffusersDenoiser(nn.Module):
    """D(u; s, y) = c_skip u + c_out F(c_in u, c_noise, y) of a diffusers network F.

    Satisfies `Denoiser`. Input, output and the sum are float32; only F runs in its own dtype.
    Nothing is clipped, whatever the scheduler of the checkpoint says: it made samples, this
    denoises.

    Args:
        network: F, of diffusers.
        configuration: its shape, classes and noise schedule.
        dtype: what F computes in.

    Source: Karras et al. 2022 (arXiv:2206.00364), equation 7; see `preconditioning` for the rest.
    """

    def __init__(
        self, network: nn.Module, configuration: DiffusersConfiguration, *, dtype: NetworkDtype
    ) -> None:
        """Wrap a network.

        Args:
            network: called as network(x, c_noise, class_labels=..., return_dict=False).
            configuration: how it is to be called.
            dtype: what it computes in.
        """
        super().__init__()
        self.configuration = configuration
        self.image_shape = configuration.image_shape
        self.num_classes = configuration.label_dim
        self.has_unconditional = configuration.unconditional
        self.s_range = configuration.noise_range
        self.dtype = NETWORK_DTYPES[dtype]
        self.model = network.to(self.dtype)
        self._bottom: Tensor | None = None
        middle = getattr(network, "mid_block", None)
        if isinstance(middle, nn.Module):
            middle.register_forward_hook(self._keep)
        self.step_labels = None
        if configuration.noise == "steps":
            self.step_labels = StepLabels(
                configuration.levels(), nearest=configuration.nearest_step
            )

    def forward(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            u: noisy images in model space, float32 [B, C, H, W].
            s: standard deviation of the noise in each, model space, > 0, float32 [B].
            y: class of each, int64 [B] in 0..K-1, or -1 for no class; None: no class for all.

        Returns:
            The estimates of the clean images, model space, float32 [B, C, H, W].

        Raises:
            ValueError: a shape does not fit, or y is None for a network that needs classes.
            IndexError: a class is out of range (on a CPU; a GPU stops with a device assertion).
        """
        return self._evaluated(u, s, y)

    def with_bottom(
        self, u: Tensor, s: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `BottomDenoiser.with_bottom`: what the middle block of the network returns."""
        estimate = self._evaluated(u, s, y)
        bottom, self._bottom = self._bottom, None
        return estimate, bottom

    def _keep(self, _block: nn.Module, _given: Any, returned: Tensor) -> None:
        """Keep what the middle block returns until it is asked for, or returns again."""
        self._bottom = returned

    def _evaluated(self, u: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        check_call(self, u, s, y)
        c_skip, c_out, c_in, c_noise = self._coefficients(s.float())
        u = u.float()
        x = (c_in[:, None, None, None] * u).to(self.dtype)
        labels = self._labels(s, y)
        raw = self.model(x, c_noise, class_labels=labels, return_dict=False)[0]
        raw = raw[:, : u.shape[1]].float()  # the rest, if any, is a learned variance
        return torch.addcmul(c_skip[:, None, None, None] * u, c_out[:, None, None, None], raw)

    def _coefficients(self, s: Tensor) -> Coefficients:
        prediction = self.configuration.prediction
        if self.step_labels is not None:
            return PREDICTION[prediction](s, self.step_labels(s))
        coefficients = edm_coefficients(s, self.configuration.sigma_data)
        return (
            coefficients._replace(c_out=-coefficients.c_out) if prediction == "v" else coefficients
        )

    def _labels(self, s: Tensor, y: Tensor | None) -> Tensor | None:
        if not self.configuration.num_class_embeds:
            return None
        if y is None:
            y = torch.full_like(s, NO_CLASS, dtype=torch.int64)
        if self.configuration.last_class_is_none:
            # A class that does not exist must not be taken for "no class".
            missing = (y < NO_CLASS) | (y >= self.num_classes)
            y = torch.where(y == NO_CLASS, self.num_classes, y)
            y = torch.where(missing, self.configuration.num_class_embeds, y)
        return y


def load_diffusers(
    folder: Path, configuration: DiffusersConfiguration, *, dtype: NetworkDtype
) -> DiffusersDenoiser:
    """Load the network of a diffusers folder from its safetensors files.

    Args:
        folder: the checkpoint.
        configuration: of `read_diffusers_configuration`.
        dtype: what the network shall compute in.

    Returns:
        The denoiser, on the CPU.

    Raises:
        CheckpointError: diffusers is not installed, does not have this class or cannot be called in
            this way, or weights are missing or do not fit.
    """
    try:
        import diffusers
    except ImportError:
        raise CheckpointError(
            f"checkpoint {folder} is a diffusers folder: install diffusers to load it "
            '(pip install "diffcert_ray[diffusers]")'
        ) from None
    cls = getattr(diffusers, configuration.model_class, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise CheckpointError(f"diffusers has no network {configuration.model_class!r}")
    if not {"timestep", "class_labels", "return_dict"} <= set(
        inspect.signature(cls.forward).parameters
    ):
        raise CheckpointError(
            f"a {configuration.model_class} is not called with an image, timestep and "
            "class_labels, as UNet2DModel is"
        )
    try:
        network, report = cls.from_pretrained(
            str(folder / configuration.model_folder),
            local_files_only=True,
            use_safetensors=True,  # the alternative would be a pickle
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be loaded: {error}") from None
    _check_complete(folder, report)
    return DiffusersDenoiser(network, configuration, dtype=dtype)


def _check_complete(folder: Path, report: dict[str, Any]) -> None:
    """Raise unless every weight was in the file: diffusers itself only logs what it makes up."""
    problems = [
        f"{len(names)} {what.removesuffix('_keys')} ({', '.join(map(str, list(names)[:3]))})"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if (names := report.get(what))
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} does not fit its configuration: tensors {'; '.join(problems)}"
        )
