"""What tuning tries, on which images, and what it takes."""

import numpy as np
import pytest

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import SiftConfig
from diffcert_ray.datasets import load_dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.tuning.candidates import (
    Setting,
    configured,
    full_votes,
    read_candidates,
    usual_candidates,
)
from diffcert_ray.tuning.casting import NOT_CAST, Votes
from diffcert_ray.tuning.choice import Measured, chosen, front, measured, promising
from diffcert_ray.tuning.images import parts_of, pixel_hashes, tuning_dataset, uncertified

DIGITS = load_config("digits")


def group_of(name: str, nfe: float, *differing: int, images: int = 600) -> tuple[Measured, ...]:
    """A setting at so many sigmas; on so many images one vote of four differs."""
    sift, found = SiftConfig(rule="paired-z"), []
    for sigma, count in enumerate(differing, 1):
        agreeing = np.ones(images)
        agreeing[:count] = 0.75
        found.append(Measured(Setting(name, sift), sigma / 4, agreeing, nfe, None, 4))
    return tuple(found)


def test_the_cheapest_setting_with_its_bound_above_the_target_is_taken():
    groups = [group_of("dear", 9, 1), group_of("good", 5, 4), group_of("rash", 2, 60)]
    choice = chosen(groups, 0.99)
    assert (choice.taken.setting.name, choice.reached) == ("good", True)
    assert choice.taken.bound > 0.99
    assert [c.setting.name for c in choice.compared] == ["rash", "good", "dear"]


def test_a_bound_is_needed_and_at_every_sigma():
    # 20 of 2,400 votes differ: 99.17 % agree, which does not show 99 %.
    choice = chosen([group_of("near", 2, 20), group_of("dear", 9, 4)], 0.99)
    assert choice.taken.setting.name == "dear"
    uneven = chosen([group_of("uneven", 2, 0, 60), group_of("even", 9, 4, 4)], 0.99)
    assert uneven.taken.setting.name == "even"


def test_where_nothing_reaches_the_target_the_most_agreeing_one_is_taken_and_said():
    choice = chosen([group_of("a", 2, 60), group_of("b", 5, 20)], 0.99)
    assert (choice.taken.setting.name, choice.reached) == ("b", False)
    assert 600 < choice.images_needed() < 60_000
    assert chosen([group_of("a", 2, 60)], 0.99).images_needed() is None


def test_more_settings_to_choose_among_lower_every_bound():
    one = chosen([group_of("a", 2, 10)], 0.99).taken.bound
    many = chosen([group_of(str(i), 2 + i, 10) for i in range(8)], 0.99).taken.bound
    assert many < one


def test_settings_go_on_by_fronts_and_hopeless_ones_do_not():
    groups = [
        group_of("rash", 1, 400),
        group_of("cheap", 2, 12),
        group_of("mid", 3, 6),
        group_of("beaten", 4, 13),
        group_of("dear", 9, 0),
    ]
    assert [g[0].setting.name for g in front(groups)] == ["rash", "cheap", "mid", "dear"]
    assert [s.name for s in promising(groups, 0.99, 3)] == ["cheap", "mid", "dear"]
    assert {s.name for s in promising(groups, 0.99, 9)} == {"cheap", "mid", "beaten", "dear"}
    assert [s.name for s in promising(groups[:1], 0.99)] == ["rash"]


def test_votes_agree_where_their_classes_are_equal():
    full = Votes(np.array([[1, 2], [3, 3]]), np.full((2, 2), 400))
    other = Votes(np.array([[1, 2], [3, NOT_CAST]]), np.array([[4, 6], [5, 0]]))
    one = measured(Setting("s", SiftConfig()), 0.25, other, full, np.array([1, 3]))
    assert one.agreeing.tolist() == [1.0, 0.5]
    assert one.nfe == 5.0
    assert one.right == 0.5


def test_with_many_classes_the_full_vote_is_a_race_of_all():
    assert full_votes(10).sift.rule == "exact"
    assert full_votes(1000).sift.rule == "paired-z"
    assert full_votes(1000, "exact").sift.rule == "exact"


def test_without_a_head_no_setting_needs_one():
    assert {s.sift.rule for s in usual_candidates(10, head=False)} == {"paired-z"}
    assert {s.sift.rule for s in usual_candidates(10, head=True)} == {"shortlist"}
    least = [s.sift.least_p for s in usual_candidates(1000, head=True)]
    assert max(least) < 0.01
    races = load_config("digits-quick")
    assert configured(races).sift == races.sift
    assert configured(DIGITS) is None


def test_candidates_are_all_combinations_of_a_files_lists(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("z = [1.0, 2.0]\nleast_p = [0.1, 0.2, 0.3]\nfirst_level = 0.5\n")
    found = read_candidates(str(path), head=True)
    assert len({s.name for s in found}) == 6
    assert {s.sift.first_level for s in found} == {0.5}


@pytest.mark.parametrize(
    ("text", "head", "said"),
    [
        ("z = [", True, "cannot be read as TOML"),
        ("keep = [1]", True, "give lists for z, first_level, least_p"),
        ('rule = "shortlist"\nz = [1.0]', False, "there is no head"),
        ("z = [-1.0]", True, "z: Input should be greater than 0"),
        ("z = []", True, "name no setting"),
    ],
)
def test_candidates_that_are_none_are_refused(tmp_path, text, head, said):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_candidates(str(path), head=head)


def test_parts_have_no_common_image_and_of_equal_images_one_counts():
    shas = {i: f"{i // 2}" for i in range(400)}  # pairs of equal images
    parts = parts_of(shas, head=True)
    ids = [*parts.head, *parts.screening, *parts.confirming]
    assert len(ids) == len({shas[i] for i in ids}) == 200
    assert (len(parts.confirming), len(parts.screening)) == (70, 16)
    again = parts_of(dict(reversed(shas.items())), head=True)
    assert again.confirming.tolist() == parts.confirming.tolist()
    assert not len(parts_of(shas, head=False).head)


@pytest.mark.parametrize("asked", [{"confirming": 99}, {"screening": 100}])
def test_too_few_images_are_refused(asked):
    with pytest.raises(ConfigError, match="each part needs 2 at least"):
        parts_of({i: str(i) for i in range(100)}, head=True, **asked)


def test_certified_images_are_left_out_by_their_pixels(caplog):
    data = load_dataset({"name": "digits", "split": "test", "first": 6})
    shas = pixel_hashes(data)
    ids = data.ids.tolist()
    left = uncertified(shas | {100_000: shas[ids[0]]}, [shas[i] for i in ids[:3]])
    assert list(left) == ids[3:]
    assert "4 of the 7 images" in caplog.text
    with pytest.raises(ConfigError, match="all 6 images to tune on are certified"):
        uncertified(shas, shas.values())


def test_images_to_tune_on_must_be_named():
    assert tuning_dataset(DIGITS, ["split=train"]).model_dump(exclude_unset=True) == {
        "name": "digits",
        "split": "train",
    }
    assert tuning_dataset(DIGITS, ["ids=[1, 2]"]).ids == (1, 2)
    with pytest.raises(ConfigError, match="--images split=train"):
        tuning_dataset(DIGITS, [])
    with pytest.raises(ConfigError, match="unknown key 'splt'"):
        tuning_dataset(DIGITS, ["splt=train"])
    with pytest.raises(ConfigError, match="exclude each other"):
        tuning_dataset(DIGITS, ["ids=[1]", "first=2"])
