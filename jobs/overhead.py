"""What Ray, the driver and the store cost: one actor against its own compute, two against two bare.

    python jobs/overhead.py [--config digits] [--items 40] [--item-s 5] [--bare-s 120] [--rounds 2]

1. A run on one actor, driver and store as in `diffcert certify`: wall time from the first result to
   the last over the sum of the compute times of the items in between. At most 3 % more is asked.
2. Two actors of one thread each, then two bare processes without Ray that evaluate the same kind of
   items, `--rounds` times in turn, so that a machine that slows down does so for both. Compared are
   rows per second through the network, of each worker from its first item's end to its last's; at
   least 95 % are asked. (One process alone is faster: cores share caches and memory.)

Run it on a quiet machine: with other work on its cores the second figure says little. Ray's workers
run at normal priority here, as the bare processes do. The times of starting workers are not in.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ["OMP_NUM_THREADS"] = "1"  # of the bare processes; Ray sets it for its own

import numpy as np

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.pool.local import Pool, PoolState
from diffcert_ray.pool.on_ray.actors import RayPool
from diffcert_ray.run.loop import Driver
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.vote_rows import certificate_row, unit_row
from diffcert_ray.storage.store import RunStore
from diffcert_ray.votes.image import Plan
from diffcert_ray.votes.stages import Stages
from diffcert_ray.votes.units import Item, Part, Result, Unit

OVERHEAD_LIMIT, SCALING_LIMIT = 0.03, 0.95
START_LIMIT_S = 300.0


@dataclass(frozen=True)
class Finished:
    """An item that came back: when (monotonic seconds), and what it was."""

    at: float
    seconds: float
    rows: int
    votes: int


@dataclass
class Watched:
    """A pool that notes when each result came, by worker."""

    pool: Pool
    finished: dict[str, list[Finished]] = field(default_factory=lambda: defaultdict(list))

    @property
    def items(self) -> int:
        """Results so far."""
        return sum(map(len, self.finished.values()))

    def room(self) -> int:
        """See ``Pool``."""
        return self.pool.room()

    def submit(self, item: Item) -> None:
        """See ``Pool``."""
        self.pool.submit(item)

    def collect(self, timeout_s: float) -> list[Any]:
        """See ``Pool``."""
        results: list[Result] = self.pool.collect(timeout_s)
        for r in results:
            votes = sum(tally.votes for tally in r.tallies)
            row = Finished(time.monotonic(), r.seconds, r.nfe + r.padded, votes)
            self.finished[r.worker].append(row)
        return results

    def given_up(self) -> list[Any]:
        """See ``Pool``."""
        return self.pool.given_up()

    def state(self) -> PoolState:
        """See ``Pool``."""
        return self.pool.state()

    def close(self) -> None:
        """See ``Pool``."""
        self.pool.close()


def drive(spec: WorkerSpec, plan: Plan, actors: int, items: int, item_s: float) -> Watched:
    """A run on Ray until ``items`` items have come back; the store is a folder of this machine."""
    dataset = load_dataset(spec.config.dataset)
    labels = dict(zip(dataset.ids.tolist(), dataset.labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.create(f"{folder}/run", b"")
        pool = Watched(RayPool(spec, actors=actors))
        with store.writer() as writer:

            def record(result: Result, settled: Sequence[Any]) -> None:
                writer.add_units(unit_row(s, "") for s in settled)

            def certify(image: Any) -> Any:
                label = labels[image.image_id]
                verdict = image.verdict()
                return certificate_row(image, verdict, label, method="overhead", votes_id="")

            stages = Stages(plan, lambda sigma, image_id: [])
            try:
                Driver(
                    stages, pool, writer, record, certify, item_s=item_s,
                    should_stop=lambda: pool.items >= items,
                ).run()  # fmt: skip
            finally:
                pool.close()
    return pool


def bare_worker(spec: WorkerSpec, number: int, votes: int, ready: Any, limit_s: float) -> Any:
    """One process without Ray: items of equal size one after the other, when all have loaded."""
    worker = spec.load(f"bare-{number}")
    ids = load_dataset(spec.config.dataset).ids
    sigma = spec.config.votes.sigmas[0]
    finished: list[Finished] = []
    ready.wait(START_LIMIT_S)
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        turn = len(finished)
        unit = Unit(sigma, int(ids[turn % len(ids)]), "estimate", 0, votes)
        result = worker.evaluate(Item(turn, sigma, (Part(unit, 0, votes),)))
        row = Finished(time.monotonic(), result.seconds, result.nfe + result.padded, votes)
        finished.append(row)
    return finished


def bare(spec: WorkerSpec, processes: int, votes: int, limit_s: float) -> dict[str, list[Finished]]:
    """What each of some bare processes did meanwhile."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        ready = manager.Barrier(processes)
        calls = [(spec, number, votes, ready, limit_s) for number in range(processes)]
        found = pool.starmap_async(bare_worker, calls, chunksize=1)
        lists = found.get(2 * START_LIMIT_S + 2 * limit_s)
    return {f"bare-{n}": finished for n, finished in enumerate(lists)}


def rows_per_s(finished: dict[str, list[Finished]]) -> float:
    """Of all workers together, each from its first item's end to its last's."""
    rate = 0.0
    for items in finished.values():
        if len(items) < 2:
            raise ValueError(
                f"a worker finished {len(items)} items, too few for a rate: give more --items and "
                "--bare-s, or a smaller --item-s"
            )
        rate += sum(i.rows for i in items[1:]) / (items[-1].at - items[0].at)
    return rate


def overhead(finished: list[Finished], skip: int) -> float:
    """Wall time over compute time, less one, after the first ``skip`` items (sizes are learned)."""
    rest = finished[skip:]
    if len(rest) < 3:
        raise ValueError(f"{len(finished)} items are too few: give more --items")
    return (rest[-1].at - rest[0].at) / sum(i.seconds for i in rest[1:]) - 1


def endless(config: Config) -> tuple[WorkerSpec, Plan]:
    """The configuration's work, with so many votes that it does not end here."""
    dataset = load_dataset(config.dataset)
    plan = plan_of(config, dataset)
    if not isinstance(plan, Plan):
        raise ValueError("give a configuration that certifies with votes")
    return WorkerSpec(config, weights_of(config)), plan


def main(arguments: list[str]) -> int:
    """Measure, print, and fail where a limit is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--items", type=int, default=40, help="of the run on one actor")
    parser.add_argument("--item-s", type=float, default=5.0)
    parser.add_argument("--bare-s", type=float, default=120.0, help="seconds of each two-way round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    spec, plan = endless(load_config(options.config, ["votes.n=1000000", *options.overrides]))
    learning = 6  # items grow fourfold each until they take --item-s
    one = drive(spec, plan, 1, options.items + learning, options.item_s)
    [finished] = one.finished.values()
    extra = overhead(finished, learning)
    typical = finished[learning:]
    print(
        f"one actor: {len(typical)} items of {np.median([i.seconds for i in typical]):.2f} s "
        f"(median), wall time {100 * extra:+.2f} % over the sum of their compute times "
        f"(limit {100 * OVERHEAD_LIMIT:g} %)",
        flush=True,
    )
    votes = int(np.median([i.votes for i in typical]))
    shares = []
    for turn in range(options.rounds):
        items = learning + max(6, round(2 * options.bare_s / options.item_s))
        on_ray = drive(spec, plan, 2, items, options.item_s).finished
        on_ray = {worker: done[learning // 2 :] for worker, done in on_ray.items()}
        without = bare(spec, 2, votes, options.bare_s)
        rates = rows_per_s(on_ray), rows_per_s(without)
        shares.append(rates[0] / rates[1])
        print(
            f"round {turn + 1}: two actors {rates[0]:,.0f} rows/s, two bare processes "
            f"{rates[1]:,.0f} rows/s: {100 * shares[-1]:.1f} %",
            flush=True,
        )
    share = float(np.mean(shares)) if shares else float("nan")
    print(f"two actors reach {100 * share:.1f} % of two bare processes (limit 95 %)")
    kept = extra <= OVERHEAD_LIMIT and not share < SCALING_LIMIT
    print("both limits are kept" if kept else "a limit is broken")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
