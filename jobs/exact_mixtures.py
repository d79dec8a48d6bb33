"""Classes that are mixtures of normal densities: exact densities, denoiser and expected scores.

Shapes: B images, T levels, K classes, J components, D dimensions; model space throughout.
"""

import math

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.method.diffusion_classifier import (
    MethodPlan,
    denoised_image,
    network_input,
    target,
)
from diffcert_ray.tools.exact_worlds import GaussianClasses, expected_log_densities

NODES = 96  # Gauss-Hermite nodes


class ExactMixtures:
    """Classes that are means of J normal densities each, with their exact denoiser.

    Satisfies the Denoiser protocol. J = 1 or D = 1: expectations over noise are closed forms for
    J = 1 and Gauss-Hermite sums for D = 1.
    """

    def __init__(self, name: str, means: Tensor, tau: Tensor) -> None:
        self.name, self.means, self.tau = name, means, tau  # means [K, J, D], tau [K]
        self.num_classes, self.components, self.dimensions = means.shape
        self.image_shape = (1, 1, self.dimensions)
        self.has_unconditional = True
        self.s_range = (0.0, math.inf)
        self.normals = [
            GaussianClasses(mean.reshape(-1, *self.image_shape), float(t))
            for mean, t in zip(means, tau, strict=True)
        ]
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        self.nodes = torch.from_numpy(nodes)
        self.node_weights = torch.from_numpy(weights / weights.sum())

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """Posterior mean of the clean image [B, 1, 1, D], of class y [B] or of all classes."""
        flat = u.flatten(1)[:, None]
        if y is None:
            means = self.means.flatten(0, 1)[None]
            tau = self.tau.repeat_interleave(self.components)[None, :, None]
        else:
            means, tau = self.means[y], self.tau[y][:, None, None]
        variance = tau**2 + s[:, None, None] ** 2
        estimates = flat + s[:, None, None] ** 2 / variance * (means - flat)
        if estimates.shape[1] == 1:
            return estimates.reshape(u.shape)
        squares = (flat - means).square().sum(dim=2, keepdim=True)
        logs = -0.5 * (squares / variance + self.dimensions * variance.log())
        return (torch.softmax(logs, dim=1) * estimates).sum(dim=1).reshape(u.shape)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images [count, 1, 1, D] and labels; every class and component equally likely."""
        label = torch.from_numpy(generator.integers(self.num_classes, size=count))
        component = torch.from_numpy(generator.integers(self.components, size=count))
        noise = torch.from_numpy(generator.standard_normal((count, self.dimensions)))
        u = self.means[label, component] + self.tau[label][:, None] * noise
        return u.reshape(count, *self.image_shape), label

    def log_densities(self, u: Tensor, s: float) -> Tensor:
        """Exact log density of u [B, ...] under each class with noise s, [B, K]."""
        return torch.stack([normal.log_mixture_density(u, s) for normal in self.normals], dim=1)

    def expected_logs(self, u: Tensor, s: float, s_tau: float) -> Tensor:
        """E log p_s(u + sqrt(s^2 - s_tau^2) eps given k), [B, K]."""
        if self.components == 1:
            parts = [expected_log_densities(normal, u, s, s_tau) for normal in self.normals]
            return torch.cat(parts, dim=1)
        z = u.flatten()[:, None] + math.sqrt(s**2 - s_tau**2) * self.nodes
        logs = self.log_densities(z.reshape(-1, 1, 1, 1), s).reshape(*z.shape, self.num_classes)
        return (self.node_weights[:, None] * logs).sum(dim=1)

    def expected_scores(self, plan: MethodPlan, u: Tensor) -> Tensor:
        """Scores with exact expectations over the noise, summed over dimensions, [B, K]."""
        u_hat = denoised_image(plan, self, u) if plan.needs_denoised else u
        if self.components == 1:
            errors = self._closed_form(plan, u_hat)
        else:
            pairs = zip(u, u_hat, strict=True)
            errors = torch.stack([self._quadrature(plan, *pair) for pair in pairs])
        return -(torch.from_numpy(plan.weights)[:, None] * errors).sum(dim=1)

    def _closed_form(self, plan: MethodPlan, image: Tensor) -> Tensor:
        # All three methods want back the image that they noise, so the error is Gaussian with mean
        # share (mu - image) and deviation (1 - share) noise_scale - target_scale per dimension.
        s, noise_scale, target_scale = (
            torch.from_numpy(table)[:, None]
            for table in (plan.s, plan.noise_scale, plan.target_scale)
        )
        share = s**2 / (s**2 + self.tau**2)
        squares = torch.cat([normal.squared_distances(image) for normal in self.normals], dim=1)
        deviation = (1.0 - share) * noise_scale - target_scale
        return share**2 * squares[:, None] + self.dimensions * deviation**2

    def _quadrature(self, plan: MethodPlan, u: Tensor, u_hat: Tensor) -> Tensor:
        shape = (len(plan.s), NODES, self.num_classes)
        level, node, label = torch.unravel_index(torch.arange(math.prod(shape)), shape)
        eps = self.nodes[node].reshape(-1, 1, 1, 1)
        pair = (u[None].expand_as(eps), u_hat[None].expand_as(eps))
        z, wanted = network_input(plan, level, *pair, eps), target(plan, level, *pair, eps)
        output = self(z, torch.from_numpy(plan.s)[level], label)
        squares = (output - wanted).square().reshape(shape)
        return (self.node_weights[:, None] * squares).sum(dim=1)
