"""The jobs that measure scale and overhead: a tiny run of each part, and their arithmetic."""

import pytest

from diffcert_ray import open_run
from diffcert_ray.run.certifiable import check_certifiable
from jobs.noise_cost import main as noise_cost
from jobs.overhead import Finished, Watched, overhead, rows_per_s
from jobs.scale import Simulated, Size, merge, until_the_first_item, write_half

SIZE = Size(images=40, votes=300, sigmas=(0.25, 0.5))


def finished(*ends: float, seconds: float = 4.0, rows: int = 100) -> list[Finished]:
    return [Finished(end, seconds, rows, 10) for end in ends]


def test_overhead_is_wall_time_over_compute_time_between_the_first_end_and_the_last():
    assert overhead(finished(0.0, 4.1, 8.2, 12.3), skip=0) == pytest.approx(0.025)
    learning = finished(-50.0, -20.0)  # items whose size was being learned do not count
    assert overhead([*learning, *finished(0.0, 4.1, 8.2, 12.3)], skip=2) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="give more --items"):
        overhead(finished(0.0, 4.0), skip=0)


def test_rate_adds_up_workers_over_their_own_spans():
    both = {"a": finished(0.0, 4.0, 8.0), "b": finished(100.0, 105.0, rows=50)}
    assert rows_per_s(both) == pytest.approx(200 / 8 + 50 / 5)
    with pytest.raises(ValueError, match="1 items, too few"):
        rows_per_s({"a": finished(1.0)})


def test_noise_cost_is_said_of_both_networks_and_both_ways(capsys):
    assert noise_cost(["--votes", "2", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert [said.count(what) for what in ("engine:", "float32:", "on the grid:")] == [2, 2, 2]


def test_watched_pool_notes_what_each_worker_finished():
    pool = Watched(Simulated(1))
    assert pool.items == 0
    assert pool.collect(0.0) == []
    assert pool.room() == 2


def test_run_is_planned_merged_and_resumed_at_a_small_size(tmp_path):
    assert "until 1 item was back" in until_the_first_item(SIZE, str(tmp_path / "empty"))
    said = merge(SIZE, 20, str(tmp_path / "merged"))
    assert "of 320 units planned" in said
    half = str(tmp_path / "half")
    assert write_half(SIZE, half).startswith("160 rows in ")
    run = open_run(half)
    check_certifiable(run, run.certificates())  # else it would be made again, not continued
    assert "until 1 item was back" in until_the_first_item(SIZE, half)
