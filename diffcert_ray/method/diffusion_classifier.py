"""Diffusion classifiers: what is noised, what the denoiser should return, and the class scores.

Shapes: B rows, T levels, M noise draws, K classes, C H W image, D = C*H*W. Model space throughout.

Every method is one line: at level t the network sees z = base + noise_scale[t] * eps and should
return target + target_scale[t] * eps, where base and target are the noisy image u_tau or its
denoised version u_hat. With a = s_tau^2:

| method | base | noise_scale | target | target_scale |
|---|---|---|---|---|
| dc | u_tau | s | u_tau | 0 |
| epndc | u_tau | sqrt(s^2 - a) | u_tau | -a / sqrt(s^2 - a) |
| apndc | u_hat | s | u_hat | 0 |
| apndc-posterior | u_tau | sqrt(s^2 - a) | u_hat | 0 |

The same eps serves every class: only differences between classes matter, and it cancels in them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.method.noise_levels import FloatArray, NoiseLevels, require_known

Image = Literal["noisy", "denoised"]


@dataclass(frozen=True)
class Method:
    """What a diffusion classifier noises and which image it wants back.

    Attributes:
        base: the image that is noised.
        target: the image that the denoiser should return.
        continues_noise: the base has noise s_tau already, and only the rest up to s is added.
        moves_target: the target is the exact posterior's, which moves with eps.
    """

    base: Image
    target: Image
    continues_noise: bool
    moves_target: bool


_METHODS: dict[str, Method] = {
    "dc": Method("noisy", "noisy", continues_noise=False, moves_target=False),
    "epndc": Method("noisy", "noisy", continues_noise=True, moves_target=True),
    "apndc": Method("denoised", "denoised", continues_noise=False, moves_target=False),
    "apndc-posterior": Method("noisy", "denoised", continues_noise=True, moves_target=False),
}
METHODS = tuple(_METHODS)


@dataclass(frozen=True)
class MethodPlan:
    """A method on given noise levels: every number its evaluation needs.

    Attributes:
        method: its name.
        base: the image that is noised.
        target: the image that the denoiser should return.
        needs_denoised: u_hat is used: one unconditional evaluation more per noisy image.
        moves_target: some target_scale is not 0.
        s_tau: smoothing noise already in the input, model space.
        s: levels [T], model space, float64.
        weights: weights [T], float64.
        noise_scale: what multiplies eps in the network's input [T], float64.
        target_scale: what multiplies eps in the target [T], float64.
    """

    method: str
    base: Image
    target: Image
    needs_denoised: bool
    moves_target: bool
    s_tau: float
    s: FloatArray
    weights: FloatArray
    noise_scale: FloatArray
    target_scale: FloatArray


def method_plan(method: str, levels: NoiseLevels, s_tau: float) -> MethodPlan:
    """Lay out a method on noise levels.

    Args:
        method: one of METHODS.
        levels: noise levels [T] with weights, model space.
        s_tau: smoothing noise already in the input, model space, >= 0.

    Returns:
        The plan.

    Raises:
        ValueError: an unknown method, or a level not above s_tau (any level will do for "dc", and
            s_tau itself for "apndc", whose noise is added to a denoised image).

    Source: Chen et al. 2024 (arXiv:2402.02316): diffusion classifier, APNDC, and EPNDC with its two
    posterior means turned into one target: their difference is (c-b)/c times D - target.
    """
    require_known("method", method, METHODS)
    kind, s = _METHODS[method], levels.s
    fits = s > s_tau if kind.continues_noise else s >= s_tau
    if s_tau < 0.0 or (method != "dc" and not np.all(fits)):
        raise ValueError(
            f'the lowest level is {s.min()} and s_tau is {s_tau}: method "{method}" needs every '
            f"level {'above' if kind.continues_noise else 'at or above'} s_tau >= 0; raise s_lo"
        )
    noise_scale = np.sqrt((s - s_tau) * (s + s_tau)) if kind.continues_noise else s
    return MethodPlan(
        method=method,
        base=kind.base,
        target=kind.target,
        needs_denoised="denoised" in (kind.base, kind.target),
        moves_target=kind.moves_target and s_tau > 0.0,
        s_tau=s_tau,
        s=s,
        weights=levels.weights,
        noise_scale=noise_scale,
        target_scale=-(s_tau**2) / noise_scale if kind.moves_target else np.zeros_like(s),
    )


def to_model_image(x: Tensor) -> Tensor:
    """Map an image from pixel space to model space.

    Args:
        x: pixels, any shape, [0, 1] before noise is added.

    Returns:
        u = 2x - 1.

    Source: Karras et al. 2022 (arXiv:2206.00364): networks see images in [-1, 1].
    """
    return 2.0 * x - 1.0


def denoised_image(plan: MethodPlan, unconditional: Denoiser, u_tau: Tensor) -> Tensor:
    """One unconditional denoising step from the smoothing noise.

    Args:
        plan: the method's plan, for s_tau.
        unconditional: a denoiser with an unconditional mode.
        u_tau: noisy images [B, C, H, W], model space.

    Returns:
        u_hat = D(u_tau; s_tau, none) [B, C, H, W]; u_tau itself where s_tau is 0.

    Source: Chen et al. 2024 (arXiv:2402.02316), APNDC.
    """
    if plan.s_tau == 0.0:
        return u_tau
    return unconditional(u_tau, u_tau.new_full((u_tau.shape[0],), plan.s_tau), None)


def network_input(
    plan: MethodPlan, level_index: Tensor, u_tau: Tensor, u_hat: Tensor | None, eps: Tensor
) -> Tensor:
    """What the network sees: z = base + noise_scale * eps.

    Args:
        plan: the method's plan.
        level_index: level of each row, int64 [B].
        u_tau: noisy image of each row [B, C, H, W], model space.
        u_hat: denoised image of each row [B, C, H, W]; None where the plan does not need it.
        eps: standard normal noise [B, C, H, W].

    Returns:
        z [B, C, H, W], in the dtype of eps; a row's bits do not depend on the other rows.

    Raises:
        ValueError: the plan needs u_hat and it is None.

    Source: the table at the top of this module.
    """
    base = _image(plan.base, u_tau, u_hat, plan.method)
    return base + _per_row(plan.noise_scale, level_index, eps) * eps


def target(
    plan: MethodPlan, level_index: Tensor, u_tau: Tensor, u_hat: Tensor | None, eps: Tensor
) -> Tensor:
    """What the denoiser should return: target + target_scale * eps.

    Args:
        plan: the method's plan.
        level_index: level of each row, int64 [B].
        u_tau: noisy image of each row [B, C, H, W], model space.
        u_hat: denoised image of each row [B, C, H, W]; None where the plan does not need it.
        eps: the noise of `network_input` [B, C, H, W].

    Returns:
        The target [B, C, H, W]; a row's bits do not depend on the other rows.

    Raises:
        ValueError: the plan needs u_hat and it is None.

    Source: the table at the top of this module.
    """
    image = _image(plan.target, u_tau, u_hat, plan.method)
    if not plan.moves_target:
        return image
    return image + _per_row(plan.target_scale, level_index, eps) * eps


def row_losses(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row, summed in float64.

    Args:
        output: what the denoiser returned [B, C, H, W].
        target: what it should have returned [B, C, H, W].

    Returns:
        ||output - target||^2 / D of each row, float64 [B].

    Source: ours. The sum is a tree of elementwise additions, so that a row's bits depend neither on
    the number of rows nor on the device, which choose the order of a built-in reduction.
    """
    terms = (output.double() - target.double()).square().flatten(1)
    dimensions = terms.shape[1]
    while (width := terms.shape[1]) > 1:
        half = width // 2
        pairs = terms[:, :half] + terms[:, width - half :]
        terms = torch.cat([pairs, terms[:, half : half + 1]], dim=1) if width % 2 else pairs
    return terms[:, 0] / dimensions


def class_logits(
    denoiser: Denoiser,
    u: Tensor,
    plan: MethodPlan,
    eps: Tensor,
    *,
    unconditional: Denoiser | None = None,
    classes: Tensor | None = None,
    batch: int = 1024,
) -> Tensor:
    """Class scores f_y(u) for given noise, differentiable in u.

    Args:
        denoiser: class-conditional denoiser.
        u: images [B, C, H, W], model space, already noised where the plan's s_tau is above 0.
        plan: the method's plan.
        eps: standard normal noise, [M, T, C, H, W] shared by the images or [B, M, T, C, H, W].
        unconditional: denoiser for u_hat, if the plan needs it; by default `denoiser`.
        classes: classes to score, int64 [K]; by default all.
        batch: rows given to the denoiser at once.

    Returns:
        -sum_t weights[t] * mean over draws of ||D - target||^2 / D, float64 [B, K].

    Raises:
        ValueError: eps does not fit the images and levels.

    Source: Chen et al. 2024 (arXiv:2402.02316), diffusion classifier; the same eps for all classes.
    """
    images, levels = u.shape[0], len(plan.s)
    noise = eps if eps.dim() == u.dim() + 2 else eps.unsqueeze(0).expand(images, *eps.shape)
    if noise.shape[:1] + noise.shape[2:] != (images, levels, *u.shape[1:]):
        raise ValueError(
            f"eps has shape {tuple(eps.shape)}, it must be [draws, {levels} levels, "
            f"{', '.join(map(str, u.shape[1:]))}], with {images} images in front where not shared"
        )
    draws = noise.shape[1]
    if classes is None:
        classes = torch.arange(denoiser.num_classes, device=u.device)
    u_hat = None
    if plan.needs_denoised:
        u_hat = denoised_image(plan, unconditional or denoiser, u)
    shape = (images, draws, levels, len(classes))
    losses = []
    for rows in torch.arange(images * draws * levels * len(classes), device=u.device).split(batch):
        image, draw, level, column = torch.unravel_index(rows, shape)
        row_u, row_eps = u[image], noise[image, draw, level]
        row_u_hat = None if u_hat is None else u_hat[image]
        z = network_input(plan, level, row_u, row_u_hat, row_eps)
        output = denoiser(z, _at_level(plan.s, level, z), classes[column])
        losses.append(row_losses(output, target(plan, level, row_u, row_u_hat, row_eps)))
    mean_losses = torch.cat(losses).reshape(shape).mean(dim=1)
    weights = torch.as_tensor(plan.weights, device=u.device)
    return -(weights[:, None] * mean_losses).sum(dim=1)


def _image(which: Image, u_tau: Tensor, u_hat: Tensor | None, method: str) -> Tensor:
    if which == "noisy":
        return u_tau
    if u_hat is None:
        raise ValueError(f'method "{method}" needs u_hat and got None: call denoised_image first')
    return u_hat


def _at_level(table: FloatArray, level_index: Tensor, like: Tensor) -> Tensor:
    entries = torch.as_tensor(table, dtype=like.dtype, device=like.device)
    return entries[level_index]


def _per_row(table: FloatArray, level_index: Tensor, like: Tensor) -> Tensor:
    return _at_level(table, level_index, like).reshape(-1, *([1] * (like.dim() - 1)))
