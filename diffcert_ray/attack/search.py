"""Search for a perturbation of given length that changes the smoothed classifier's class.

Nothing here decides whether it does: what a search picks, it picks by votes and scores that no
verdict uses.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.attack.smoothed import Smoothed
from diffcert_ray.method.base_classifier import Draws

MOMENTUM = 0.7  # of the gradients' directions: each rests on a few noisy copies only


@dataclass(frozen=True)
class Effort:
    """How hard one image is attacked.

    Args:
        steps: projected gradient steps, >= 1.
        copies: noisy copies that each gradient averages over, >= 1.
        levels: noise levels that each copy is scored at, >= 1; trained classifiers have none.
        rivals: classes that gradients lead to, one after the other, >= 1.
        candidates: directions of a round of random search, >= 1.
        rounds: rounds of random search; those after the first vary the best direction, >= 1.
        screen: votes that rank a direction, >= 1.
    """

    steps: int = 10
    copies: int = 16
    levels: int = 8
    rivals: int = 2
    candidates: int = 10
    rounds: int = 2
    screen: int = 40

    def __post_init__(self) -> None:
        low = {name: value for name, value in vars(self).items() if value < 1}
        if low:
            raise ValueError(f"effort {low}: each of {', '.join(vars(self))} must be at least 1")


@dataclass
class Search:
    """The search around one image.

    Args:
        smoothed: the smoothed classifier, with a seed of the search's own.
        x: the image [C, H, W], pixel units.
        a: the class to leave.
        effort: how hard to try.
        generator: of all that the gradients draw, on the CPU.
        towards: directions worth a try, [M, C, H, W] of any length; M may be 0.
    """

    smoothed: Smoothed
    x: Tensor
    a: int
    effort: Effort
    generator: torch.Generator
    towards: Tensor
    rivals: list[int] = field(init=False)
    scale: float = field(init=False)
    _screened: int = 0

    def __post_init__(self) -> None:
        draws = self._draws()
        with torch.no_grad():
            scores = self.smoothed.scores(self.x, draws)
        gaps = scores - scores[:, [self.a]]
        order = gaps.mean(dim=0).argsort(descending=True).tolist()
        self.rivals = [k for k in order if k != self.a][: self.effort.rivals]
        self.scale = max(float(gaps[:, self.rivals].abs().mean()), 1e-12)

    def by_gradient(self, radius: float, b: int, start: Tensor | None = None) -> Tensor:
        """Projected gradient ascent towards a class, over fresh noise in every step.

        Args:
            radius: largest l2 length, pixel units.
            b: the class to reach.
            start: perturbation [C, H, W] to begin with; none by default.

        Returns:
            Perturbation [C, H, W] of at most that length.

        Source: Madry et al. 2018 (arXiv:1706.06083), l2, through the mean of soft votes as in
            Salman et al. 2019 (arXiv:1906.04584), section 3.1.
        """
        delta = torch.zeros_like(self.x) if start is None else within(start, radius)
        direction = torch.zeros_like(self.x)
        steps = self.effort.steps
        for step in range(steps):
            _, slope = self.smoothed.ascent(self.x + delta, self._draws(), self.a, b, self.scale)
            direction = MOMENTUM * direction + unit(slope)
            delta = within(delta + radius * (1.0 - step / steps) * unit(direction), radius)
        return delta

    def at_random(self, radius: float) -> Tensor:
        """Directions ranked by votes; after the first round the best one is varied.

        Args:
            radius: l2 length, pixel units.

        Returns:
            Perturbation [C, H, W] of that length.
        """
        best, share = self.fewest_votes([radius * v for v in self._ways()])
        for reach in 1.0 / np.arange(2, self.effort.rounds + 1):
            varied = [radius * unit(unit(best) + float(reach) * v) for v in self._ways()]
            other, lower = self.fewest_votes(varied)
            if lower < share:
                best, share = other, lower
        return best

    def fewest_votes(self, deltas: list[Tensor]) -> tuple[Tensor, float]:
        """The perturbation that leaves the class fewest votes, and their share."""
        start = self._screened
        self._screened += self.effort.screen
        points = {i: (self.x + d).cpu().numpy() for i, d in enumerate(deltas)}
        counts = self.smoothed.votes(points, "select", start, self._screened)
        shares = [c.get(self.a, 0) / self.effort.screen for c in counts]
        best = int(np.argmin(shares))
        return deltas[best], shares[best]

    def _draws(self) -> Draws:
        effort = self.effort
        return self.smoothed.draw(effort.copies, effort.levels, self.x, self.generator)

    def _ways(self) -> list[Tensor]:
        """Directions of length 1: half of them worth a try (if there are any), half at random."""
        count = self.effort.candidates
        some = torch.randperm(len(self.towards), generator=self.generator)[: -(-count // 2)]
        free = torch.randn((count - len(some), *self.x.shape), generator=self.generator)
        return [unit(v) for v in [*self.towards[some.to(self.x.device)], *free.to(self.x.device)]]


def unit(v: Tensor) -> Tensor:
    """The same direction at l2 length 1; zero stays zero."""
    return v / v.norm().clamp(min=1e-30)


def within(v: Tensor, radius: float) -> Tensor:
    """The nearest point of the ball of a radius."""
    return v * min(1.0, radius / max(float(v.norm()), 1e-30))
