"""The simulated accelerator: its arithmetic, and that the engine keeps it busy."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import simulated_accelerator as job
from simulated_accelerator import Arriving, Device, Host, World, simulated


def still() -> Host:
    """A host that computes in no time, so that only charges and waits count."""
    return Host(cpu=lambda: 0.0)


def test_batches_follow_each_other_while_the_host_goes_on():
    host = still()
    device = Device(host, rate=1000.0)
    for _ in range(3):
        device.batch(500)
    assert (host.now(), device.free_at, device.busy) == (0.0, 1.5, 1.5)


def test_a_device_that_has_nothing_to_do_is_not_busy():
    host = still()
    device = Device(host, rate=1000.0)
    device.batch(500)
    host.wait_until(2.0)
    device.batch(500)
    assert (device.free_at, device.busy) == (2.5, 1.0)


def test_losses_arrive_when_the_device_is_done_and_no_later():
    host = still()
    device = Device(host, rate=1000.0)
    device.batch(500)
    losses = Arriving(np.zeros(1), device.free_at, host)
    losses.array()
    assert host.now() == 0.5
    host.charge(1.0)
    losses.array()  # they have been there for a second
    assert host.now() == 1.5


def test_launches_take_the_host_and_a_batch_is_not_done_before_its_last_one():
    host = still()
    device = Device(host, rate=1e6, launch_s=0.01)
    for _ in range(2):
        device.batch(100)
    assert host.now() == host.charged == pytest.approx(0.02)
    assert device.free_at == pytest.approx(0.02)
    assert device.busy == pytest.approx(2e-4)


def test_made_up_losses_have_a_winner_that_changes_with_the_vote():
    world = World(10, spread=0.0)
    votes, classes = (a.reshape(-1) for a in np.meshgrid(np.arange(5), np.arange(10)))
    losses = world.losses(votes, np.zeros_like(votes), classes).reshape(10, 5)
    assert losses.argmin(axis=0).tolist() == [0, 9, 8, 7, 6]


def test_the_engine_keeps_a_simulated_accelerator_busy_with_useful_rows():
    found = simulated(10, 10_000.0, 512, 5.0)
    assert found.busy >= 0.97
    assert found.useful >= 0.97
    assert found.useful <= found.busy <= 1.0
    # Rows of votes and rows that only fill batches are all that it evaluates.
    rows = found.nfe + found.padded
    assert found.busy * found.seconds * 10_000.0 == pytest.approx(rows, rel=1e-6)


def test_a_slow_host_leaves_the_accelerator_idle(monkeypatch):
    monkeypatch.setattr(job, "LAUNCH_S", 1e-3)
    assert simulated(10, 50_000.0, 512, 1.0).busy < 0.9


def test_the_charge_of_a_chunk_is_what_the_pretended_gpu_counts():
    from tests.test_pretended_runs import CHUNK_LAUNCHES

    assert 0.9 * CHUNK_LAUNCHES <= job.CHUNK_LAUNCHES <= CHUNK_LAUNCHES
