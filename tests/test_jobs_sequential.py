"""The job that replays sequential looks on a stored fixed-n run."""

import pytest

from diffcert_ray import certify
from diffcert_ray.certificates.radius import certificate
from jobs.sequential_replay import certified, main, replay, table

TINY = {
    "votes": {"sigmas": [0.25], "n0": 10, "n": 120, "unit": 20, "radii": [0.0, 0.25]},
    "sift": {"rule": "paired-z", "z": 0.5},
    "noise_levels": {"levels": 12},
    "dataset": {"name": "digits", "first": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return certify(TINY, tmp_path_factory.mktemp("replay") / "run", local=True)


def test_each_image_stops_at_the_first_look_that_certifies_the_radius(run):
    images = replay(run, (0.25,), futility=1e-300)
    assert {i.reason for i in images} <= {"certified", "futile", "cap"}
    units = run.units().query("stream == 'estimate'").sort_values("start")
    for image in images:
        rows = units[units["image_id"] == image.image_id]
        votes = [
            dict(zip(r.classes, r.counts, strict=True)).get(image.fixed.predicted, 0)
            for r in rows.itertuples()
        ]
        hits = [sum(votes[: i + 1]) for i in range(len(votes))]
        looks = [20 * (i + 1) for i in range(len(votes))]
        found = [
            certificate(hits[: i + 1], looks[: i + 1], sigma=0.25, bound="sequential").radius
            for i in range(len(looks))
        ]
        if image.reason == "certified":
            first = next(i for i, radius in enumerate(found) if radius >= 0.25)
            assert (image.sequential.n, image.sequential.n_a) == (looks[first], hits[first])
        assert image.fixed.n == 120
    assert any(i.reason == "certified" and i.sequential.n < 120 for i in images)


def test_the_table_counts_images_that_only_the_fixed_n_certifies(run):
    images = replay(run, (0.25,), futility=0.01)
    row = table(images, (0.25,)).iloc[1]
    fixed = {i.image_id for i in images if certified(i.fixed, i.label, 0.25)}
    stopped = {i.image_id for i in images if certified(i.sequential, i.label, 0.25)}
    assert row["images lost"] == len(fixed - stopped)
    assert row["sequential"] == f"{len(stopped) / 4:.1%}"


def test_the_job_prints_and_saves_its_picture(run, tmp_path, capsys):
    arguments = ["--run", run.address, "--radii", "0.25", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "times fewer" in capsys.readouterr().out
    assert (tmp_path / "out" / "votes.png").stat().st_size > 1000
