"""The loop of a training: steps, stored states, the curve of losses; it resumes after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcert_ray.config.training_tables import ClassifierSteps, DenoiserSteps
from diffcert_ray.denoisers.device import compilation_failures
from diffcert_ray.errors import CheckpointError, ConfigError, TrainingError
from diffcert_ray.tools.training.learner import EagerStep, Learner, RecordedStep
from diffcert_ray.tools.training.state import (
    check_same,
    generators,
    publish,
    read_state,
    set_generators,
    write_state,
)

STATE, CURVE = "state.safetensors", "loss.csv"
ROWS = 100
"""A curve has about so many rows at least, if there are as many steps; a row is at most so many
steps."""
_SMOOTHED_ROWS = 10
_TIMES_HELD_OUT = 20
Row = tuple[float, float, float, float]
"""Step, mean loss since the row before, learning rate, held-out loss (NaN where not taken)."""


@dataclass(frozen=True)
class Standing:
    """Where a training stands.

    Attributes:
        step: steps done.
        steps: of the whole training.
        loss: mean over the last rows of the curve, NaN before the first.
        learning_rate: of the last step.
        held_out_loss: the last one, or None.
        seconds_left: None while unknown.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    held_out_loss: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class Trained:
    """How a start of a training ended.

    Attributes:
        model: the file of the network, or None if the training was stopped before its end.
        step: steps done, those of earlier starts included.
        seconds: of computing, those of earlier starts included.
        curve: its rows.
    """

    model: Path | None
    step: int
    seconds: float
    curve: tuple[Row, ...]


OnProgress = Callable[[Standing], None]
ShouldStop = Callable[[], bool]


@dataclass
class Loop:
    """One start of a training.

    Args:
        learner: what is trained.
        settings: the table [training].
        folder: where state and curve are kept.
        about: "config", "device" and "images", which a state must have in common with this start.
        decay: of the moving average after a step, by step.
        on_progress: called a few times a second at most where steps are quicker.
        should_stop: asked before each step.
    """

    learner: Learner
    settings: DenoiserSteps | ClassifierSteps
    folder: Path
    about: Mapping[str, Any]
    decay: Callable[[int], float]
    on_progress: OnProgress | None = None
    should_stop: ShouldStop | None = None
    step: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    curve: list[Row] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.every = max(1, min(ROWS, self.settings.steps // ROWS))
        self._losses = torch.zeros(self.every, device=self.about["device"])
        self._checked = 0  # steps whose losses have been found finite
        self._stored_at = 0.0
        self._first = 0

    def run(self) -> bool:
        """Go on from the state in the folder, if there is one; whether the end was reached."""
        take_step = self._prepared()
        self._resume()
        self._first, self._checked = self.step, self.step
        self._began = self._stored_at = time.monotonic()
        earlier = self.seconds
        while self.step < self.settings.steps:
            if self.should_stop is not None and self.should_stop():
                break
            self._losses[self.step % self.every].copy_(self._take(take_step))
            self.step += 1
            self.seconds = earlier + time.monotonic() - self._began
            if self.step % self.every == 0 or self.step == self.settings.steps:
                self._add_row()
            if time.monotonic() - self._stored_at > 60 * self.settings.checkpoint_minutes:
                self._store()
        self._store()
        return self.step == self.settings.steps

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        settings = self.settings
        warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        return settings.learning_rate * warm * (1 + math.cos(math.pi * step / settings.steps)) / 2

    def _prepared(self) -> EagerStep | RecordedStep:
        if self.settings.compile:
            self.learner.network.compile(dynamic=False)
        if not self.settings.cuda_graph:
            return EagerStep(self.learner)
        if self.about["device"] != "cuda":
            raise ConfigError(
                "training.cuda_graph = true records what a GPU does, but the training is on the "
                "CPU: leave it out"
            )
        drawn = generators("cuda")
        with self._compiling():
            recorded = RecordedStep(self.learner)
        set_generators(drawn)
        return recorded

    def _take(self, take_step: EagerStep | RecordedStep) -> Tensor:
        if self.step > self._first:
            return take_step(self.learning_rate(self.step), self.decay(self.step))
        with self._compiling():
            return take_step(self.learning_rate(self.step), self.decay(self.step))

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Say in one line why a network cannot be compiled, should that be so."""
        if not self.settings.compile:  # asking for the compiler's errors loads it, for seconds
            yield
            return
        try:
            yield
        except compilation_failures() as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"training.compile is true, but the network cannot be compiled here ({reason}): "
                "install a C++ compiler (g++), or set training.compile = false"
            ) from None

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        tensors, stored = read_state(path)
        try:
            check_same(path, stored, self.about)
            self.learner.load(tensors)
            self._losses.copy_(tensors["losses"])
            self.curve = [(a, b, c, d) for a, b, c, d in tensors["curve"].tolist()]
            self.step, self.seconds = int(stored["step"]), float(stored["seconds"])
            set_generators(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be read as the state of a training ({error}): remove it to begin "
                "anew, or give another --output"
            ) from None

    def _add_row(self) -> None:
        losses = self._check_losses()
        rate = self.learning_rate(self.step - 1)
        held_out = self._held_out()
        self.curve.append((float(self.step), float(losses.double().mean()), rate, held_out))
        if self.on_progress is None:
            return
        last = [loss for _, loss, *_ in self.curve[-_SMOOTHED_ROWS:]]
        taken = (time.monotonic() - self._began) / (self.step - self._first)
        left = taken * (self.settings.steps - self.step)
        loss = sum(last) / len(last)
        steps = self.settings.steps
        self.on_progress(Standing(self.step, steps, loss, rate, self.last_held_out(), left))

    def last_held_out(self) -> float | None:
        """The last held-out loss that was taken, or None."""
        return next((row[3] for row in reversed(self.curve) if not math.isnan(row[3])), None)

    def _held_out(self) -> float:
        """The held-out loss where a row is to have one: some twenty times, and at the end."""
        before = self.curve[-1][0] if self.curve else 0
        part = self.settings.steps / _TIMES_HELD_OUT
        due = self.step // part > before // part or self.step == self.settings.steps
        asked = self.learner.held_out_loss
        return asked() if due and asked is not None else math.nan

    def _check_losses(self) -> Tensor:
        """The losses since the last row, on the host; TrainingError if one is not finite."""
        losses = self._losses.cpu()
        for step in range(self._checked, self.step):
            if not math.isfinite(loss := float(losses[step % self.every])):
                raise self._diverged(f"the loss of step {step + 1} is {loss}", step)
        self._checked = self.step
        return losses

    def _diverged(self, what: str, step: int) -> TrainingError:
        path = self.folder / STATE
        kept = f"; {path} keeps what was stored before" if path.exists() else ""
        return TrainingError(
            f"{what}, at learning rate {self.learning_rate(step):.3g} (peak "
            f"training.learning_rate = {self.settings.learning_rate:g}): lower it, or raise "
            f"training.warmup_steps, and give another --output{kept}"
        )

    def _store(self) -> None:
        self._check_losses()
        if not self.learner.is_finite():
            raise self._diverged(f"a weight after step {self.step} is not finite", self.step - 1)
        tensors = self.learner.tensors() | generators(self.about["device"])
        tensors["losses"] = self._losses
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 4)
        more = {"step": self.step, "seconds": self.seconds, "torch": torch.__version__}
        write_state(self.folder / STATE, tensors, {**self.about, **more})
        rows = [
            f"{step:.0f},{loss!r},{rate!r},{'' if math.isnan(held_out) else repr(held_out)}\n"
            for step, loss, rate, held_out in self.curve
        ]
        text = "step,loss,learning_rate,held_out_loss\n" + "".join(rows)
        publish(self.folder / CURVE, text.encode())
        self._stored_at = time.monotonic()


@contextmanager
def set_for_training(device: str, threads: int) -> Iterator[None]:
    """Let torch compute so that equal seeds give equal weights; all is as before afterwards."""
    before = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    torch.set_num_threads(threads)
    try:
        # Kernels whose sums have no fixed order are left out, and none is chosen by its time.
        with (
            torch.random.fork_rng(devices=devices),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=True
            ),
        ):
            yield
    finally:
        torch.set_num_threads(before)
