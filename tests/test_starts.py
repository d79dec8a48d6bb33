"""What failed starts of workers mean, scripted."""

import pytest

from diffcert_ray.pool.starts import Starts, fitting, missing


def test_one_crash_is_forgiven_and_five_in_a_row_are_not() -> None:
    starts = Starts()
    for _ in range(4):
        assert starts.failed("n0", RuntimeError("crash"), others=0) is None
    starts.succeeded("n0")
    for number in range(4):
        assert starts.failed("n0", RuntimeError(f"crash {number}"), others=0) is None
    reason = starts.failed("n0", RuntimeError("out of disk"), others=0)
    assert reason == "5 workers in a row did not start: out of disk"


@pytest.mark.parametrize(
    "error", [ValueError("no file weights.st"), FileNotFoundError("no file weights.st")]
)
def test_fault_of_the_configuration_stops_at_the_first_worker(error: Exception) -> None:
    assert Starts().failed("n0", error, others=0) == "no file weights.st"


def test_node_without_a_file_is_left_out_while_others_load() -> None:
    starts = Starts()
    assert starts.failed("n1", ValueError("no file weights.st"), others=1) is None
    assert starts.left_out == {"n1": "no file weights.st"}


def test_last_node_to_lack_the_file_stops_the_pool() -> None:
    starts = Starts()
    assert starts.failed("n0", ValueError("no file"), others=1) is None
    assert starts.failed("n1", ValueError("no file"), others=0) == "no file"


def test_node_on_which_workers_crash_again_and_again_is_left_out_while_others_work() -> None:
    starts = Starts()
    for number in range(3):
        assert starts.left_out == {}
        assert starts.failed("bad", RuntimeError(f"crash {number}"), others=7) is None
    assert starts.left_out == {"bad": "crash 2"}


def test_failures_of_a_large_cluster_do_not_stop_it_while_some_load() -> None:
    starts = Starts()
    reasons = [starts.failed(f"n{i}", RuntimeError("crash"), others=3) for i in range(50)]
    assert reasons == [None] * 50
    assert starts.left_out == {}


@pytest.mark.parametrize(
    ("there", "asked", "count"),
    [
        ({"CPU": 4.0}, {"CPU": 1.0}, 4),
        ({"CPU": 64.0, "GPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}, 8),
        ({"CPU": 64.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.1}, 10),
        ({"CPU": 64.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.3}, 3),
        ({"CPU": 64.0, "GPU": 8.0}, {"CPU": 1.0, "GPU": 0.3}, 24),  # each in one GPU: 8 times 3
        ({"CPU": 640.0, "GPU": 3.0}, {"CPU": 1.0, "GPU": 1 / 49}, 147),  # 1 / (1 / 49) < 49
        ({"CPU": 64.0, "GPU": 7.0}, {"CPU": 1.0, "GPU": 2.0}, 3),
        ({"CPU": 64.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
        ({"GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, 0),
    ],
)
def test_workers_that_fit_on_a_node(
    there: dict[str, float], asked: dict[str, float], count: int
) -> None:
    assert fitting(there, asked) == count


def test_what_is_missing_says_what_is_asked_and_what_is_there() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert missing(3, {"CPU": 1.0, "GPU": 0.5}, nodes, {"CPU": 5.0}) == (
        "3 workers wait for a place: each asks for 1 CPU and 0.5 GPU; the cluster has "
        "10 CPU (5 free) and 2 GPU (0 free) on 2 nodes"
    )
