"""A bench of one network: all its measurements, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffcert_ray.engine.memory import activation_bytes, eager, network_bytes, peak_bytes
from diffcert_ray.engine.numerics_kind import short_batches
from diffcert_ray.engine.speed import (
    Forward,
    Rate,
    batch_rates,
    best_rate,
    doubling,
    seconds,
    smallest_good_batch,
)
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.tools.bench_file import Measured, Memory
from diffcert_ray.tools.comparison import Comparison, Engine, compare
from diffcert_ray.tools.floor import Speeds, floor
from diffcert_ray.tools.stopwatch import Stopwatch


@dataclass(frozen=True)
class Schedule:
    """How long a bench takes.

    Args:
        rounds: of the engine, each between two of the bare network.
        item_s: seconds of an item, as ``execution.item_s``.
        bare_s: seconds of a bare round, at least.
        search_s: the same while the best batch is looked for.
        engine_limit_s: a first item predicted to take longer is not evaluated.
        largest_batch: of the bare network.
    """

    rounds: int = 5
    item_s: float = 5.0
    bare_s: float = 1.5
    search_s: float = 0.4
    engine_limit_s: float = 120.0
    largest_batch: int = 4096


@dataclass(frozen=True)
class Subject:
    """A network to measure, and images to cast votes of.

    Args:
        base: the network's base classifier; ``batch`` is the engine's.
        image: image_id -> float32 [C, H, W] in [0, 1].
        image_ids: int64 [N].
        batch_open: the engine's batch is to be what calibration would choose, instead of
            ``base.batch``.
    """

    name: str
    base: DiffusionBase
    image: Callable[[int], np.ndarray]
    image_ids: np.ndarray
    dtype: str = "float32"
    compiled: bool = False
    channels_last: bool = False
    batch_open: bool = False


def random_images(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Images of uniform noise, float32 [count, C, H, W] in [0, 1], always the same."""
    return np.random.default_rng(0).random((count, *shape), np.float32)


def measure(
    subject: Subject,
    speeds: Speeds,
    schedule: Schedule,
    *,
    on_rate: Callable[[Rate], None] = lambda rate: None,
) -> Measured:
    """Measure one network; ``on_rate`` is called with the rate of each batch size."""
    base, network = subject.base, subject.base.denoiser
    first = 1 if network_bytes(network) > 2**27 and base.device == "cpu" else 8
    batches = sorted({*doubling(first, schedule.largest_batch), base.batch})
    if subject.compiled:  # anew for each size, a minute or so each
        batches = [b for b in batches if base.batch <= 2 * b <= 4 * base.batch]
    rates = batch_rates(network, batches, base.device, round_s=schedule.search_s, on_rate=on_rate)
    shortens = base.device == "cpu" and not subject.compiled
    if subject.batch_open:
        base = replace(base, batch=smallest_good_batch(rates, schedule.item_s, short=shortens))
    if shortens:
        base = replace(base, short_batches=short_batches(network, base.batch, base.device))
    subject = replace(subject, base=base)
    bare = Forward(network, best_rate(rates).batch, base.device)
    bare.evaluate()
    engine = Engine(base, subject.image, subject.image_ids)
    rate = best_rate(rates).nfe_per_s or 0.0
    comparison, spent = None, {}
    # A vote evaluates every class at least once, in batches that are padded.
    if max(network.num_classes, base.batch) / rate <= schedule.engine_limit_s:
        engine.learn(max(1, min(16, round(rate * schedule.item_s / (4 * network.num_classes)))))
        comparison = compare(
            engine,
            bare,
            base,
            rounds=schedule.rounds,
            item_s=schedule.item_s,
            bare_s=schedule.bare_s,
        )
        spent = part_seconds(engine, base.device, engine.votes_of(rate * schedule.item_s))
    return Measured(
        name=subject.name,
        parameters=_parameters(network),
        dtype=subject.dtype,
        compiled=subject.compiled,
        channels_last=subject.channels_last,
        rates=tuple(rates),
        comparison=comparison,
        part_seconds=spent,
        memory=_memory(subject, comparison),
        floor=floor(network, base.batch, base.device, speeds),
    )


def part_seconds(engine: Engine, device: str, votes: int) -> dict[str, float]:
    """Seconds of one item by part of the engine; "rest" is what lies between them."""
    watch, began = Stopwatch(device), seconds(device)
    engine.evaluate(votes, watch)
    total = seconds(device) - began
    return watch.seconds | {"rest": total - sum(watch.seconds.values())}


def write_trace(subject: Subject, path: Path, item_s: float, nfe_per_s: float) -> None:
    """Write a Chrome trace (chrome://tracing, Perfetto) of one item, the engine's parts named.

    The item takes about ``item_s`` seconds if the network does ``nfe_per_s`` evaluations a second.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if subject.base.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    engine = Engine(subject.base, subject.image, subject.image_ids)
    engine.learn()
    votes = engine.votes_of(nfe_per_s * item_s)
    with torch.profiler.profile(activities=activities) as profile:
        engine.evaluate(votes, torch.profiler.record_function)
    profile.export_chrome_trace(str(path))


def _memory(subject: Subject, comparison: Comparison | None) -> Memory:
    base, device = subject.base, subject.base.device
    network = base.denoiser
    activations = activation_bytes(network, base.batch, device)
    peak = None
    if comparison is not None:
        # Compiled code hides its tensors on a CPU: the same item, evaluated eagerly.
        shown = eager(network) if device == "cpu" else network
        unconditional = shown if base.unconditional is network else base.unconditional
        seen = replace(base, denoiser=shown, unconditional=unconditional)
        engine = Engine(seen, subject.image, subject.image_ids)
        votes = -(-8 * base.batch // network.num_classes)  # enough for a whole chunk
        nfe_s = votes * comparison.nfe / comparison.votes / comparison.engine_nfe_per_s
        if nfe_s <= 120.0:
            peak = peak_bytes(lambda: engine.evaluate(votes), device)
    return Memory(network_bytes(network), activations, peak)


def _parameters(network: object) -> int:
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
