"""The job that draws the pictures of README and docs: their numbers are those of the run."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from diffcert_ray import Classifier, certify, load_dataset
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.config.loading import load_config
from diffcert_ray.method.from_config import levels_and_sift
from diffcert_ray.method.grid import rounding_radius, slack

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "docs" / "pictures"
THEMES = ("light", "dark")
IMAGE = 125  # a 9 that gets votes for other classes too
SETTINGS = {
    "sift": {"rule": "paired-z", "z": 1.25, "first_level": 0.66},
    "noise_levels": {"levels": 30},
    "votes": {"sigmas": [0.25], "n0": 10, "n": 60, "unit": 20, "radii": [0.0]},
}


def texts(picture: Path) -> list[str]:
    """What stands in a picture: its letters are paths, each text beside them as a comment."""
    return re.findall(r"<!-- (.*?) -->", picture.read_text("utf-8"))


@pytest.fixture(scope="module")
def job():
    """The job, with its folder on the path as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "jobs")
        yield import_module("jobs.pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    dataset = {"name": "digits", "ids": [IMAGE]}
    folder = tmp_path_factory.mktemp("pictures") / "run"
    return certify(SETTINGS | {"dataset": dataset}, folder, local=True)


@pytest.fixture(scope="module")
def votes(job, run):
    return job.Votes.of(run, IMAGE)


def test_the_promise_is_the_stored_certificate(job, run, votes):
    promise = job.promise_of(run, votes)
    votes_for_it = int(promise.counts[promise.answer])
    off = {"slack": slack(0.25, 64), "taken_off": rounding_radius(64)}
    expected = executed_certificate(votes_for_it, 60, sigma=0.25, alpha=0.001, **off)
    assert promise.counts.sum() == 60
    assert (promise.p_low, promise.radius) == (expected.p_low, expected.radius)
    assert "at least 99.9 %" in promise.words


def test_the_noisy_copies_are_those_of_the_votes(job, run, votes):
    promise = job.promise_of(run, votes)
    image = load_dataset({"name": "digits", "ids": [IMAGE]}).image(IMAGE)
    classifier = Classifier("digits", sigma=0.25, settings=SETTINGS)
    answers = classifier.votes(image, IMAGE, "estimate", 0, 60)
    assert [copy.answer for copy in promise.copies] == [answers[c.vote] for c in promise.copies]
    assert len({copy.vote for copy in promise.copies}) == 4
    added = np.stack([copy.pixels - image[0] for copy in promise.copies])
    assert np.std(added) == pytest.approx(0.25, rel=0.15)  # 256 numbers: three standard errors


def test_the_race_spends_what_its_vote_spent(job, run, votes):
    stored = run.units().query("stream == 'estimate'")
    assert votes.evaluations.sum() == stored["nfe"].sum()
    for vote in range(8):
        race = job.race_of(votes, vote)
        assert (race.evaluations, race.answer) == (votes.evaluations[vote], votes.answers[vote])
        assert race.taken.sum() + 1 == race.evaluations
        assert race.full == race.terms.size + 1 == 301
        assert race.taken[race.answer] == race.taken.max()


def test_votes_that_the_run_did_not_count_are_refused(job, run, monkeypatch):
    monkeypatch.setattr(job, "stored_counts", lambda *_: np.zeros(10, np.int64))
    with pytest.raises(RuntimeError, match="give another --run"):
        job.Votes.of(run, IMAGE)


def test_pictures_show_the_runs_figures_and_are_the_same_each_time(job, run, votes, tmp_path):
    promise, race = job.promise_of(run, votes), job.race_of(votes, 0)
    shown = {
        "promise": (
            f"p_low = {round_radius_down(promise.p_low, 3)}",
            f"r = {round_radius_down(promise.radius, 3)}",
            *(f"{count}" for count in promise.counts),
            *(f"vote {copy.vote + 1}:" for copy in promise.copies),
        ),
        "idea": (f"The idea: {race.evaluations} evaluations in place of 301",),
    }
    for drawing in (job.promise_drawing(promise), job.idea_drawing(race)):
        first = [path.read_bytes() for path in job.save(drawing, tmp_path)]
        paths = job.save(drawing, tmp_path)
        assert [path.name for path in paths] == [f"{drawing.name}-{t}.svg" for t in THEMES]
        assert [path.read_bytes() for path in paths] == first
        assert first[0] != first[1]
        for path in paths:
            assert set(shown[drawing.name]) <= set(texts(path))
            assert drawing.alt in path.read_text("utf-8")
            assert path.stat().st_size < 300_000


def test_the_tower_names_the_contracts_layers_and_counts_modules(job, tmp_path, capsys):
    assert job.main(["--only", "packages", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("packages: ")
    package = ROOT / "diffcert_ray" / "certificates"
    said = texts(tmp_path / "packages-light.svg")
    at = said.index("certificates")
    assert " ".join(said[at + 1 : at + 3]) in (package / "__init__.py").read_text("utf-8")
    assert said[at + 3] == str(len(list(package.glob("*.py"))) - 1)


# --- the committed pictures


@pytest.mark.parametrize("theme", THEMES)
def test_committed_tower_has_the_packages_of_the_contract(theme):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["type"] == "layers")
    names = [name.strip() for layer in layers for name in layer.split("|")]
    said = texts(COMMITTED / f"packages-{theme}.svg")
    shown = [text for text in said if re.fullmatch("[a-z_]+", text) and text != "modules"]
    assert shown == names, "draw it again: python jobs/pictures.py --only packages"


@pytest.mark.parametrize("name", ["promise", "idea", "packages"])
def test_committed_pictures_say_the_same_in_both_themes(name):
    light, dark = (COMMITTED / f"{name}-{theme}.svg" for theme in THEMES)
    assert texts(light) == texts(dark)
    assert max(light.stat().st_size, dark.stat().st_size) < 300_000
    for path in (light, dark):
        assert not re.search(r"(href|src)=\"(?!#)", path.read_text("utf-8"))  # nothing from outside


def test_committed_idea_counts_the_full_vote_of_the_preset():
    _, sift = levels_and_sift(load_config("digits"), 0.25)
    full = 10 * len(sift.order) + 1
    assert texts(COMMITTED / "idea-light.svg")[0].endswith(f"in place of {full:,}")
