"""What a run tells a monitoring system adds up to what it did and stored."""

from collections import Counter
from pathlib import Path

import pytest

from diffcert_ray import certify
from diffcert_ray.pool.local import PoolState
from diffcert_ray.run.loop import Progress
from diffcert_ray.run.monitoring import COUNTERS, GAUGES, Monitor
from tests.worlds import settings, small_world


class Recorded:
    """Keeps what a monitor records; unknown names and sums that do not grow are refused."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.gauges: dict[str, list[float]] = {name: [] for name in GAUGES}

    def add(self, name: str, amount: float) -> None:
        assert name in COUNTERS
        assert amount > 0  # Ray's counters refuse it
        self.sums[name] += amount

    def set(self, name: str, value: float) -> None:
        self.gauges[name].append(value)


def standing(**changes) -> Progress:
    facts = {
        "images_done": 1, "images_total": 9, "votes_done": 50, "votes_total": 900, "nfe": 700,
        "nfe_per_s": 10.0, "seconds_left": None, "votes": 40, "items": 2, "item_seconds": 1.5,
        "bytes_written": 300, "pool": PoolState(live=3, pending=1, requeued=4, draining=2),
    }  # fmt: skip
    return Progress(**(facts | changes))


def test_counters_of_a_run_add_up_to_its_outcome_and_to_what_lies_in_its_folder(tmp_path: Path):
    world, dataset = small_world()
    recorded = Recorded()
    run = certify(
        settings(execution={"item_s": 0.05, "flush_s": 0.01}),
        tmp_path / "r", local=True, denoiser=world, dataset=dataset,
        on_progress=Monitor(recorded),
    )  # fmt: skip
    stored = sum(p.stat().st_size for p in (tmp_path / "r").rglob("part-*.parquet"))
    assert recorded.sums["diffcert_votes"] == run.outcome.votes > 0
    assert recorded.sums["diffcert_nfe"] == run.outcome.nfe > 0
    assert recorded.sums["diffcert_items"] == run.outcome.items > 1
    assert recorded.sums["diffcert_item_seconds"] == pytest.approx(run.outcome.item_seconds)
    assert recorded.sums["diffcert_bytes_written"] == stored > 0
    assert recorded.gauges["diffcert_images_done"][-1] == len(run.certificates())
    assert recorded.gauges["diffcert_actors_live"][-1] == 1


def test_totals_are_recorded_as_growth_and_nothing_twice():
    recorded = Recorded()
    monitor = Monitor(recorded)
    monitor(standing())
    monitor(standing())
    monitor(standing(nfe=900, pool=PoolState(live=2, requeued=5)))
    assert recorded.sums == {
        "diffcert_votes": 40, "diffcert_nfe": 900, "diffcert_items": 2,
        "diffcert_item_seconds": 1.5, "diffcert_items_requeued": 5, "diffcert_bytes_written": 300,
    }  # fmt: skip
    assert recorded.gauges["diffcert_actors_live"] == [3, 3, 2]
    assert recorded.gauges["diffcert_actors_pending"] == [1, 1, 0]
    assert recorded.gauges["diffcert_nodes_draining"] == [2, 2, 0]


def test_every_metric_is_recorded():
    recorded = Recorded()
    Monitor(recorded)(standing())
    assert set(recorded.sums) == set(COUNTERS)
    assert all(recorded.gauges.values())
