"""What planning, merging and resuming take for 50,000 images x 10,000 votes x 3 sigmas.

    python jobs/scale.py [--images 50000] [--votes 10000] [--sigmas 0.25 0.5 1.0] [--items 60000]

Each phase runs in a process of its own and prints its wall time, its CPU time (which other work on
the machine changes little) and its largest resident memory:

1. plan: `certify` on an empty folder until its first item comes back.
2. merge: the driver with simulated workers, which answer at once: items per second through stages,
   merging and store, and the memory at ten moments. An item settles a few units of 100 votes.
3. resume: all units and certificates of the first half of the images are written in parts of 20,000
   rows and compacted; then `certify` continues until the first item comes back. All units,
   certificates and images are read and checked as in any resume.

The images are tiny (4 x 4), so that neither pixels nor network play a part.
"""

import argparse
import functools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffcert_ray import certify
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.method.grid import rounding_radius, slack
from diffcert_ray.pool.local import PoolState
from diffcert_ray.run.loop import Driver
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.vote_rows import certificate_row, unit_row
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.noted_kinds import note_kind
from diffcert_ray.storage.parts import encode, part_name
from diffcert_ray.storage.schemas import UNIT_SCHEMA, CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.tools.exact_worlds import gaussian_world
from diffcert_ray.votes.image import ImageVotes, Plan
from diffcert_ray.votes.stages import Stages, all_units
from diffcert_ray.votes.units import Item, Result, Tally

CLASSES, SIDE, N0, UNIT = 10, 4, 100, 100
ROWS_PER_PART = 20_000
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Size:
    """How large the run is."""

    images: int
    votes: int
    sigmas: tuple[float, ...]

    def config(self) -> Config:
        """The run's configuration: small items, so that the first one comes back at once."""
        return load_config(
            {
                "name": "scale",
                "noise_levels": {"levels": 4, "max": 4.0},
                "votes": {
                    "sigmas": list(self.sigmas), "n0": N0, "n": self.votes, "unit": UNIT,
                    "radii": [0.0],
                },
                "numerics": {"batch": 32},
                "execution": {"item_s": 0.01},
            }
        )  # fmt: skip

    def dataset(self) -> Dataset:
        """Images of noise."""
        rng = np.random.default_rng(0)
        pixels = np.float32(rng.integers(0, 256, (self.images, 1, SIDE, SIDE)) / 255)
        labels = rng.integers(0, CLASSES, self.images)
        names = tuple(map(str, range(CLASSES)))
        return Dataset("scale", "test", np.arange(self.images), labels, pixels, names, "noise")


def memory_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Watch:
    """Seconds since it was made, by the wall and by this process's own CPU time."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def wall_s(self) -> float:
        """Wall time."""
        return time.monotonic() - self._wall

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} s ({time.process_time() - self._cpu:.1f} s of CPU)"


def until_the_first_item(size: Size, folder: str) -> str:
    """Start or continue the run and stop it after its first item."""
    world = gaussian_world(CLASSES, SIDE * SIDE, 0.3, 0.25, 0, image_shape=(1, SIDE, SIDE))
    dataset, asked = size.dataset(), iter([False])
    before, watch = memory_mib(), Watch()
    run = certify(
        size.config(), folder, local=True, denoiser=world, dataset=dataset,
        should_stop=lambda: next(asked, True),
    )  # fmt: skip
    took = str(watch)
    assert run.outcome is not None
    return (
        f"{took} until {run.outcome.items} item was back; {memory_mib():,.0f} MiB at most "
        f"({before:,.0f} MiB before)"
    )


class Simulated:
    """A pool of many workers that answer at once: every vote is for class 1, ten evaluations."""

    def __init__(self, workers: int) -> None:
        self.workers, self.items = workers, 0
        self._waiting: deque[Item] = deque()

    def room(self) -> int:
        """Two calls in flight for each worker."""
        return 2 * self.workers - len(self._waiting)

    def submit(self, item: Item) -> None:
        """See ``Pool``."""
        self._waiting.append(item)

    def collect(self, timeout_s: float) -> list[Result]:
        """The answers of all that wait."""
        results = []
        while self._waiting:
            item = self._waiting.popleft()
            tallies = tuple(
                Tally(p.unit, p.target, {1: p.stop - p.start}, 10 * (p.stop - p.start))
                for p in item.parts
            )
            nfe = sum(tally.nfe for tally in tallies)
            results.append(Result(item.item_id, tallies, None, nfe, 0, 1.0, "w", "cpu", "kind"))
        self.items += len(results)
        return results

    def given_up(self) -> list[Item]:
        """Nothing."""
        return []

    def state(self) -> PoolState:
        """All live."""
        return PoolState(live=self.workers)

    def close(self) -> None:
        """Nothing."""


def merge(size: Size, items: int, folder: str) -> str:
    """Drive simulated workers until ``items`` items have been merged."""
    plan = plan_of(size.config(), size.dataset())
    assert isinstance(plan, Plan)
    store, pool = RunStore.create(folder, b""), Simulated(500)
    moments: list[str] = []
    stages = Stages(plan, lambda sigma, image_id: [], nfe_guess=10.0)
    with store.writer() as writer:

        def record(result: Result, settled: Sequence[Any]) -> None:
            writer.add_units(unit_row(s, "sha") for s in settled)

        def certify_image(image: ImageVotes) -> Any:
            verdict = image.verdict()
            assert verdict is not None
            return certificate_row(image, verdict, 1, method="scale", votes_id="")

        def stop() -> bool:
            if pool.items >= items * (len(moments) + 1) / 10:
                moments.append(f"{memory_mib():,.0f}")
            return pool.items >= items

        watch = Watch()
        Driver(
            stages, pool, writer, record, certify_image, item_s=1.0, should_stop=stop
        ).run()  # fmt: skip
        took, seconds = str(watch), watch.wall_s
    return (
        f"{pool.items:,} items ({stages.votes_done:,} votes) in {took}: "
        f"{pool.items / seconds:,.0f} items/s of {all_units(plan):,} units planned; MiB at tenths "
        f"of the way: {' '.join(moments)}"
    )


def write_half(size: Size, folder: str) -> str:
    """A store with all units of the first half of the images, compacted."""
    config, dataset = size.config(), size.dataset()
    world = gaussian_world(CLASSES, SIDE * SIDE, 0.3, 0.25, 0, image_shape=(1, SIDE, SIDE))
    # The run's own document, from a start that is stopped before its first item.
    run = certify(
        config, folder, local=True, denoiser=world, dataset=dataset, should_stop=lambda: True
    )
    watch, rows, seq = Watch(), 0, 0
    kind = "kind"
    note_kind(run.store.location, run.store.origin, "scale", kind, {})
    for sigma in size.sigmas:
        ids = np.arange(size.images // 2)
        per_image = 1 + size.votes // UNIT
        step = max(1, ROWS_PER_PART // per_image)
        for low in range(0, len(ids), step):
            table = units_of(sigma, ids[low : low + step], dataset, size.votes, kind)
            data = encode(table, run.store.origin)
            run.store.location.create(part_name("units", "scale", seq, data), data)
            rows, seq = rows + table.num_rows, seq + 1
        with run.store.writer() as writer:
            writer.add_certificates(
                certificate_of(config, sigma, int(i), int(dataset.labels[i]), run.document.votes_id)
                for i in ids
            )
    written, watch = str(watch), Watch()
    compact(run.store, delete_sources=True)
    return (
        f"{rows:,} rows in {seq:,} parts written in {written}, compacted in {watch}, "
        f"{memory_mib():,.0f} MiB at most"
    )


same_certificate = functools.cache(executed_certificate)


def certificate_of(
    config: Config, sigma: float, image_id: int, label: int, votes_id: str
) -> CertificateRow:
    """The row of an image whose votes are all in."""
    off = {"slack": slack(sigma, SIDE * SIDE), "taken_off": rounding_radius(SIDE * SIDE)}
    n_a, n = 9 * config.votes.n // 10, config.votes.n
    found = same_certificate(
        n_a, n, sigma=sigma, alpha=config.votes.alpha, bound=config.votes.bound, **off
    )
    return CertificateRow(
        sigma=sigma, image_id=image_id, label=label, predicted=3, correct=label == 3,
        abstained=False, radius=found.radius, p_low=found.p_low, **off, n_a=n_a, n=n,
        n0=N0, n0_used=N0, alpha=config.votes.alpha, bound=config.votes.bound,
        nfe=1000 * (1 + n // UNIT), seconds=0.5, method=config.method.name, votes_id=votes_id,
    )  # fmt: skip


def units_of(sigma: float, ids: np.ndarray, dataset: Dataset, votes: int, kind: str) -> pa.Table:
    """All units of some images: nine of ten votes for one class."""
    starts = np.concatenate([[0], np.arange(0, votes, UNIT)]).astype(np.int32)
    stops = np.concatenate([[N0], np.arange(UNIT, votes + 1, UNIT)]).astype(np.int32)
    each, count = len(starts), len(starts) * len(ids)
    offsets = pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32))
    size = np.tile(stops - starts, len(ids))
    tenth = size // 10
    streams = ["select"] + ["estimate"] * (each - 1)

    def same(value: str) -> pa.Array:
        return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))

    shas = pa.array([dataset.image_sha(int(i)) for i in ids])
    columns = {
        "sigma": np.full(count, sigma),
        "image_id": np.repeat(ids, each),
        "image_sha": shas.take(pa.array(np.repeat(np.arange(len(ids)), each))),
        "stream": pa.array(streams).take(pa.array(np.tile(np.arange(each), len(ids)))),
        "start": np.tile(starts, len(ids)),
        "stop": np.tile(stops, len(ids)),
        "target": np.full(count, -1, np.int32),
        "classes": pa.ListArray.from_arrays(offsets, pa.array(np.tile([1, 3], count), pa.int32())),
        "counts": pa.ListArray.from_arrays(
            offsets, pa.array(np.stack([tenth, size - tenth], 1).ravel(), pa.int32())
        ),
        "nfe": np.full(count, 1000),
        "seconds": np.full(count, 0.5),
        "device": same("cpu"),
        "numerics": same(kind),
        "worker": same("w"),
        "attempt": np.zeros(count, np.int32),
    }
    return pa.table(columns, schema=UNIT_SCHEMA)


def alone(call: Callable[..., str], *arguments: Any) -> str:
    """Call in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(call, arguments).get(LIMIT_S)


def main(arguments: list[str]) -> int:
    """Run the phases one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--votes", type=int, default=10_000, help="a multiple of 100")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--items", type=int, default=60_000, help="merged in phase 2")
    parser.add_argument("--folder", help="where the stores are made [default: a temporary one]")
    options = parser.parse_args(arguments)
    size = Size(options.images, options.votes, tuple(options.sigmas))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores = Path(folder)
        for name, call, extra in [
            ("plan", until_the_first_item, (str(stores / "empty"),)),
            ("merge", merge, (options.items, str(stores / "merged"))),
            ("write", write_half, (str(stores / "half"),)),
            ("resume", until_the_first_item, (str(stores / "half"),)),
        ]:
            print(f"{name + ':':8}{alone(call, size, *extra)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
