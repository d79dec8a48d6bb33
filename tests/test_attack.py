"""The attack on certificates, where the true boundary of the smoothed classifier is known."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffcert_ray.attack.image import INSIDE, Judgement, attack_image, perturbed
from diffcert_ray.attack.run import attack_run
from diffcert_ray.attack.search import Effort, Search, unit
from diffcert_ray.attack.smoothed import Smoothed
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import Dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.run.certify import certify
from diffcert_ray.run.stored import Run
from diffcert_ray.tools.exact_worlds import GaussianClasses
from tests.command_line import diffcert

SIGMA, SIDE, DISTANCE = 0.25, 4, 0.35
JUDGEMENT = Judgement(votes=400, alpha=1e-4, tries=4)
EFFORT = Effort(steps=5, copies=12, levels=4, candidates=4, screen=20)
TABLES = {
    "name": "mirrored",
    "method": {"name": "dc"},
    "noise_levels": {"levels": 4},
    "votes": {"sigmas": [SIGMA], "n0": 20, "n": 200, "unit": 100, "radii": [0.0]},
    "numerics": {"batch": 64},
}


def mirrored() -> tuple[GaussianClasses, Dataset, torch.Tensor]:
    """Two classes, an image of each so far (pixel units) from the boundary, and its normal.

    The reflection that swaps the classes leaves the law of all noise as it is, so that the boundary
    of the smoothed classifier is exactly the plane between the two means.
    """
    draw = np.random.default_rng(3).standard_normal((2, 1, SIDE, SIDE))
    axis, aside = torch.from_numpy(draw)
    axis = axis / axis.norm()
    aside = 0.3 * (aside - (aside * axis).sum() * axis)
    world = GaussianClasses(torch.stack([axis, -axis]), 0.1)
    u = torch.stack([side * 2 * DISTANCE * axis + aside for side in (1, -1)])
    pixels = ((u + 1) / 2).float().numpy()
    ids, labels = np.array([7, 9]), np.array([0, 1])
    return world, Dataset("mirrored", "test", ids, labels, pixels, ("a", "b"), "two"), axis


def attacked(radius: float):
    world, data, _ = mirrored()
    base = base_classifier(load_config(TABLES), world, SIGMA)
    return attack_image(base, data.image(7), (7, 0, radius), JUDGEMENT, effort=EFFORT)


def test_finds_the_change_just_beyond_the_true_boundary_and_never_inside():
    found = attacked(0.95 * DISTANCE)
    assert not found.broken
    assert found.changed_to == 1
    assert DISTANCE < found.changed_at < 1.5 * DISTANCE
    assert all(t.length > DISTANCE for t in found.tries if t.said == 1)
    assert [t.length < found.radius for t in found.tries[:3]] == [True, True, False]


def test_the_gradient_leads_straight_to_the_boundary():
    world, data, axis = mirrored()
    smoothed = Smoothed(base_classifier(load_config(TABLES), world, SIGMA), 5)
    x = torch.from_numpy(data.image(7))
    generator = torch.Generator().manual_seed(0)
    search = Search(smoothed, x, 0, EFFORT, generator, x.new_empty((0, *x.shape)))
    delta = search.by_gradient(0.5, 1)
    assert float(delta.norm()) <= 0.5 + 1e-6
    assert float((unit(delta) * -axis).sum()) > 0.9


def test_random_search_follows_the_better_of_the_directions_that_it_is_given():
    world, data, axis = mirrored()
    smoothed = Smoothed(base_classifier(load_config(TABLES), world, SIGMA), 5)
    x = torch.from_numpy(data.image(7))
    generator = torch.Generator().manual_seed(0)
    towards = torch.stack([axis, -axis]).float()
    search = Search(smoothed, x, 0, EFFORT, generator, towards)
    delta = search.at_random(0.5)
    assert float(delta.norm()) == pytest.approx(0.5, rel=1e-5)
    assert float((unit(delta) * -axis).sum()) > 0.6


def test_a_point_is_never_further_than_asked_after_rounding():
    image = np.full((3, 8, 8), 0.3, np.float32)
    delta = np.random.default_rng(0).standard_normal(image.shape)
    delta /= np.linalg.norm(delta)
    for radius in (1e-5, 1e-3, 1.0):
        point, length = perturbed(image, delta, INSIDE * radius)
        assert point.dtype == np.float32
        assert 0.9 * radius < length <= INSIDE * radius


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A run on both images; its certificates hold."""
    world, data, _ = mirrored()
    folder = tmp_path_factory.mktemp("attack") / "run"
    return certify(TABLES, folder, local=True, denoiser=world, dataset=data)


def attack_of(run, **options: object):
    world, data, _ = mirrored()
    facts = {"votes": 400, "effort": EFFORT, "multiples": (1.9, 2.5)} | options
    return attack_run(run, denoiser=world, dataset=data, **facts)


def with_radius(monkeypatch, image_id, factor):
    """Runs say so many times an image's radius: a lie in the folder would be refused before."""
    honest = Run.certificates

    def told(self):
        rows = honest(self)
        rows.loc[rows["image_id"] == image_id, "radius"] *= factor
        return rows

    monkeypatch.setattr(Run, "certificates", told)


def test_true_certificates_stand_and_a_doubled_radius_is_caught(run, monkeypatch):
    honest = attack_of(run)
    assert [one.image_id for one in honest.images] == [7, 9]
    assert not honest.broken
    assert all(one.share > 1 for one in honest.images)

    radius = run.certificates().set_index("image_id")["radius"][9]
    assert 2 * radius > DISTANCE > radius
    with_radius(monkeypatch, 9, 2)
    found = attack_of(run, seed=1)
    assert [one.image_id for one in found.broken] == [9]

    summary = json.loads(run.store.location.read("attack/seed-1.json"))
    assert summary["broken"] == 1
    kept = next(name for name in found.kept if name.endswith(".npz"))
    with np.load(f"{run.store.address}/{kept}") as details:
        point, tally = details["point"], (details["classes"], details["counts"])
        moved = np.linalg.norm(point.astype(np.float64) - mirrored()[1].image(9))
        assert DISTANCE < moved < float(details["radius"]) == 2 * radius
        # Anybody can cast these votes again.
        base = base_classifier(load_config(TABLES), mirrored()[0], SIGMA)
        votes = Smoothed(base, int(details["votes_seed"])).votes(
            {9: point}, "estimate", int(details["start"]), int(details["stop"])
        )
    assert dict(votes[0]) == dict(zip(*(t.tolist() for t in tally), strict=True))


def test_the_runs_own_noise_is_refused():
    base = base_classifier(load_config(TABLES), mirrored()[0], SIGMA)
    with pytest.raises(ValueError, match="no fresh ones"):
        Smoothed(base, base.seed)


def test_too_few_votes_to_decide_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="give more votes"):
        Judgement(votes=10, alpha=1e-4, tries=40)


def test_a_run_without_certificates_is_refused(tmp_path):
    world, data, _ = mirrored()
    empty = certify(
        TABLES, tmp_path / "r", local=True, denoiser=world, dataset=data, should_stop=lambda: True
    )
    with pytest.raises(ConfigError, match="run certify on it first"):
        attack_of(empty)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a run of two digits by the shipped classifier: a vote is one evaluation."""
    place = tmp_path_factory.mktemp("cli")
    few = ["dataset.first=2", "votes.n0=20", "votes.n=100", "votes.radii=[0.0]"]
    return place, certify("digits-classify", place / "run", overrides=few, local=True)


ATTACK = ("attack", "run", "--images", "2", "--votes", "100", "--steps", "4", "--candidates", "4")


def test_the_command_tells_where_the_class_changes_and_exits_with_0(classified):
    place, run = classified
    done = diffcert(*ATTACK, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "no certificate was broken" in done.stdout
    assert "2/2 certificates attacked, 0 s left; image" in done.stderr
    assert json.loads(run.store.location.read("attack/seed-0.json"))["attacked"] == 2


def test_a_broken_certificate_exits_with_1_and_names_the_files(classified, monkeypatch):
    place, run = classified
    row = run.store.certificates().to_pylist()[0]
    with_radius(monkeypatch, row["image_id"], 6)
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, [*ATTACK, "--seed", "1", "--json"])
    assert done.exit_code == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["broken"] == 1
    assert [one["image_id"] for one in found["images"] if one["broken"]] == [row["image_id"]]
    kept = [name for name in found["files"] if name.endswith(".npz")]
    assert kept
    assert all((place / "run" / name).is_file() for name in kept)


def test_a_run_without_votes_names_the_job_that_attacks_it(tmp_path):
    world, data, _ = mirrored()
    tables = {
        "method": {"name": "dc"},
        "noise_levels": {"weights": "linear-s", "levels": 2, "min": 0.5, "max": 2.0},
        "votes": {"bound": "local", "alpha": 0.05, "radii": [0.0]},
        "plain": {"draws": 4, "unit": 4},
    }
    run = certify(tables, tmp_path / "r", local=True, denoiser=world, dataset=data)
    with pytest.raises(ConfigError, match=r"jobs/attack_plain\.py"):
        attack_of(run)


def test_a_stopped_attack_has_stored_the_images_that_it_is_done_with(run):
    def stop(attacked, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_of(run, seed=5, on_image=stop)
    stored = json.loads(run.store.location.read("attack/seed-5.json"))
    assert (stored["attacked"], stored["chosen"]) == (1, 2)
    assert stored["images"][0]["image_id"] == 7
