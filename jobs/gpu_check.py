"""What a GPU does with the shipped and the full-size networks: votes, speed, memory, calibration.

    python jobs/gpu_check.py [--device cuda] [--output gpu_check.json] [--budget-s 500]
    python jobs/gpu_check.py --device cpu --small --output gpu_check_small.json

Parts, the most important first, each in a process of its own and with seconds of its own; one that
fails or takes too long costs only itself. Tables go to the standard output in Markdown, row by row;
the file gets them, too. Networks other than the shipped one have random weights. `--parts` names
those to be carried out. Needs neither Ray nor a network connection; `--small` tries the whole job
on a CPU in three minutes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start threads: parts fork

import numpy as np
import torch
import torch.nn.functional as F
from guarded_parts import Guarded, Report, carry_out, said, shown
from torch import Tensor

from diffcert_ray.checkpoints.load import load_denoiser, save_denoiser
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.denoiser import Denoiser
from diffcert_ray.denoisers.device import compile_denoiser, keep_channels_last, set_up_torch
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.engine.memory import example_rows, peak_bytes
from diffcert_ray.engine.numerics_kind import numerics_kind
from diffcert_ray.engine.speed import Forward, batch_rates, seconds
from diffcert_ray.engine.votes import evaluate_votes
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.pool.dispatch import Dispatch
from diffcert_ray.pool.starts import Starts
from diffcert_ray.run.calibration import calibrate, memory_limit
from diffcert_ray.tools.comparison import Engine, compare
from diffcert_ray.tools.floor import Speeds, device_speeds, floor
from diffcert_ray.tools.measure import part_seconds, random_images
from diffcert_ray.tools.scales import random_network
from diffcert_ray.votes.units import Item, Part, Result, Unit

# All classes race: other networks than the shipped one have no head.
RACE = ("sift.rule=paired-z", "sift.z=2.5", "sift.first_level=0.72")
GIB = 2**30
SIGMAS = (0.25, 0.5)
LONGEST_ROW_S = 6.0  # of a bare network
LARGEST_ITEM = 400_000.0  # evaluations: with a small network the host may be much slower


@dataclass(frozen=True)
class Setting:
    """Where, how much of each thing, and with which networks.

    Args:
        device: "cuda" or "cpu".
        images: digits that votes are cast of.
        votes: of each image and sigma.
        scales: the network measured under each name.
        levels: noise levels of the engine's votes, by name: with random weights few classes drop
            out, and a vote of 126 levels and 1000 classes would take minutes.
        batches: of the bare networks.
        engines: (dtype, batch) at which the engine is measured, by name.
        item_s: seconds of an item.
        bare_s: seconds of a bare round.
        too_large: batches that do not fit.
        calibrated: evaluations of the runs that calibration is asked about.
        memory_gib: execution.memory_limit of the full-size network's calibration: larger batches
            would take minutes in float32.
    """

    device: str
    images: int
    votes: int
    scales: dict[str, str]
    levels: dict[str, int]
    batches: tuple[int, ...]
    engines: dict[str, tuple[tuple[str, int], ...]]
    item_s: float
    bare_s: float
    too_large: tuple[int, ...]
    calibrated: float
    memory_gib: float


FULL = Setting(
    device="cuda",
    images=100,
    votes=50,
    scales={name: name for name in ("digits", "cifar10", "imagenet64")},
    levels={"digits": 126, "cifar10": 8, "imagenet64": 2},
    batches=(128, 256, 512, 1024),
    engines={
        "digits": (("float32", 128), ("float32", 1024)),
        "cifar10": (
            ("float32", 128),
            ("float32", 512),
            *(("bfloat16", batch) for batch in (128, 256, 512, 1024)),
        ),
        "imagenet64": (("bfloat16", 256),),
    },
    item_s=5.0,
    bare_s=0.3,
    too_large=(65536, 32768),
    calibrated=1e8,
    memory_gib=10.0,
)
SMALL = replace(
    FULL,
    images=4,
    votes=2,
    scales={"digits": "digits", "cifar10": "digits-32", "imagenet64": "digits"},
    levels={"digits": 8, "cifar10": 4, "imagenet64": 2},
    batches=(8, 16),
    engines={name: (("float32", 8),) for name in FULL.engines},
    item_s=0.2,
    bare_s=0.02,
    too_large=(64,),
    calibrated=1e4,
    memory_gib=0.004,
)
"""For a CPU; the two larger networks are replaced by small ones."""


# --- networks and measurements that several parts share -----------------------------------------


def network(here: Setting, name: str, dtype: str = "float32") -> EdmDenoiser:
    """A network of random weights.

    Fresh layers that end a residual branch are all zero; here they get numbers, since a device
    multiplies zeros in less time and attention would not reach the output.
    """
    made = drawn_there(here, name, dtype)
    generator = torch.Generator(here.device).manual_seed(0)
    for parameter in made.parameters():
        if parameter.ndim > 1 and not parameter.any():
            fan_in = parameter[0].numel()
            drawn = torch.randn(parameter.shape, generator=generator, device=here.device)
            parameter.copy_(drawn * 0.3 / fan_in**0.5)
    return made


def drawn_there(here: Setting, name: str, dtype: str) -> EdmDenoiser:
    """A fresh network, its weights drawn on the device: on one CPU core that takes seconds."""
    torch.manual_seed(0)
    with torch.device(here.device):
        return random_network(here.scales[name], here.device, dtype)  # type: ignore[arg-type]


def subject_network(here: Setting, name: str, dtype: str) -> Any:
    """The shipped network for the digits, else one of random weights."""
    if name == "digits":
        return load_denoiser("digits", device=here.device, dtype=dtype)  # type: ignore[arg-type]
    return network(here, name, dtype)


def recast(here: Setting, name: str, source: EdmDenoiser, dtype: str) -> EdmDenoiser:
    """The network of the same weights in another dtype."""
    made = drawn_there(here, name, dtype)
    made.load_state_dict(source.state_dict())
    return made


def subject(
    here: Setting, name: str, denoiser: Denoiser
) -> tuple[BaseClassifier, Callable[[int], np.ndarray], np.ndarray]:
    """The base classifier of a network, images and their ids."""
    config = load_config("digits", [*RACE, f"noise_levels.levels={here.levels[name]}"])
    base = base_classifier(config, denoiser, config.votes.sigmas[0], device=here.device)
    if name == "digits":
        real = load_dataset({"name": "digits", "split": "test", "first": 16})
        return base, real.image, real.ids
    images = random_images(denoiser.image_shape, 16)
    return base, images.__getitem__, np.arange(len(images))


def bare_rate(here: Setting, denoiser: Denoiser, batch: int) -> tuple[float | None, float]:
    """Evaluations per second of the bare network (None: out of memory), and its peak in GiB."""
    found = batch_rates(denoiser, [batch], here.device, rounds=1, round_s=here.bare_s)
    return found[0].nfe_per_s, found[0].peak_bytes / GIB


def host_ms(forward: Forward, device: str) -> float:
    """Milliseconds until the host has queued a batch; on a CPU, until it is evaluated."""
    times = []
    for _ in range(3):
        seconds(device)
        began = time.perf_counter()
        forward.evaluate()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def outputs(denoiser: Denoiser, device: str, rows: int = 32) -> Tensor:
    """What a network says of some example rows, float64 on the CPU."""
    with torch.inference_mode():
        return denoiser(*example_rows(denoiser, rows, device)).double().cpu()


def difference(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference by the norm of the reference."""
    return float((found - reference).norm() / reference.norm())


@contextmanager
def tf32(matmul: bool, convolution: bool) -> Iterator[None]:
    """Let float32 products be rounded to TF32 within, as torch's own defaults do in part."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


Span = tuple[float, float, str]
"""Begin and end in microseconds, and a name."""


def device_spans(work: Callable[[], object], device: str) -> list[Span]:
    """What the device did while some work was done: kernels and copies; on a CPU, operations."""
    kind = "CUDA" if device == "cuda" else "CPU"
    activity = getattr(torch.profiler.ProfilerActivity, kind)
    with torch.profiler.profile(activities=[activity], acc_events=True) as profile:
        work()
        seconds(device)
    wanted = getattr(torch.autograd.DeviceType, kind)
    return [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events() or ()
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False)
    ]


def covered(spans: Sequence[Span]) -> float:
    """Microseconds in which at least one of them is under way."""
    total, reached = 0.0, float("-inf")
    for begin, end, _ in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


# --- the parts ----------------------------------------------------------------------------------


def about_device(report: Report, here: Setting) -> None:
    """What computes here, and how fast it multiplies and copies."""
    cuda = here.device == "cuda"
    report.table("Device", "what", "value")
    report.row("torch", torch.__version__)
    report.row("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    if cuda:
        about = torch.cuda.get_device_properties(0)
        report.row("name", about.name)
        report.row("memory GiB", about.total_memory / GIB)
        report.row("multiprocessors", about.multi_processor_count)
        with report.step("driver"):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
            report.row("driver", answer.stdout.strip())
    report.row("CPU cores", os.cpu_count())
    for dtype in ("float32", "bfloat16") if cuda else ("float32",):
        best = device_speeds(here.device, dtype)
        report.row(f"{dtype} product TFLOP/s", best.flop_per_s / 1e12)
    report.row("copy TB/s", best.bytes_per_s / 1e12)
    if cuda:
        with tf32(True, True):
            report.row("tf32 product TFLOP/s", device_speeds("cuda", "float32").flop_per_s / 1e12)


@dataclass(frozen=True)
class Ballot:
    """Votes of some digits, all of one sigma, computed one way."""

    sigma: float
    ids: tuple[int, ...]
    each: int
    dtype: str = "float32"
    batch: int = 128
    channels_last: bool = False
    tf32: bool = False


Cast = tuple[np.ndarray, int, float]
"""Classes of votes, int64 [images, each]; evaluations; seconds."""


def cast(ballot: Ballot, device: str) -> Cast:
    """Cast the votes."""
    set_up_torch()
    config = load_config("digits", [*RACE, f"numerics.batch={ballot.batch}"])
    images = load_dataset({"name": "digits", "split": "test"})
    denoiser = load_denoiser("digits", device=device, dtype=ballot.dtype)  # type: ignore[arg-type]
    if ballot.channels_last:
        keep_channels_last(denoiser)
    base = base_classifier(config, denoiser, ballot.sigma, device=device)
    units = [Unit(ballot.sigma, i, "estimate", 0, ballot.each) for i in ballot.ids]
    item = Item(0, ballot.sigma, tuple(Part(unit, unit.start, unit.stop) for unit in units))
    began = time.perf_counter()
    with tf32(ballot.tf32, ballot.tf32):
        winners, nfe = evaluate_votes(base, item, images.image)
    return winners.reshape(len(units), ballot.each), nfe, time.perf_counter() - began


def votes(report: Report, here: Setting) -> None:
    """Whether the device's votes are the CPU's, and the votes of other ways float32's."""
    images = load_dataset({"name": "digits", "split": "test", "first": here.images})
    ids, each, labels = tuple(images.ids.tolist()), here.votes, images.labels[:, None]
    cores = os.cpu_count() or 1
    pieces = [tuple(piece.tolist()) for piece in np.array_split(ids, max(1, cores // 2))]
    # Forked before this process touches the device, and at work while the device is.
    forked = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(max(1, cores - 1), mp_context=forked) as pool:
        pending = {
            s: [pool.submit(cast, Ballot(s, piece, each), "cpu") for piece in pieces]
            for s in SIGMAS
        }
        plain = {s: cast(Ballot(s, ids, each), here.device) for s in SIGMAS}
        on_cpu = {s: np.concatenate([f.result()[0] for f in pending[s]]) for s in SIGMAS}
    report.table(
        f"Votes of {len(ids)} digits, {each} each at every sigma: apndc, preset digits",
        *("sigma", "way", "compared with", "votes", "different", "equal %", "right %"),
        *("NFE per vote", "s"),
    )

    def compared(sigma: float, way: str, other: str, mine: Cast, theirs: np.ndarray) -> None:
        winners, nfe, took = mine
        equal, right = float((winners == theirs).mean()), float((winners == labels).mean())
        apart = int((winners != theirs).sum())
        votes_each = nfe / winners.size
        report.row(
            sigma, way, other, winners.size, apart, 100 * equal, 100 * right, votes_each, took
        )

    for s in SIGMAS:
        compared(s, f"{here.device}, float32, batch 128", "CPU", plain[s], on_cpu[s])
    ways = {
        "batch 512": Ballot(0.0, ids, each, batch=512),
        "channels_last": Ballot(0.0, ids, each, channels_last=True),
        "tf32": Ballot(0.0, ids, each, tf32=True),
        "bfloat16": Ballot(0.0, ids, each, dtype="bfloat16"),
    }
    if here.device == "cuda":  # a CPU takes seconds
        ways["float16"] = Ballot(0.0, ids, each, dtype="float16")
    for way, ballot in ways.items():
        for s in SIGMAS:
            with report.step(f"votes {way}"):
                now = cast(replace(ballot, sigma=s), here.device)
                compared(s, way, "the first", now, plain[s][0])
    with report.step("noise"):
        same_noise(report, here)
    kinds(report, here)


def same_noise(report: Report, here: Setting) -> None:
    """How far the device's noise is from the CPU's."""
    source, rows = NoiseSource(1, 0.25, 3072), np.arange(256)
    devices = ("cpu", here.device)
    draws = {
        "Internal noise": [source.normal(rows, rows * 0, rows, 3, device=d).cpu() for d in devices],
        "Smoothing noise, in steps of the grid": [
            source.steps(np.repeat(rows, 16), np.tile(np.arange(16) % 2, 256), np.tile(rows, 16),
                         device=d).cpu()
            for d in devices
        ],
    }  # fmt: skip
    for what, (cpu, own) in draws.items():
        share, most = float((cpu == own).double().mean()), float((cpu - own).abs().max())
        report.note(
            f"{what}: {100 * share:.6f} % of {cpu.numel():,} numbers have the CPU's bits; the "
            f"largest difference is {most:.2g}."
        )


def kinds(report: Report, here: Setting) -> None:
    """Whether rows of a batch depend on their position on this device."""
    report.table(
        "Numerics kinds (-positional: a row's bits depend on its place)",
        *("network", "computes in", "batch", "kind"),
    )
    for dtype in ("float32", "bfloat16"):
        for name in ("digits", "cifar10"):
            denoiser = subject_network(here, name, dtype)
            for batch in here.batches[::2]:
                with report.step(f"numerics kind of {name} {dtype} {batch}"):
                    report.row(name, dtype, batch, numerics_kind(denoiser, batch, here.device))


SPEED_COLUMNS = (
    "computes in", "batch", "bare NFE/s", "TFLOP/s", "host ms", "peak GiB", "engine NFE/s",
    "of bare %", "padded %", "busy %", "noise %", "decisions %", "engine GiB",
)  # fmt: skip


def speed(report: Report, here: Setting, name: str) -> None:
    """The bare network and the engine over dtypes and batches."""
    report.table(
        f"Speed of {name}: the bare network, and the engine with votes of {here.levels[name]} "
        f"levels in items of {here.item_s:g} s",
        *SPEED_COLUMNS,
    )
    for dtype, last in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        with report.step(f"{name} {dtype}"):
            denoiser = subject_network(here, name, dtype)
            if last:
                keep_channels_last(denoiser)
            way = dtype + (" channels_last" if last else "")
            speed_of(report, here, name, denoiser, way)


def speed_of(report: Report, here: Setting, name: str, denoiser: EdmDenoiser, way: str) -> None:
    """The rows of one network, computing one way."""
    flop, per_s = floor(denoiser, 1, here.device, Speeds(1.0, 1.0)).flop, 0.0
    for batch in here.batches:
        if per_s and 3 * batch / per_s > LONGEST_ROW_S:  # a batch is evaluated three times
            report.note(f"{name} {way}: batch {batch} and more would take too long here.")
            return
        with report.step(f"{name} {way} batch {batch}"):
            rate, peak = bare_rate(here, denoiser, batch)
            if rate is None:
                report.row(way, batch, "out of memory", *(None,) * 10)
                return
            per_s = rate
            queued = host_ms(Forward(denoiser, batch, here.device), here.device)
            engine: tuple[Any, ...] = (None,) * 7
            if (way, batch) in here.engines[name]:
                with report.step(f"the engine, {name} {way} batch {batch}"):
                    engine = engine_cells(here, name, denoiser, batch, per_s)
            report.row(way, batch, per_s, per_s * flop / 1e12, queued, peak, *engine)


def engine_cells(
    here: Setting, name: str, denoiser: EdmDenoiser, batch: int, per_s: float
) -> tuple[Any, ...]:
    """The engine's columns, for a bare network of so many evaluations per second."""
    device = here.device
    base, image, ids = subject(here, name, denoiser)
    base = replace(base, batch=batch)
    item_s = min(here.item_s, LARGEST_ITEM / per_s)
    engine = Engine(base, image, ids)
    engine.learn(max(1, min(16, round(per_s * item_s / (4 * denoiser.num_classes)))))
    bare = Forward(denoiser, batch, device)
    ran = compare(engine, bare, base, rounds=1, item_s=item_s, bare_s=here.bare_s)
    rows = ran.nfe + ran.padded
    rows_per_s = ran.engine_nfe_per_s * rows / ran.nfe
    parts = part_seconds(engine, device, engine.votes_of(per_s * item_s / 4))
    total = sum(parts.values())
    busy, peak = None, None
    if device == "cuda":
        chunk = engine.votes_of(max(8 * batch, per_s * item_s / 10))
        busy_s, peak_gib = device_seconds_per_row(engine, chunk)
        busy, peak = 100 * busy_s * rows_per_s, peak_gib
    return (
        ran.engine_nfe_per_s,
        100 * ran.ratio,
        100 * ran.padded / rows,
        busy,
        100 * (parts["noise"] + parts["admission"]) / total,
        100 * (parts["decisions"] + parts["rest"]) / total,
        peak,
    )


def device_seconds_per_row(engine: Engine, votes: int) -> tuple[float, float]:
    """Seconds in which a GPU computes for a row of the engine's, and the item's peak in GiB.

    Under the profiler the host is slower, but not the device; what it does for a row hardly depends
    on the item.
    """
    results: list[Result] = []
    spans: list[Span] = []

    def item() -> None:
        spans.extend(device_spans(lambda: results.append(engine.evaluate(votes)), "cuda"))

    peak = peak_bytes(item, "cuda")
    return 1e-6 * covered(spans) / (results[0].nfe + results[0].padded), peak / GIB


def tensor_float(report: Report, here: Setting) -> None:
    """What TF32 would give where float32 is asked for, and what it changes."""
    batch = here.batches[-2]
    ways = {
        "float32 (as workers do)": ("float32", False, False),
        "torch's default (TF32 in convolutions)": ("float32", False, True),
        "tf32 (in products of matrices, too)": ("float32", True, True),
        "bfloat16": ("bfloat16", False, False),
    }
    report.table(
        f"TF32 on the bare cifar10 network, batch {batch}",
        *("computes in", "NFE/s", "times float32", "difference of outputs to float32"),
    )
    exact = network(here, "cifar10")
    reference, first = outputs(exact, here.device), 0.0
    for way, (dtype, matmul, convolution) in ways.items():
        with report.step(way), tf32(matmul, convolution):
            denoiser = exact if dtype == "float32" else recast(here, "cifar10", exact, dtype)
            per_s = bare_rate(here, denoiser, batch)[0] or float("nan")
            first = first or per_s
            apart = difference(outputs(denoiser, here.device), reference)
            report.row(way, per_s, per_s / first, apart)


@contextmanager
def contiguous_attention() -> Iterator[None]:
    """Give attention its queries, keys and values in the usual order in memory."""
    fused = F.scaled_dot_product_attention

    def ordered(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return fused(q.contiguous(), k.contiguous(), v.contiguous(), **more)

    F.scaled_dot_product_attention = ordered
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def attention(report: Report, here: Setting) -> None:
    """The layout of queries, keys and values: as it is, and contiguous."""
    report.table(
        "Attention of the bare networks in bfloat16: as it is, and with contiguous q, k, v",
        *("network", "order", "batch", "NFE/s", "contiguous", "times", "difference of outputs"),
        *("peak GiB", "contiguous GiB"),
    )
    dtype = "bfloat16" if here.device == "cuda" else "float32"
    for name, batches in (("imagenet64", here.batches[:3]), ("cifar10", (512,))):
        denoiser = network(here, name, dtype)
        for order in ("usual", "channels_last"):
            if order == "channels_last":
                keep_channels_last(denoiser)
            for batch in batches if order == "usual" else batches[-1:]:
                with report.step(f"attention {name} {order} {batch}"):
                    before, peak = bare_rate(here, denoiser, batch)
                    plain = outputs(denoiser, here.device)
                    with contiguous_attention():
                        after, less = bare_rate(here, denoiser, batch)
                        apart = difference(outputs(denoiser, here.device), plain)
                    gain = after / before if after and before else None
                    report.row(name, order, batch, before, after, gain, apart, peak, less)
    with report.step("kernels of the attention"):
        slowest_kernels(report, here, network(here, "imagenet64", dtype), here.batches[0])


def slowest_kernels(report: Report, here: Setting, denoiser: EdmDenoiser, batch: int) -> None:
    """Where the device's time goes in one evaluation, with attention as it is and contiguous."""
    report.table(
        f"The slowest kernels of an evaluation of imagenet64, batch {batch}",
        *("attention", "kernel", "times", "ms", "%"),
    )
    forward = Forward(denoiser, batch, here.device)
    for way in ("as it is", "contiguous"):
        with contiguous_attention() if way == "contiguous" else nullcontext():
            forward.evaluate()
            spans = device_spans(forward.evaluate, here.device)
        spent: Counter[str] = Counter()
        for begin, end, kernel in spans:
            spent[kernel] += end - begin
        total, times = sum(spent.values()), Counter(kernel for _, _, kernel in spans)
        report.row(way, "all", len(spans), total / 1e3, 100.0)
        for kernel, took in spent.most_common(5):
            name = kernel.replace("|", "/")[:70]
            report.row(way, name, times[kernel], took / 1e3, 100 * took / total)


class Limited:
    """A network that runs out of memory above some rows, for a CPU, where none should."""

    def __init__(self, denoiser: EdmDenoiser, rows: int) -> None:
        self._denoiser, self._rows = denoiser, rows
        self.image_shape, self.num_classes = denoiser.image_shape, denoiser.num_classes
        self.has_unconditional, self.s_range = denoiser.has_unconditional, denoiser.s_range

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """See ``Denoiser``."""
        if len(u) > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory: pretended, on a CPU")
        return self._denoiser(u, s, y)


def memory(report: Report, here: Setting) -> None:
    """What a batch that is far too large raises, and what a user would be told of it."""
    small = here.batches[0]
    denoiser: Any = network(here, "cifar10")
    if here.device == "cpu":
        denoiser = Limited(denoiser, small)
    base, image, ids = subject(here, "cifar10", denoiser)
    report.table("Out of memory, cifar10 in float32", "what", "batch", "raises", "s")
    item_error = load_error = None
    for batch in here.too_large:
        if report.has_time(8.0, f"an item of batch {batch}"):
            engine = Engine(replace(base, batch=batch), image, ids)
            item_error, took = raised(partial(engine.evaluate, 64))
            report.row("an item of the engine", batch, said(item_error), took)
    engine = Engine(replace(base, batch=small), image, ids)
    error, took = raised(partial(engine.evaluate, 8))
    report.row("an item afterwards, in the same process", small, said(error), took)
    if report.has_time(8.0, "the start of a worker"):
        untried = "model.check_denoising=false"  # random weights
        asked = [*RACE, f"numerics.batch={here.too_large[0]}", untried]
        config = load_config("digits", asked)
        load_error, took = raised(partial(WorkerSpec(config, {}, here.device, denoiser).load, "it"))
        report.row("the start of a worker", here.too_large[0], said(load_error), took)
    if here.device == "cuda":
        used, kept = torch.cuda.memory_allocated() / GIB, torch.cuda.memory_reserved() / GIB
        report.note(f"Afterwards {used:.2f} GiB are allocated, and torch keeps {kept:.2f} GiB.")
    if load_error is not None:
        report.note(start_message(load_error))
    if item_error is not None:
        report.note(item_message(item_error))


def own_network(report: Report, here: Setting) -> None:
    """Whether a network that the caller made on the CPU works in a worker of the device."""
    config = load_config("digits", [*RACE, "model.check_denoising=false"])
    given = random_network("digits", "cpu")
    spec = WorkerSpec(config, weights_of(config, given), here.device, given)
    error, _ = raised(lambda: spec.load("own").evaluate(Item(0, 0.25, ())))
    report.note(f"A worker of {here.device} with the caller's own network raises: {said(error)}")


def raised(work: Callable[[], object]) -> tuple[Exception | None, float]:
    """What some work raised, without the frames that hold its tensors, and its seconds."""
    began = time.perf_counter()
    try:
        work()
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return error.with_traceback(None), time.perf_counter() - began
    return None, time.perf_counter() - began


def start_message(error: Exception) -> str:
    """What a run says whose workers all fail to load with this error, and after how many."""
    starts, tries, reason = Starts(), 0, None
    while reason is None:
        tries, reason = tries + 1, starts.failed("node", error, others=0)
    return f"At the start, after {tries} workers: no worker can start on node ...: {reason}"


def item_message(error: Exception) -> str:
    """What a run says whose every item raises this error, and after how many tries and workers."""
    dispatch, tries, workers, last = Dispatch(), 0, 1, ""
    dispatch.add_worker("0")
    for number in range(3):
        dispatch.submit(Item(number, 0.25, ()))
    while not dispatch.hopeless and (call := dispatch.next_call(0.0)) is not None:
        worker, item = call
        tries += 1
        if dispatch.fail(worker, item.item_id, error, 0.0):
            dispatch.lose_worker(worker, str(error), blame=False)
            dispatch.add_worker(str(workers))
            workers += 1
        last = next((text for _, text in dispatch.take_given_up()), last)
    return (
        f"Of an item, after {tries} tries on {workers} workers: every item fails, on every try; "
        f"the last error: {last}"
    )


def calibration(report: Report, here: Setting) -> None:
    """What calibration chooses: for digits as configured, and where it may choose bfloat16."""
    digits_nfe = here.calibrated / 30  # about the preset's
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cifar10.safetensors"
        save_denoiser(file, network(here, "cifar10"), {})
        options = [
            "execution.calibrate=always",
            'execution.dtypes=["float32", "tf32", "bfloat16"]',
            "numerics.compile=false",
            f"execution.memory_limit={here.memory_gib}",
        ]
        report.table(
            f"Calibration; its options where asked: {', '.join(options)}",
            *("network", "asked", "NFE", "what it says", "GiB free to it, before and after", "s"),
        )
        calibrated(report, here, "digits", "as it is", [], digits_nfe)
        full = f"model.checkpoint={json.dumps(str(file))}"
        calibrated(report, here, "cifar10", "options", [full, *options], here.calibrated)
        if report.has_time(30.0, "calibration of digits with options"):
            calibrated(report, here, "digits", "options", options, digits_nfe)


def calibrated(
    report: Report, here: Setting, name: str, asked: str, overrides: Sequence[str], nfe: float
) -> None:
    """One row of the calibration's table."""
    with report.step(f"calibration of {name}"):
        free, began = memory_limit(load_config("digits", RACE), here.device), time.perf_counter()
        config = load_config("digits", [*RACE, *overrides])
        chosen = calibrate(config, weights_of(config), here.device, nfe=nfe)
        took = time.perf_counter() - began
        after = memory_limit(load_config("digits", RACE), here.device)
        report.row(name, asked, nfe, chosen.said, f"{free / GIB:.1f}, {after / GIB:.1f}", took)


def noise(report: Report, here: Setting) -> None:
    """Seconds of noise for one batch, at worst (every row has its own) and for K = 10 at first."""
    report.table(
        "Noise for one batch, by itself",
        *("noise", "addresses", "ms", "numbers/s", "device ms", "kernels", "batch of cifar10 ms"),
    )
    batch = here.batches[1]
    network_s = {}
    for dtype in ("float32", "bfloat16"):
        per_s = bare_rate(here, network(here, "cifar10", dtype), batch)[0]
        network_s[dtype] = batch / per_s if per_s else float("nan")
    beside = ", ".join(f"{dtype} {1e3 * s:.3g}" for dtype, s in network_s.items())
    for elements in (64, 3072, 12288):
        for addresses in (batch, max(1, batch // 10)):
            with report.step(f"noise {elements}"):
                source, row = NoiseSource(1, 0.25, elements), np.arange(addresses)
                draws = {
                    "internal": partial(source.normal, row, row % 2, row, row % 100),
                    "smoothing": partial(source.steps, row, row % 2, row),
                }
                for kind, draw in draws.items():
                    made = partial(draw, device=here.device)
                    made()
                    began, times = seconds(here.device), 20
                    for _ in range(times):
                        made()
                    took = (seconds(here.device) - began) / times
                    spans = device_spans(made, here.device)
                    report.row(
                        f"{kind}, {elements} numbers", addresses, 1e3 * took,
                        addresses * elements / took, covered(spans) / 1e3, len(spans),
                        beside if elements == 3072 else None,
                    )  # fmt: skip


class Captured(Forward):
    """The bare network as one captured graph of the device, replayed."""

    def __init__(self, denoiser: Denoiser, batch: int, device: str) -> None:
        super().__init__(denoiser, batch, device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                super().evaluate()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            super().evaluate()

    def evaluate(self) -> None:
        """Replay it."""
        self._graph.replay()


WAY_COLUMNS = (
    "network", "computes in", "batch", "way", "NFE/s", "times eager", "host ms", "first call s",
    "difference of outputs",
)  # fmt: skip


def timed_way(here: Setting, make: Callable[[], Forward]) -> tuple[float, float, float]:
    """Evaluations per second, the host's milliseconds for a batch, seconds of the first one."""
    seconds(here.device)
    began = time.perf_counter()
    forward = make()
    forward.evaluate()
    seconds(here.device)
    first_s = time.perf_counter() - began
    per_s = statistics.median(forward.rate(here.bare_s) for _ in range(3))
    return per_s, host_ms(forward, here.device), first_s


def captured(report: Report, here: Setting) -> None:
    """Networks eager and as a captured graph."""
    report.table("Captured", *WAY_COLUMNS)
    for name, dtype in (("digits", "float32"), ("cifar10", "bfloat16"), ("imagenet64", "bfloat16")):
        with report.step(f"{name} captured"):
            denoiser, batch = subject_network(here, name, dtype), here.batches[0]
            eager, queued, first_s = timed_way(here, partial(Forward, denoiser, batch, here.device))
            report.row(name, dtype, batch, "eager", eager, 1.0, queued, first_s, None)
            if here.device == "cuda":
                per_s, queued, first_s = timed_way(here, partial(Captured, denoiser, batch, "cuda"))
                ratio = per_s / eager
                report.row(name, dtype, batch, "captured", per_s, ratio, queued, first_s, None)


def compiled(report: Report, here: Setting, networks: Sequence[tuple[str, str, int]]) -> None:
    """Networks eager and compiled, and the engine with the compiled one."""
    report.table("Compiled", *WAY_COLUMNS)
    for name, dtype, batch in networks if here.device == "cuda" else networks[:1]:
        if not report.has_time(20.0, f"{name} compiled"):
            return
        with report.step(f"{name} compiled"):
            denoiser = subject_network(here, name, dtype)
            batch = min(batch, here.batches[-1])
            forward = partial(Forward, denoiser, batch, here.device)
            reference = outputs(denoiser, here.device, batch)
            eager, queued, first_s = timed_way(here, forward)
            report.row(name, dtype, batch, "eager", eager, 1.0, queued, first_s, None)
            compile_denoiser(denoiser)
            per_s, queued, first_s = timed_way(here, forward)
            apart = difference(outputs(denoiser, here.device, batch), reference)
            report.row(name, dtype, batch, "compiled", per_s, per_s / eager, queued, first_s, apart)
            cells = engine_cells(here, name, denoiser, batch, per_s)
            pairs = zip(SPEED_COLUMNS[-len(cells) :], cells, strict=True)
            report.note(f"The engine with it: {', '.join(f'{n} {shown(c)}' for n, c in pairs)}")


# --- one part after the other -------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Report, Setting], None], float]] = {
    "device": (about_device, 40.0),
    "votes": (votes, 80.0),
    "cifar10": (partial(speed, name="cifar10"), 115.0),
    "imagenet64": (partial(speed, name="imagenet64"), 90.0),
    "tf32": (tensor_float, 30.0),
    "attention": (attention, 65.0),
    "memory": (memory, 40.0),
    "noise": (noise, 25.0),
    "own-network": (own_network, 15.0),
    "calibration": (calibration, 110.0),
    "captured": (captured, 30.0),
    "compiled": (
        partial(compiled, networks=(("digits", "float32", 512), ("cifar10", "bfloat16", 256))),
        130.0,
    ),
    "digits": (partial(speed, name="digits"), 50.0),
    "compiled-imagenet64": (
        partial(compiled, networks=(("imagenet64", "bfloat16", 256),)),
        180.0,
    ),
}
"""By name, in their order: what is done, and the seconds that it may take at most."""


def guarded(name: str, here: Setting) -> Guarded:
    """A part that starts as a worker does."""
    do, limit_s = PARTS[name]

    def started(report: Report) -> None:
        if name != "votes":  # which forks before it touches the device
            set_up_torch()
        do(report, here)

    return Guarded(started, limit_s, torch.cuda.empty_cache if here.device == "cuda" else int)


def main(arguments: list[str]) -> int:
    """Measure, print, write; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="JSON file")
    parser.add_argument("--budget-s", type=float, default=500.0, help="seconds of all parts")
    parser.add_argument("--parts", default=",".join(PARTS), help="names, with commas")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)}: known are {', '.join(PARTS)}")
    here = replace(SMALL if options.small else FULL, device=options.device)
    facts = {"format": 1, "device": here.device, "small": options.small}
    parts = {name: guarded(name, here) for name in names}
    return 0 if carry_out(parts, options.budget_s, options.output, facts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
