"""The engine against an accelerator that is simulated: how busy it is, and what the host takes.

    python jobs/simulated_accelerator.py
    python jobs/simulated_accelerator.py --classes 1000 --rates 1500 --item-s 10

Time is virtual, so that a loaded machine does not matter: the CPU time of this thread, plus the
waits that are skipped, plus a charge for every launch and copy that a GPU's driver would take. The
engine is the real one, on images of four pixels, which cost it its own work and next to no
arithmetic. The device has a timeline of its own: a batch of B rows takes B / rate seconds after the
batch before it. Losses are made up, so that votes drop classes as real ones do.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.config.loading import load_config
from diffcert_ray.engine import item_run
from diffcert_ray.engine.item_run import Chunk, ItemRun
from diffcert_ray.method.diffusion_base import DiffusionBase, base_classifier
from diffcert_ray.votes.units import Item, Part, Unit

LAUNCH_S = 4e-6  # of the host, for a kernel
CHUNK_LAUNCHES = 215  # around a chunk's forwards, counted by tests/test_pretended_runs.py
COPY_S = 20e-6  # of the host, for a copy through pinned memory
CHUNK_COPIES = 6
SIGMA, SHAPE, IMAGES = 0.25, (1, 1, 4), 16


@dataclass
class Host:
    """Virtual seconds of the host; ``cpu`` gives those that it really computed."""

    cpu: Callable[[], float] = time.thread_time
    skipped: float = 0.0  # waits, and what is charged
    charged: float = 0.0

    def now(self) -> float:
        """The moment that it has reached."""
        return self.cpu() + self.skipped

    def wait_until(self, moment: float) -> None:
        """Go on at a moment, or at once if it is past."""
        self.skipped += max(0.0, moment - self.now())

    def charge(self, seconds: float) -> None:
        """Spend seconds on what is not really done here."""
        self.skipped += seconds
        self.charged += seconds


@dataclass
class Device:
    """An accelerator that evaluates ``rate`` rows a second, one batch after the other.

    Args:
        host: launches the batches.
        rate: rows a second.
        launch_s: what launching a batch of the network takes the host, seconds.
    """

    host: Host
    rate: float
    launch_s: float = 0.0
    busy: float = 0.0
    free_at: float = 0.0

    def batch(self, rows: int) -> None:
        """Queue a batch: it begins when it is there and the one before it is done."""
        begins = max(self.free_at, self.host.now())
        self.host.charge(self.launch_s)
        took = rows / self.rate
        self.free_at = max(begins + took, self.host.now())  # not before its last kernel is there
        self.busy += took


@dataclass
class World:
    """Losses by vote, level and class: paired noise around gaps to the class that wins."""

    classes: int
    spread: float = 0.12
    gaps: np.ndarray = field(init=False)
    table: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.gaps = np.sort(rng.lognormal(0.0, 0.6, self.classes))
        self.gaps[:2] = 0.0, 0.15  # one class is near the winner
        self.table = rng.standard_normal(2**16)

    def losses(self, vote: np.ndarray, entry: np.ndarray, klass: np.ndarray) -> np.ndarray:
        """Of rows, float64 [n]."""
        entry, klass = np.maximum(entry, 0), np.maximum(klass, 0)
        noise = self.table[(vote * 7919 + entry * 104729 + klass * 1299709) % len(self.table)]
        return 1.0 + self.gaps[(klass + vote) % self.classes] + self.spread * noise


@dataclass
class Arriving:
    """Losses that the host has when the device has made them."""

    values: np.ndarray
    at: float
    host: Host

    def array(self) -> np.ndarray:
        """The values, once they have arrived."""
        self.host.wait_until(self.at)
        return self.values


class Network:
    """Gives its input back, and lets the device take its time for it."""

    has_unconditional, s_range, image_shape = True, (0.002, 80.0), SHAPE

    def __init__(self, classes: int, device: Device) -> None:
        self.num_classes, self.device = classes, device

    def __call__(self, u: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
        """The input."""
        self.device.batch(len(u))
        return u


class SimulatedRun(ItemRun):
    """An item whose losses come from a world, when the device is done with them."""

    def __init__(self, base: DiffusionBase, item: Item, world: World, device: Device) -> None:
        super().__init__(base, item, lambda image_id: np.zeros(SHAPE, np.float32))
        self.world, self.device = world, device

    def _queue_chunk(self) -> Chunk:
        self.device.host.charge(CHUNK_LAUNCHES * LAUNCH_S + CHUNK_COPIES * COPY_S)
        chunk = super()._queue_chunk()
        host, began = self.device.host, time.thread_time()
        lane, entry, klass = chunk.rows
        values = self.world.losses(self._lanes.vote[lane], entry, klass)
        host.skipped -= time.thread_time() - began  # the engine does not make losses up
        return replace(chunk, losses=Arriving(values, self.device.free_at, host))


@dataclass(frozen=True)
class Found:
    """What an item took; shares are of its virtual time."""

    votes: int
    nfe: int
    padded: int
    seconds: float
    busy: float
    useful: float
    host_us: float  # of the host for an evaluation, microseconds


def simulated(
    classes: int, rate: float, batch: int, item_s: float, *, launch_ms: float = 0.0
) -> Found:
    """One item of about ``item_s`` seconds, after one that tells what a vote takes."""
    host, world = Host(), World(classes)
    device = Device(host, rate, launch_ms / 1000)
    config = load_config({"votes": {"sigmas": [SIGMA]}, "numerics": {"batch": batch}})
    base = base_classifier(config, Network(classes, device), SIGMA)
    with patch.dict(item_run.AHEAD, {"cpu": item_run.AHEAD["cuda"]}):
        learned = _evaluated(base, IMAGES, 2**19, world, device)
        votes = max(1, round(rate * item_s / (learned[1] / learned[0])))
        cpu = host.cpu() + host.charged
        began, device.busy, device.free_at = host.now(), 0.0, host.now()
        cast, nfe, padded = _evaluated(base, votes, 0, world, device)
    seconds = host.now() - began
    return Found(
        votes=cast,
        nfe=nfe,
        padded=padded,
        seconds=seconds,
        busy=device.busy / seconds,
        useful=nfe / rate / seconds,
        host_us=1e6 * (host.cpu() + host.charged - cpu) / nfe,
    )


def _evaluated(
    base: DiffusionBase, votes: int, start: int, world: World, device: Device
) -> tuple[int, int, int]:
    """Votes, evaluations and rows that only filled batches."""
    parts = []
    for image in range(IMAGES):
        count = votes // IMAGES + (image < votes % IMAGES)
        if count:
            unit = Unit(SIGMA, image, "estimate", 0, 2**20)
            parts.append(Part(unit, start, start + count))
    run = SimulatedRun(base, Item(0, SIGMA, tuple(parts)), world, device)
    cast = run.finish()
    return len(cast.winner), int(cast.nfe.sum()), cast.padded


def main() -> None:
    """Print a line for each rate and batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rates", type=float, nargs="+", default=[1000.0, 10_000.0, 50_000.0])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--item-s", type=float, default=5.0)
    parser.add_argument("--launch-ms", type=float, default=0.0, help="of the host, for a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("NFE/s   batch  votes    NFE/vote  padded  item    busy     useful   host, per NFE")
    for rate in options.rates:
        for batch in options.batches:
            found = simulated(
                options.classes, rate, batch, options.item_s, launch_ms=options.launch_ms
            )
            print(
                f"{rate:<7g} {batch:<6} {found.votes:<8,} {found.nfe / found.votes:<9.1f} "
                f"{100 * found.padded / (found.nfe + found.padded):4.1f} %  {found.seconds:5.2f} s "
                f"{100 * found.busy:6.2f} % {100 * found.useful:6.2f} %  {found.host_us:.2f} us",
                flush=True,
            )


if __name__ == "__main__":
    main()
