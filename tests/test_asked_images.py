"""What was asked for is known of every start, whatever of it has a result."""

import numpy as np
import pytest

from diffcert_ray.config import identity
from diffcert_ray.datasets import Dataset
from diffcert_ray.errors import StoreError
from diffcert_ray.run.certify import certify
from diffcert_ray.run.stored import open_run
from diffcert_ray.storage.asked_images import read_asked, store_asked
from diffcert_ray.storage.open_location import open_location
from tests.worlds import settings, small_world

WORLD, DATA = small_world(images=10)


def part(count: int) -> Dataset:
    """The first images, as a subset of the same data."""
    return Dataset(
        DATA.name, DATA.split, DATA.ids[:count], DATA.labels[:count],
        np.stack([DATA.image(i) for i in DATA.ids[:count]]), DATA.class_names, DATA.fingerprint,
    )  # fmt: skip


def begin(place, count: int = 10, stop_after: int = 0, **votes):
    """A start that is asked to stop after so many polls."""
    polls = iter(range(10_000))
    return certify(
        settings(votes=votes, execution={"item_s": 0.01, "flush_s": 0.001}), place, local=True,
        denoiser=WORLD, dataset=part(count), should_stop=lambda: next(polls) >= stop_after,
    )  # fmt: skip


def as_before_notes(folder):
    """The run as an earlier version would have left it: no notes, nor a hash that asks for them."""
    for note in (folder / "asked").iterdir():
        note.unlink()
    lines = (folder / "run.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("document_id")]
    (folder / "run.toml").write_text("\n".join(kept))
    return open_run(folder)


def test_images_of_a_later_start_that_left_nothing_else_are_asked_for(tmp_path):
    assert begin(tmp_path / "run", 6, 10_000).outcome.complete
    run = begin(tmp_path / "run", 10, 0)
    assert not run.outcome.complete
    assert run.units()["image_id"].nunique() == 6
    assert run.asked() == {0.25: 10}


def test_a_sigma_is_asked_for_at_the_images_of_its_starts(tmp_path):
    begin(tmp_path / "run", 6)
    run = begin(tmp_path / "run", 2, sigmas=[0.25, 0.5])
    assert run.asked() == {0.25: 6, 0.5: 2}


def test_a_start_with_fewer_images_takes_none_back(tmp_path):
    begin(tmp_path / "run", 6)
    assert begin(tmp_path / "run", 2, 10_000).asked() == {0.25: 6}


def test_a_run_without_notes_counts_the_first_start_and_what_was_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "METHOD_VERSION", 1)  # of the time before notes
    begin(tmp_path / "run", 2, 10_000)
    run = begin(tmp_path / "run", 6, 3, sigmas=[0.25, 0.5])
    begun = run.units().groupby("sigma")["image_id"].nunique().to_dict()
    assert begun[0.25] > 2
    assert as_before_notes(tmp_path / "run").asked() == begun
    begin(tmp_path / "other", 6)
    assert as_before_notes(tmp_path / "other").asked() == {0.25: 6}


def test_a_run_without_votes_says_what_was_asked_too(tmp_path):
    config = settings(
        votes={"bound": "local"}, method={"name": "dc"}, plain={"draws": 8, "unit": 4}
    )
    run = certify(
        config, tmp_path / "run", local=True, denoiser=WORLD, dataset=DATA,
        should_stop=lambda: True,
    )  # fmt: skip
    assert run.asked() == {0.0: 10}


def test_equal_starts_share_one_note_and_ids_come_back_as_they_were(tmp_path):
    place = open_location(str(tmp_path))
    ids = [7, 3, 4, 5, 1, 1_000_000]
    store_asked(place, [0.5, 0.25], ids)
    store_asked(place, [0.25, 0.5], reversed(ids))
    assert len(place.list("asked")) == 1
    assert read_asked(place) == {0.25: set(ids), 0.5: set(ids)}


def test_a_note_that_cannot_be_read_is_refused(tmp_path):
    place = open_location(str(tmp_path))
    place.create("asked/broken.json", b"{}")
    with pytest.raises(StoreError, match="restore it from a copy"):
        read_asked(place)
