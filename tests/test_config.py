"""The configuration: what it accepts, what it refuses and how, and what its hashes depend on."""

from pathlib import Path

import pytest

from diffcert_ray.config.identity import canonical_hash, plan_identity, votes_identity
from diffcert_ray.config.loading import load_config, presets
from diffcert_ray.config.tables import Config
from diffcert_ray.errors import ConfigError

WEIGHTS = {"denoiser": "ab" * 32}


def votes_id(config: Config, weights: dict = WEIGHTS) -> str:
    return canonical_hash(votes_identity(config, weights))


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_named_after_its_file(name):
    assert load_config(name).name == name


def test_a_file_a_preset_and_a_mapping_give_the_same_configuration(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('name = "a"\n[votes]\nsigmas = [0.5]\nn = 300\nradii = [0.0]\n')
    mapping = {"name": "a", "votes": {"sigmas": [0.5], "n": 300, "radii": [0.0]}}
    assert load_config(file) == load_config(mapping) == load_config(load_config(mapping))


def test_overrides_are_toml_values_and_bare_words_are_strings():
    config = load_config(
        {}, ["votes.n=2000", "votes.sigmas=[0.25, 0.5]", "sift.rule=full", "name=b"]
    )
    assert (config.votes.n, config.votes.sigmas) == (2000, (0.25, 0.5))
    assert (config.sift.rule, config.name) == ("full", "b")


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({"vote": {}}, ["'vote'", "did you mean 'votes'"]),
        ({"votes": {"sigma": 1}}, ["'votes.sigma'", "did you mean 'sigmas'"]),
        ({"votes": {"alpha": 1.5}}, ["votes.alpha is 1.5", "less than 1"]),
        ({"votes": {"n": 0}}, ["votes.n is 0", "greater than or equal to 1"]),
        ({"votes": {"sigmas": [1.5]}}, ["1.5", "noise_levels.max = 3.0", "lower sigma"]),
        ({"votes": {"sigmas": [0.2, 0.2]}}, ["names a sigma twice"]),
        ({"votes": {"bound": "two-class", "estimate": "target"}}, ["two-class", "complete"]),
        ({"votes": {"bound": "sequential", "n": 150}}, ["150", "votes.unit = 100"]),
        ({"votes": {"select_unit": 6}}, ["votes.select_unit is 6", "less than or equal to 5"]),
        ({"votes": {"select_unit": 2}}, ["without votes.select", "set votes.select"]),
        ({"votes": {"select": 20, "n0": 10}}, ["votes.select = 20", "n0 = 10", "lower"]),
        ({"dataset": {"first": 3, "every": 2}}, ["dataset.first and dataset.every", "keep one"]),
        ({"sift": {"rule": "ful"}}, ["sift.rule is 'ful'", "'full'"]),
        ({"name": "../x"}, ["name is '../x'"]),
    ],
)
def test_a_bad_setting_is_refused_with_its_value_and_the_remedy(tables, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(tables)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_source_names_the_nearest_preset():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_config("digitz")


def test_a_broken_file_is_reported_as_such(tmp_path):
    (tmp_path / "x.toml").write_text("votes = [")
    with pytest.raises(ConfigError, match=r"x\.toml is not valid TOML"):
        load_config(tmp_path / "x.toml")


@pytest.mark.parametrize("override", ["votes.n", "=3", "votes..n=3"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(ConfigError, match=r"table\.key=value"):
        load_config({}, [override])


@pytest.mark.parametrize(
    "override",
    [
        "votes.seed=1",
        "votes.unit=50",
        "votes.estimate=target",
        "method.name=epndc",
        "noise_levels.levels=100",
        "noise_levels.grid=linear",
        "sift.z=1.5",
        "sift.rule=full",
        "votes.select=5",
        "numerics.batch=64",
        "numerics.dtype=bfloat16",
        "numerics.channels_last=true",
    ],
)
def test_votes_id_changes_with_everything_that_a_vote_depends_on(override):
    assert votes_id(load_config({}, [override])) != votes_id(load_config({}))


@pytest.mark.parametrize(
    "override",
    [
        "votes.n=2000",
        "votes.n0=10",
        "votes.select_unit=5",  # its default, and select is not set
        "votes.sigmas=[0.5]",
        "votes.alpha=0.01",
        "dataset.first=3",
        "execution.item_s=1.0",
        "execution.stages=split",
        "execution.actors=7",
        "sift.keep=3",  # of a rule that is not used
        "name=other",
    ],
)
def test_votes_id_ignores_what_a_vote_does_not_depend_on(override):
    assert votes_id(load_config({}, [override])) == votes_id(load_config({}))


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"votes": {"radii": []}}, r"votes\.radii.*at least 1 item"),
        ({"votes": {"radii": [float("inf")]}}, r"votes\.radii.*finite"),
        ({"noise_levels": {"max": float("inf")}}, r"noise_levels\.max.*finite"),
        ({"dataset": {"path": Path("images")}}, r"dataset\.path.*string"),
    ],
)
def test_values_that_no_run_could_use_name_their_key(tables, match):
    with pytest.raises(ConfigError, match=match):
        load_config(tables)


def test_tables_of_a_mapping_are_not_changed_by_overrides():
    tables = {"votes": {"n": 100}}
    assert load_config(tables, ["votes.n=200"]).votes.n == 200
    assert tables == {"votes": {"n": 100}}


def test_votes_id_changes_with_the_lead_and_the_units_of_selection():
    ids = {votes_id(load_config({}, [f"votes.select={n}"])) for n in (3, 5)}
    ids |= {votes_id(load_config({}, ["votes.select=5", f"votes.select_unit={n}"])) for n in (1, 2)}
    assert len(ids | {votes_id(load_config({}))}) == 5
    trained = {"method": {"name": "classify"}, "votes": {"n0": 10}}
    assert votes_id(load_config(trained)) != votes_id(load_config(trained, ["votes.select=5"]))


def test_votes_id_changes_with_the_weights():
    assert votes_id(Config(), {"denoiser": "cd" * 32}) != votes_id(Config())


def test_votes_id_is_pinned_so_that_an_upgrade_orphans_no_run():
    assert votes_id(load_config({})) == "c200cda22d9eab7e"  # of method version 2


def test_plan_id_changes_with_what_is_asked_for():
    def plan_id(*overrides: str) -> str:
        return canonical_hash(plan_identity(load_config({}, overrides), "id"))

    asked = ["votes.n=2000", "votes.sigmas=[0.5]", "dataset.first=3", "votes.alpha=0.01"]
    assert len({plan_id(), *(plan_id(o) for o in asked)}) == 1 + len(asked)
    assert plan_id("execution.item_s=1.0") == plan_id()
