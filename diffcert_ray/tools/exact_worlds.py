"""Exact worlds: Gaussian classes with their exact denoiser, where every score has a closed form.

Shapes: B rows, K classes, T levels, C H W image, D = C*H*W. Model space throughout. Class k is
N(mu_k, tau^2 I). Images of such a world leave [-1, 1], so as pixels x = (u + 1) / 2 they leave
[0, 1]: that is allowed for this oracle, since nothing in the method clips.
"""

import math

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import NO_CLASS

# Rows that go through one matrix product. The kernel, and with it the order of summation, depends
# on the product's shape: a fixed shape keeps a row's bits independent of the batch around it.
_BLOCK = 64


class GaussianClasses:
    """Exact denoiser of K Gaussian classes with one common variance, all equally likely.

    D(u; s, k) = (s^2 mu_k + tau^2 u) / (s^2 + tau^2); without a class, the mean of these over the
    posterior of the class given u. Satisfies the Denoiser protocol, in float32 or float64.

    Attributes:
        means: mu [K, C, H, W], float64, model space.
        tau: standard deviation of every class in every dimension, model space, > 0.
        dimensions: D.

    Source: conjugate Gaussian posterior mean; ours.
    """

    def __init__(self, means: Tensor, tau: float) -> None:
        if means.dim() != 4 or means.dtype != torch.float64:
            raise ValueError(
                f"means have shape {tuple(means.shape)} and dtype {means.dtype}: float64 "
                "[K, C, H, W] is needed"
            )
        if not tau > 0.0:
            raise ValueError(f"tau is {tau}, it must be above 0")
        num_classes, channels, height, width = means.shape
        self.means = means
        self.tau = tau
        self.num_classes = num_classes
        self.image_shape = (channels, height, width)
        self.dimensions = channels * height * width
        self.has_unconditional = True
        self.s_range = (0.0, float("inf"))

    def to(self, device: torch.device | str) -> "GaussianClasses":
        """The same world with its means on a device.

        Args:
            device: where images will be denoised.

        Returns:
            A new world.
        """
        return GaussianClasses(self.means.to(device), self.tau)

    def state_dict(self) -> dict[str, Tensor]:
        """What tells this world from others, as a torch module says it: means and tau."""
        return {"means": self.means, "tau": torch.tensor(self.tau)}

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Posterior mean of the clean image.

        Args:
            u: noisy images [B, C, H, W], model space, float32 or float64.
            s: noise level of each [B], model space, >= 0.
            y: class of each, int64 [B], NO_CLASS (-1) for none; None: no class for all.

        Returns:
            Estimates [B, C, H, W] in the dtype of u; a row's bits do not depend on the others.

        Raises:
            ValueError: a shape does not fit, or a class is out of range.

        Source: as for the class.
        """
        if u.shape[1:] != self.image_shape:
            raise ValueError(f"u has shape {tuple(u.shape)}, images here are {self.image_shape}")
        if y is None:
            mean = self._posterior_mean_of_mu(u, s).to(u.dtype)
        else:
            if not bool(((y >= NO_CLASS) & (y < self.num_classes)).all()):
                raise ValueError(
                    f"y goes from {int(y.min())} to {int(y.max())}, classes are 0 to "
                    f"{self.num_classes - 1}, or -1 for none"
                )
            mean = self.means[y.clamp(min=0)].to(u.dtype)
            free = y == NO_CLASS
            if bool(free.any()):
                mean[free] = self._posterior_mean_of_mu(u[free], s[free]).to(u.dtype)
        s_squared = s.double() ** 2
        share = (s_squared / (s_squared + self.tau**2)).to(u.dtype).reshape(-1, 1, 1, 1)
        return u + share * (mean - u)

    def log_densities(self, u: Tensor, s: Tensor | float) -> Tensor:
        """Log density of each class after noise: log N(u; mu_k, (tau^2 + s^2) I).

        Args:
            u: images [B, C, H, W], model space.
            s: noise level, a number or [B], model space, >= 0.

        Returns:
            Log densities, float64 [B, K].

        Source: sum of independent Gaussians.
        """
        s = torch.as_tensor(s, dtype=torch.float64, device=u.device)
        variance = (self.tau**2 + s**2).reshape(-1, 1)
        norm = torch.log(2.0 * torch.pi * variance)
        return -0.5 * (self.squared_distances(u) / variance + self.dimensions * norm)

    def log_mixture_density(self, u: Tensor, s: Tensor | float) -> Tensor:
        """Log density of all classes together, equally likely, after noise.

        Args:
            u: images [B, C, H, W], model space.
            s: noise level, a number or [B], model space, >= 0.

        Returns:
            Log densities, float64 [B].

        Source: sum of independent Gaussians.
        """
        return torch.logsumexp(self.log_densities(u, s), dim=1) - math.log(self.num_classes)

    def squared_distances(self, u: Tensor) -> Tensor:
        """Squared distance of each image to each mean.

        Args:
            u: images [B, C, H, W], model space.

        Returns:
            ||u - mu_k||^2, float64 [B, K].

        Source: definition.
        """
        mu, flat = self.means.flatten(1), u.double().flatten(1)
        # One image at a time: exact differences, where |u|^2 - 2 u.mu + |mu|^2 would cancel.
        return torch.stack([(row - mu).square().sum(dim=1) for row in flat])

    def _posterior_mean_of_mu(self, u: Tensor, s: Tensor) -> Tensor:
        """Mean of mu_k over the posterior of k given u, float64 [B, C, H, W]."""
        mu = self.means.flatten(1)
        flat = u.double().flatten(1)
        variance = self.tau**2 + s.double().reshape(-1, 1) ** 2
        half_norms = 0.5 * mu.square().sum(dim=1)
        means = []
        for rows, row_variance in zip(flat.split(_BLOCK), variance.split(_BLOCK), strict=True):
            missing = _BLOCK - rows.shape[0]
            block = torch.nn.functional.pad(rows, (0, 0, 0, missing))
            block_variance = torch.nn.functional.pad(row_variance, (0, 0, 0, missing), value=1.0)
            posterior = torch.softmax((block @ mu.T - half_norms) / block_variance, dim=1)
            means.append((posterior @ mu)[: rows.shape[0]])
        return torch.cat(means).reshape(u.shape)


def gaussian_world(
    num_classes: int,
    dimensions: int,
    tau: float,
    spread: float,
    seed: int,
    image_shape: tuple[int, int, int] | None = None,
) -> GaussianClasses:
    """A world whose class means are drawn from N(0, spread^2 I).

    K = 1000, D = 192, tau 0.3 and spread 0.2 is a world with ImageNet's number of classes; at sigma
    0.25 the exact posterior names the right one for about nine noisy images in ten.

    Args:
        num_classes: K, >= 1.
        dimensions: D, >= 1.
        tau: standard deviation of every class in every dimension, model space, > 0.
        spread: standard deviation of the means in every dimension, model space, >= 0.
        seed: of the means, >= 0.
        image_shape: (C, H, W) with C*H*W = D; by default (1, 1, D).

    Returns:
        The world, on the CPU.

    Raises:
        ValueError: the shape does not have D dimensions, or K or D is below 1.

    Source: ours.
    """
    shape = image_shape or (1, 1, dimensions)
    if num_classes < 1 or dimensions < 1 or math.prod(shape) != dimensions:
        raise ValueError(
            f"num_classes is {num_classes}, dimensions is {dimensions}, image_shape is {shape}: "
            "at least 1 of each, and C*H*W equal to dimensions, are needed"
        )
    means = spread * np.random.default_rng(seed).standard_normal((num_classes, *shape))
    return GaussianClasses(torch.from_numpy(means), tau)


def labelled_images(world: GaussianClasses, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images of a world with their classes.

    Args:
        world: the classes, all equally likely.
        count: number of images, >= 0.
        seed: of the labels and the images, >= 0; unrelated to the world's own.

    Returns:
        u [count, C, H, W], float64, model space (pixels (u + 1) / 2 may leave [0, 1]), and the
        labels, int64 [count]; on the CPU.

    Source: ours.
    """
    generator = np.random.default_rng([seed, 1])
    labels = torch.from_numpy(generator.integers(world.num_classes, size=count))
    noise = torch.from_numpy(generator.standard_normal((count, *world.image_shape)))
    return world.means.cpu()[labels] + world.tau * noise, labels


def expected_squared_errors(
    world: GaussianClasses,
    s: Tensor,
    *,
    base: Tensor,
    target: Tensor,
    noise_scale: Tensor,
    target_scale: Tensor,
) -> Tensor:
    """Exact expectation over eps of a class-conditional squared denoising error.

    With z = base + noise_scale * eps and m = s^2 / (s^2 + tau^2), the error
    D(z; s, k) - (target + target_scale * eps) is Gaussian with mean m mu_k + (1 - m) base - target
    and standard deviation |(1 - m) noise_scale - target_scale| in every dimension.

    Args:
        world: the classes.
        s: levels [T], model space.
        base: the image that is noised [C, H, W], model space.
        target: the image that is wanted [C, H, W], model space.
        noise_scale: what multiplies eps in the input [T].
        target_scale: what multiplies eps in the target [T].

    Returns:
        E ||error||^2 summed over the D dimensions (not their mean), float64 [T, K].

    Source: ours.
    """
    s_squared = s.double() ** 2
    share = s_squared / (s_squared + world.tau**2)
    deviation = (1.0 - share) * noise_scale.double() - target_scale.double()
    mu, origin, wanted = (v.double().flatten(-3) for v in (world.means, base, target))
    rows = [(m * mu + (1.0 - m) * origin - wanted).square().sum(dim=1) for m in share]
    return torch.stack(rows) + world.dimensions * deviation.square()[:, None]


def expected_log_densities(
    world: GaussianClasses, u: Tensor, s: float, s_tau: float = 0.0
) -> Tensor:
    """Exact mean log density of each class when the image is noised up to a level.

    Args:
        world: the classes.
        u: images [B, C, H, W], model space, with noise s_tau already in them.
        s: level up to which they are noised, model space, >= s_tau.
        s_tau: noise already in the images, model space, >= 0.

    Returns:
        E log p_s(u + sqrt(s^2 - s_tau^2) eps | k), float64 [B, K].

    Source: mean of a Gaussian's log density under another Gaussian; ours.
    """
    variance = world.tau**2 + s**2
    squares = world.squared_distances(u) + world.dimensions * (s**2 - s_tau**2)
    return -0.5 * (squares / variance + world.dimensions * math.log(2.0 * math.pi * variance))


def finite_range_scores(
    world: GaussianClasses, u: Tensor, s_lo: float, s_max: float, s_tau: float = 0.0
) -> Tensor:
    """Exact class scores of the `elbo` density on (s_lo, s_max), up to one number for all classes.

    For any density p with its exact denoiser, -integral of E||D - target||^2 / s^3 over (s_lo,
    s_max) is E log p_{s_lo}(z) - E log p_{s_max}(z) plus a number that does not depend on p: for
    "dc" with s_tau = 0, for "epndc" with noise s_tau already in u. Within one world the differences
    between classes are those of -1/2 ||u - mu_k||^2 [1/(tau^2 + s_lo^2) - 1/(tau^2 + s_max^2)].

    Args:
        world: the classes.
        u: images [B, C, H, W], model space.
        s_lo: lower end of the levels, model space, >= s_tau.
        s_max: upper end of the levels, model space, finite.
        s_tau: noise already in the images, model space, >= 0.

    Returns:
        Scores for errors summed over the dimensions, float64 [B, K].

    Source: derivative of E log p_s(z) in s, by the heat equation and Tweedie's formula; ours.
    """
    upper = expected_log_densities(world, u, s_max, s_tau)
    return expected_log_densities(world, u, s_lo, s_tau) - upper
