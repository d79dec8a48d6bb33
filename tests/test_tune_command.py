"""``diffcert tune``, from images to a configuration that certify takes; stopped; on S3."""

import csv
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffcert_ray.checkpoints.head_file import load_heads, read_head_facts
from diffcert_ray.commands.exit_codes import BAD_USE, DONE, INCOMPLETE
from diffcert_ray.config.loading import load_config
from diffcert_ray.errors import ConfigError
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.tools.head_training import HeadRecipe
from diffcert_ray.tuning.heads import HeadStep, StoredHeads
from diffcert_ray.tuning.prepared import Asked, prepare
from diffcert_ray.tuning.stopping import StoppedError
from diffcert_ray.tuning.tune import Tuned, Watch, tune
from tests.command_line import Done, diffcert

SETTINGS = (
    "noise_levels.levels=12", "dataset.first=6", "votes.n0=5", "votes.n=40", "votes.radii=[0.0]",
    "numerics.batch=64", "sift.rule=paired-z", "sift.z=2.5",
)  # fmt: skip
CONFIG = load_config("digits", SETTINGS)
pytestmark = pytest.mark.timeout(400)  # many starts of many small runs, on a busy machine
ASKED = Asked(
    images=("split=train", "first=120"),
    target=0.1,  # the cheapest setting is taken
    votes=2,
    confirming=12,
    screening=8,
    recipe=HeadRecipe(copies=2, hidden=8),
    races=24,
)
CANDIDATES = "z = [1.0, 2.0]\nleast_p = 0.05\n"
WORDS = (
    "tune", "digits", "--images", "split=train", "--images", "first=120", "--target", "0.1",
    "--votes", "2", "--confirming", "12", "--screening", "8", "--copies", "2", "--local",
    "--candidates", "candidates.toml", *(word for s in SETTINGS for word in ("--set", s)),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Tuned:
    """A tuning that has ended, from candidates beside its folder."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "candidates.toml").write_text(CANDIDATES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return tune(CONFIG, "out", asked(), local=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A reader's folder with candidates; the current one."""
    (tmp_path / "candidates.toml").write_text(CANDIDATES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(**keys) -> Asked:
    return replace(ASKED, candidates="candidates.toml", **keys)


def counting(found: list[str]) -> Watch:
    """Notes settings whose votes were evaluated."""
    return Watch(on_progress=lambda progress: found.append(str(progress.nfe)))


@pytest.fixture(scope="module")
def by_command(tmp_path_factory) -> tuple[Path, Done]:
    """A reader's folder in which the command was run, and how that ended."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "candidates.toml").write_text(CANDIDATES)
    return folder, diffcert(*WORDS, "--certified", "4", cwd=folder)


def test_certify_takes_what_tune_writes_as_it_is(by_command):
    place, done = by_command
    assert done.returncode == DONE, done.stderr
    assert "in full (exact)" in done.stdout
    assert "4 certified images: agreement" in done.stdout
    tuned = place / "tuned" / "digits"
    assert {"pareto.png", "pareto.svg", "settings.csv", "settings.md"} < {
        p.name for p in tuned.iterdir()
    }
    tables = tomllib.loads((tuned / "tuned.toml").read_text("utf-8"))
    assert tables["sift"]["rule"] == "shortlist"
    assert tables["dataset"] == {"name": "digits", "split": "test", "first": 6}
    assert tables["votes"]["seed"] == CONFIG.votes.seed
    certified = diffcert("certify", str(tuned / "tuned.toml"), "--local", "--quiet", cwd=place)
    assert certified.returncode == DONE, certified.stderr
    seen = diffcert(
        "certify", str(tuned / "tuned.toml"), "--local", "--run", "seen",
        "--set", "dataset.split=train", "--set", "dataset.first=120", cwd=place,
    )  # fmt: skip
    assert seen.returncode == BAD_USE
    assert "was trained on 120 of the images to certify" in seen.stderr


def test_one_table_says_what_was_measured_and_nothing_is_cast_twice(place, whole):
    with open(f"{whole.folder}/settings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [(r["part"], r["rule"], r["images"], r["votes"]) for r in rows]
    assert parts[0] == ("confirming", "exact", "12", "24")
    assert parts.count(("screening", "shortlist", "8", "16")) == 2
    assert parts.count(("screening", "paired-z", "8", "16")) == 1  # the configuration's own
    assert [r["chosen"] for r in rows].count("yes") == 1
    before, evaluated = Path(whole.config).read_bytes(), []
    again = tune(CONFIG, whole.folder, asked(), local=True, watch=counting(evaluated))
    assert not evaluated
    assert again.results.choice.facts() == whole.results.choice.facts()
    assert Path(whole.config).read_bytes() == before


def test_the_head_has_seen_none_of_the_images_that_votes_are_cast_on(place, whole):
    prepared, folder = prepare(CONFIG, asked()), Path(whole.folder)
    voting = {prepared.shas[i][:16] for i in prepared.parts.voting.tolist()}
    working = read_head_facts(folder / "heads" / "joined.safetensors").image_shas
    final = read_head_facts(folder / "head.safetensors").image_shas
    assert not voting & {sha[:16] for sha in working}
    assert voting < {sha[:16] for sha in final}
    assert len(final) == len(prepared.shas)
    assert load_heads(str(folder / "head.safetensors"))[0.25].lag_prior.noise > 0


def test_a_stopped_tuning_is_continued_to_the_same_choice(place, whole):
    said = []

    def stop_at(words: str) -> Watch:
        return Watch(on_stage=said.append, should_stop=lambda: words in "".join(said))

    for words in ("training a head", "1/3"):
        said.clear()
        with pytest.raises(StoppedError):
            tune(CONFIG, "out", asked(), local=True, watch=stop_at(words))
        assert not (place / "out" / "tuned.toml").exists()
    continued, evaluated = [], []
    watch = Watch(on_stage=continued.append, on_progress=lambda p: evaluated.append(p.votes))
    found = tune(CONFIG, "out", asked(), local=True, watch=watch).results.choice
    assert found.facts()["nfe_per_vote"] == whole.results.choice.facts()["nfe_per_vote"]
    assert found.taken.agreement == whole.results.choice.taken.agreement
    assert 0 < evaluated[0] <= 16  # of the second setting: those of the first one are stored


def test_a_head_goes_on_from_its_last_state(place):
    location = open_location("out", None)
    stored = StoredHeads(location)
    stored.put_state(0.25, HeadStep(b"first", 5, 10, 0.5))
    stored.put_state(0.25, HeadStep(b"second", 10, 10, 0.4))
    assert stored.state(0.25) == b"second"
    assert stored.state(0.5) is None
    assert len(location.list("heads")) == 1
    stored.put_fitted(0.25, b"head")
    assert stored.fitted(0.25) == b"head"
    assert stored.state(0.25) is None


def test_another_target_takes_the_stored_votes_and_other_noise_is_refused(place, whole):
    evaluated: list[str] = []
    watch = counting(evaluated)
    strict = tune(CONFIG, whole.folder, asked(target=0.999), local=True, watch=watch)
    assert not strict.results.choice.reached
    assert not evaluated
    with pytest.raises(ConfigError, match=r"holds another tuning .*seed: there"):
        tune(CONFIG, whole.folder, asked(seed=77), local=True)


def test_what_cannot_be_shown_is_said_with_the_number_that_would_do(by_command):
    place, _ = by_command
    done = diffcert(*[w if w != "0.1" else "0.99" for w in WORDS], "--json", cwd=place)
    assert done.returncode == INCOMPLETE
    facts = json.loads(done.stdout)
    assert not facts["reached"]
    assert facts["lower_bound"] < 0.99
    assert "not shown" in done.stderr
    assert facts["images_needed"] is None or facts["images_needed"] > 12
    assert "does not show the 99 %" in (place / "tuned/digits/tuned.toml").read_text("utf-8")


def test_without_labels_the_rule_that_needs_none_is_tuned(place):
    (place / "candidates.toml").write_text("z = [1.0, 3.0]\n")
    tuned = tune(CONFIG, "out", asked(labels=False), local=True)
    assert tuned.results.choice.taken.setting.sift.rule == "paired-z"
    assert tuned.results.full[0].right is None
    assert not (place / "out" / "heads").exists()
    assert load_config(tuned.config).sift.rule == "paired-z"


def test_one_setting_is_chosen_for_all_sigmas(place):
    config = load_config(CONFIG, ["votes.sigmas=[0.25, 0.5]"])
    tuned = tune(config, "out", asked(), local=True)
    assert [m.sigma for m in tuned.results.choice.taken.measured] == [0.25, 0.5]
    assert load_config(tuned.config).votes.sigmas == (0.25, 0.5)
    assert sorted(load_heads("out/head.safetensors")) == [0.25, 0.5]


@pytest.mark.parametrize(
    ("changed", "keys", "said"),
    [
        ((), {"images": ()}, "needs images that are not certified"),
        ((), {"images": ("split=test", "first=6")}, "all 6 images to tune on are certified"),
        ((), {"seed": 1}, "run's own votes.seed"),
        ((), {"target": 1.0}, "must lie between 0 and 1"),
        ((), {"votes": 1}, "at least 2"),
        (("method.name=classify",), {}, "has no rule to tune"),
        ((), {"candidates": "missing.toml"}, "cannot be read as TOML"),
    ],
)
def test_wrong_use_is_said_before_anything_is_made(place, changed, keys, said):
    config = load_config(CONFIG, changed)
    with pytest.raises(ConfigError, match=said):
        tune(config, "out", replace(asked(), **keys), local=True)
    assert not (place / "out").exists()


@pytest.mark.slow
def test_votes_and_heads_on_ray_are_those_of_this_process(place, whole):
    on_ray = tune(load_config(CONFIG, ["execution.actors=2"]), "there", asked())
    for a, b in zip(whole.results.full, on_ray.results.full, strict=True):
        assert (a.nfe, a.right) == (b.nfe, b.right)
    here, there = (load_heads(f"{f}/head.safetensors") for f in (whole.folder, "there"))
    assert torch.equal(here[0.25].layers[-1].weight, there[0.25].layers[-1].weight)
    assert load_config(on_ray.config).sift.head == str(place / "there" / "head.safetensors")


@pytest.mark.slow
def test_a_tuning_may_lie_in_an_object_store(place, endpoint, address):
    (place / "s3.toml").write_text(f'endpoint_url = "{endpoint}"\n')
    words = (*WORDS, "--output", address, "--storage-options", "s3.toml")
    done = diffcert(*words, cwd=place)
    assert done.returncode == DONE, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "tuned/digits/tuned.toml"
    tables = tomllib.loads((place / "tuned/digits/tuned.toml").read_text("utf-8"))
    assert tables["sift"]["head"] == f"{address}/head.safetensors"
    certified = diffcert(
        "certify", "tuned/digits/tuned.toml", "--local", "--quiet",
        "--storage-options", "s3.toml", cwd=place,
    )  # fmt: skip
    assert certified.returncode == DONE, certified.stderr
