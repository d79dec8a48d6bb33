"""What is trained: weights, their average, the optimiser, and one step of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network under training.

    Attributes:
        network: what is trained, in training mode, on its device.
        average: a moving average of its weights, or None.
        optimiser: Adam or AdamW over its parameters.
        batch_loss: draws a batch from the device's generator and returns its loss, a scalar.
        held_out_loss: the loss on images that are not learned from, or None; no generator of
            torch's is drawn from for it.
    """

    network: nn.Module
    average: nn.Module | None
    optimiser: torch.optim.Optimizer
    batch_loss: Callable[[], Tensor]
    held_out_loss: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        for p in self.network.parameters():  # as the optimiser's first step would make it
            group = self.optimiser.param_groups[0]
            on_device = bool(group["fused"] or group["capturable"])
            self.optimiser.state[p] = {
                "step": torch.zeros((), device=p.device if on_device else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, but for the generators; not copies."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, p in self.network.named_parameters():
            for key, value in self.optimiser.state[p].items():
                found[f"adam.{key}.{name}"] = value
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the values of `tensors`, in place."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])

    def is_finite(self) -> bool:
        """Whether every weight is; this waits for the device."""
        weights = (p.detach().isfinite().all() for p in self.network.parameters())
        return bool(torch.stack(list(weights)).all())


class EagerStep:
    """One step of a learner, called with learning rate and decay; returns the loss."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __call__(self, learning_rate: float, decay: float) -> Tensor:
        """Take the step."""
        learner = self._learner
        learner.optimiser.param_groups[0]["lr"] = learning_rate
        loss = _descend(learner)
        if learner.average is not None:
            with torch.no_grad():
                averages: list[Tensor] = list(learner.average.parameters())
                weights: list[Tensor] = list(learner.network.parameters())
                torch._foreach_lerp_(averages, weights, 1 - decay)
        return loss


class RecordedStep:
    """The same as a CUDA graph: recorded here, replayed by each call.

    The optimiser must have been made with capturable=True and a tensor as its learning rate. The
    learner is left as it was; the device's generator is not.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._learning_rate: Tensor = learner.optimiser.param_groups[0]["lr"]
        self._share = torch.zeros((), device="cuda")
        before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries choose and allocate before they can be recorded
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._step()
        learner.load(before)

    def _step(self) -> Tensor:
        learner = self._learner
        loss = _descend(learner)
        if learner.average is not None:
            with torch.no_grad():
                averages: list[Tensor] = list(learner.average.parameters())
                weights: list[Tensor] = list(learner.network.parameters())
                ahead = list(torch._foreach_sub(weights, averages))
                torch._foreach_mul_(ahead, self._share)
                torch._foreach_add_(averages, ahead)
        return loss

    def __call__(self, learning_rate: float, decay: float) -> Tensor:
        """Take the step; the loss is overwritten by the next one."""
        self._learning_rate.fill_(learning_rate)
        self._share.fill_(1 - decay)
        self._graph.replay()
        return self._loss


def _descend(learner: Learner) -> Tensor:
    loss = learner.batch_loss()
    learner.optimiser.zero_grad()
    loss.backward()
    learner.optimiser.step()
    return loss.detach()
