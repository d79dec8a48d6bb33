"""The job that compares ways to evaluate the bare network."""

import pytest

from jobs.network_ways import main, table


def test_every_way_is_compared_with_eager(capsys):
    assert main(["--batch", "2", "--rounds", "2", "--evaluations", "1", "--no-compile"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(line[0] for line in lines) == ["channels_last", "eager", "filled"]
    (eager,) = (line for line in lines if line[0] == "eager")
    assert eager[3] == "1.000"


def test_ratio_is_the_median_of_the_rounds_not_of_their_sums():
    rounds = [{"eager": e, "x": x} for e, x in ((1.0, 0.5), (3.0, 1.0), (100.0, 100.0))]
    (line,) = (t for t in table(rounds, 10).splitlines() if t.startswith("x"))
    assert "10 NFE/s   2.000 times eager" in line


def test_one_round_has_no_quartiles(capsys):
    with pytest.raises(SystemExit):
        main(["--rounds", "1"])
    assert "--rounds is 1" in capsys.readouterr().err
