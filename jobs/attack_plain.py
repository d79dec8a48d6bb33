"""Attack a run of plain certificates: look for a class change inside every certified radius.

    python jobs/attack_plain.py RUN [--restarts 4] [--steps 8] [--draws 6] [--control-radius 2.0]

For each certified image and its nearest rival classes, projected gradient descent on the score
difference moves the image inside its certified ball, from the image itself and from random points
of the sphere. Noise is common within an attack, fresh for the next restart, and never that of the
certificate. The points that come closest are decided with fresh draws of all classes:

* no change: for every other class B the mean of l_B - l_A lies above 0 by 4 standard errors;
* change: for some B it lies below 0 by 4 standard errors;
* otherwise the draws are doubled, up to --most-draws; then the point is undecided.

The same attack with a radius far beyond the certified ones is the control: it must find changes.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.engine.losses import pair_losses, pixel_losses, projected, score_gaps
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.plain.stages import ImageLosses
from diffcert_ray.run.loss_rows import recompute_plain
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.stored import open_run
from diffcert_ray.run.stored_losses import read_losses
from diffcert_ray.storage.views import replace_view

ROWS = 1024  # rows given to the network at once
STANDARD_ERRORS = 4.0


@dataclass
class Attacker:
    """The classifier under attack, and how hard it is tried."""

    denoiser: Denoiser
    plan: PlainPlan
    options: argparse.Namespace
    generator: torch.Generator
    nfe: int = 0

    @property
    def s(self) -> Tensor:
        """Noise levels [T], model space."""
        return torch.tensor(self.plan.s, dtype=torch.float32)

    @property
    def weights(self) -> Tensor:
        """Weights [T]."""
        return torch.tensor(self.plan.weights)

    def noise(self, draws: int) -> Tensor:
        """Fresh noise [M, T, C, H, W]."""
        shape = (draws, len(self.plan.s), *self.denoiser.image_shape)
        return torch.randn(shape, generator=self.generator)

    def closest(self, x: Tensor, radius: float, a: int, rivals: list[int]) -> list[Tensor]:
        """The end of the best of each rival's attacks, in [0, 1]^D and the open ball around x."""
        ends = []
        for rival in rivals:
            starts = radius * unit(
                torch.randn((self.options.restarts, *x.shape), generator=self.generator)
            )
            starts[0] = 0.0
            points, gaps = self.descend(x, starts, radius, a, rival)
            ends.append(points[int(gaps.argmin())])
        return ends

    def descend(
        self, x: Tensor, delta: Tensor, radius: float, a: int, b: int
    ) -> tuple[Tensor, Tensor]:
        """Projected gradient descent of the restarts side by side: points and their last gaps."""
        eps = self.noise(self.options.draws)
        classes = torch.full((2, len(delta)), a)
        classes[1] = b
        steps = self.options.steps
        for step in range(steps + 1):
            point = into_box(x, delta, radius).requires_grad_(True)
            losses = pair_losses(self.denoiser, point, classes[0], classes[1], eps, self.s)
            gaps = score_gaps(losses, self.weights).mean(dim=0)
            self.nfe += 3 * losses.numel()  # a gradient costs about two evaluations more
            if step == steps:
                return point.detach(), gaps.detach()
            (gradient,) = torch.autograd.grad(gaps.sum(), point)
            length = radius * (1.0 - step / steps)
            delta = (point - x).detach() - length * unit(gradient)
        raise ValueError("steps must be at least 0")

    def verdict(self, x: Tensor, a: int) -> tuple[str, float, int]:
        """Whether the exact classifier still says a at x; the nearest gap in errors; the draws."""
        draws, scores = self.options.final_draws, np.empty((0, self.plan.classes))
        while True:
            scores = np.concatenate([scores, self.scores(x, draws - len(scores))])
            gaps = np.delete(scores - scores[:, [a]], a, axis=1)
            errors = gaps.mean(axis=0) / (gaps.std(axis=0, ddof=1) / np.sqrt(draws))
            nearest = float(errors.min())
            if nearest > STANDARD_ERRORS:
                return "unchanged", nearest, draws
            if nearest < -STANDARD_ERRORS:
                return "changed", nearest, draws
            if draws >= self.options.most_draws:
                return "undecided", nearest, draws
            draws *= 2

    def scores(self, x: Tensor, draws: int) -> np.ndarray:
        """Weighted losses [M, K] of fresh draws, all classes under the same noise."""
        levels, classes = len(self.plan.s), self.plan.classes
        u = projected(x[None].numpy())
        out = []
        with torch.inference_mode():
            for eps in self.noise(draws).split(max(1, ROWS // (levels * classes))):
                size = (len(eps), levels, classes)
                noise = eps[:, :, None].expand(*size, *x.shape).flatten(0, 2)
                s = self.s[:, None].expand(size).flatten()
                y = torch.arange(classes).expand(size).flatten()
                losses = pixel_losses(self.denoiser, u.expand(noise.shape), s, y, noise)
                out.append(np.einsum("t,mtk->mk", self.plan.weights, losses.reshape(size).numpy()))
                self.nfe += losses.numel()
        return np.concatenate(out)


def unit(v: Tensor) -> Tensor:
    """Each row scaled to l2 length 1."""
    return v / v.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, *([1] * (v.dim() - 1)))


def into_box(x: Tensor, delta: Tensor, radius: float) -> Tensor:
    """Bring x + delta into the open ball, then into the box, which keeps it in the ball."""
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-30)
    shrink = (0.9999 * radius / length).clamp(max=1.0).reshape(-1, *([1] * x.dim()))
    return (x + shrink * delta).clamp(0.0, 1.0)


def attacked(
    attacker: Attacker, image: ImageLosses, x: Tensor, a: int, radius: float
) -> dict[str, object]:
    """One row: the worst verdict over the rivals' closest points."""
    losses = attacker.plan.weights @ image.unit_sums().means
    order = [int(k) for k in np.argsort(losses) if k != a]
    points = attacker.closest(x, radius, a, order[: attacker.options.rivals])
    verdicts = [attacker.verdict(point, a) for point in points]
    worst = min(range(len(points)), key=lambda i: verdicts[i][1])
    outcome, errors, draws = verdicts[worst]
    moved = float((points[worst] - x).norm())
    return {
        "image_id": image.image_id,
        "radius": radius,
        "moved": moved,
        "outcome": outcome,
        "errors_from_change": errors,
        "draws": draws,
    }


def attack_run(
    options: argparse.Namespace, plan: PlainPlan, data: Dataset, attacker: Attacker
) -> pd.DataFrame:
    """Attack every certified image, and some of them again at the control radius."""
    losses = read_losses(open_run(options.run).store, len(plan.s), plan.classes)
    rows, controls = [], 0
    for image, found in recompute_plain(plan, losses, data.image, "local"):
        if found.abstained:
            continue
        x = torch.from_numpy(np.array(data.image(image.image_id)))
        row = attacked(attacker, image, x, found.predicted, found.radius)
        rows.append({"attack": "certified"} | row)
        if controls < options.control:
            controls += 1
            row = attacked(attacker, image, x, found.predicted, options.control_radius)
            rows.append({"attack": "control"} | row)
        print(f"{len(rows)} attacks, image {image.image_id}: {row['outcome']}", file=sys.stderr)
    return pd.DataFrame(rows)


def main() -> None:
    """Attack the run of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--rivals", type=int, default=2)
    parser.add_argument("--final-draws", type=int, default=64)
    parser.add_argument("--most-draws", type=int, default=4096)
    parser.add_argument("--control", type=int, default=10, help="images attacked again")
    parser.add_argument("--control-radius", type=float, default=2.0, help="pixel units")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    run = open_run(options.run)
    data = load_dataset(run.config.dataset)
    plan = plan_of(run.config, data)
    if not isinstance(plan, PlainPlan):
        parser.error(f"{options.run} is a run of votes: this attack is on plain certificates")
    denoiser = load_denoiser(run.config.model.checkpoint)
    generator = torch.Generator().manual_seed(options.seed)
    attacker = Attacker(denoiser, plan, options, generator)
    found = attack_run(options, plan, data, attacker)
    for attack, block in found.groupby("attack"):
        counts = block["outcome"].value_counts().to_dict()
        print(
            f"{attack}: {len(block)} images, "
            f"radius {round_radius_down(block['radius'].median(), 4)} (median), moved "
            f"{block['moved'].median():.4f}, nearest to a change "
            f"{block['errors_from_change'].min():.1f} standard errors, most draws "
            f"{block['draws'].max()}: {counts}"
        )
    print(f"about {attacker.nfe:,} NFE, {time.perf_counter() - started:.0f} s")
    replace_view(run.store.location, "report/attack.csv", found.to_csv(index=False).encode())


if __name__ == "__main__":
    main()
