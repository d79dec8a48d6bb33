"""A run from end to end in this process: same votes whatever happens, resume, what is refused."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffcert_ray import ABSTAIN, certify, open_run
from diffcert_ray.certificates.executed import executed_certificate
from diffcert_ray.datasets.pixel_grid import off_grid
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.method.grid import rounding_radius, slack
from diffcert_ray.pool.local import LocalPool
from diffcert_ray.run import certify as certification
from diffcert_ray.storage.schemas import CertificateRow
from tests.worlds import counts_of, settings


def test_a_run_certifies_every_image_from_its_own_counts(clean, world):
    certificates = clean.certificates().set_index("image_id")
    assert list(certificates.index) == list(world[1].ids)
    counts = counts_of(clean)
    for image_id, row in certificates.iterrows():
        select = counts[0.25, image_id, "select", 0, 20]
        chosen = min(select, key=lambda c: (-select[c], c))
        n_a = sum(counts[0.25, image_id, "estimate", a, a + 20].get(chosen, 0) for a in (0, 20, 40))
        off = {"slack": row["slack"], "taken_off": row["taken_off"]}
        expected = executed_certificate(n_a, 60, sigma=0.25, alpha=0.001, **off)
        assert off["slack"] == slack(0.25, 16)
        assert off["taken_off"] == rounding_radius(16) + off_grid(world[1].image(image_id))
        assert row["n_a"] == n_a
        assert row["radius"] == expected.radius
        assert row["predicted"] == (ABSTAIN if expected.abstained else chosen)
        assert row["correct"] == (row["predicted"] == row["label"])


def test_the_cost_of_an_image_is_the_sum_of_its_units(clean):
    units = clean.units().groupby("image_id")["nfe"].sum()
    certificates = clean.certificates().set_index("image_id")["nfe"]
    assert units.to_dict() == certificates.to_dict()


@pytest.mark.parametrize(
    "tables",
    [
        {"execution": {"item_s": 0.01}},
        {"execution": {"stages": "split"}, "sift": {"levels": 1}},
        {"execution": {"stages": "split", "item_s": 0.01}, "sift": {"levels": 3}},
    ],
)
def test_counts_do_not_depend_on_how_the_work_is_cut(tables, clean, world, tmp_path):
    run = certify(
        settings(**tables), tmp_path / "r", local=True, denoiser=world[0], dataset=world[1]
    )
    assert counts_of(run) == counts_of(clean)


def test_counts_do_not_depend_on_the_batch_on_one_cpu(clean, world, tmp_path):
    tables = settings(numerics={"batch": 7})
    run = certify(tables, tmp_path / "r", local=True, denoiser=world[0], dataset=world[1])
    assert counts_of(run) == counts_of(clean)


def test_the_same_command_on_a_finished_run_evaluates_nothing(clean, world):
    again = certify(settings(), clean.address, local=True, denoiser=world[0], dataset=world[1])
    assert again.outcome.complete
    assert again.outcome.nfe == 0
    assert len(again.certificates()) == 6


class StopAfter:
    """should_stop that says yes from the k-th question on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stopped_run_continues_and_evaluates_only_what_is_missing(clean, world, tmp_path):
    tables = settings(execution={"item_s": 0.01, "flush_s": 0.01})
    folder, nfe = tmp_path / "r", 0
    for _ in range(50):
        run = certify(
            tables,
            folder,
            local=True,
            denoiser=world[0],
            dataset=world[1],
            should_stop=StopAfter(2),
        )
        nfe += run.outcome.nfe
        if run.outcome.complete:
            break
        assert run.outcome.interrupted
    assert run.outcome.complete
    assert counts_of(run) == counts_of(clean)
    columns = ["image_id", "predicted", "radius", "n_a", "nfe"]
    assert run.certificates()[columns].equals(clean.certificates()[columns])
    # Part of a unit that was under way at a stop is evaluated again, whole units never.
    assert nfe >= clean.outcome.nfe
    assert run.units()["nfe"].sum() == clean.units()["nfe"].sum()


class GivesUp(LocalPool):
    """A pool that gives up every item with a certain image."""

    def __init__(self, spec, image_id: int) -> None:
        super().__init__(spec)
        self.image_id, self.lost, self.given_up_items = image_id, [], 0

    def submit(self, item) -> None:
        bad = any(part.unit.image_id == self.image_id for part in item.parts)
        (self.lost if bad else self._items).append(item)

    def room(self) -> int:
        return 10 - len(self._items)

    def given_up(self) -> list:
        lost, self.lost = self.lost, []
        self.given_up_items += len(lost)
        return lost


def test_image_that_is_given_up_in_several_items_is_named_once_and_made_up_for_later(
    clean, world, tmp_path, monkeypatch
):
    tables = settings(execution={"item_s": 0.01})
    pools = []

    def made(spec, _) -> GivesUp:
        pools.append(GivesUp(spec, 100))
        return pools[0]

    with monkeypatch.context() as broken:
        broken.setattr("diffcert_ray.run.loop.FIRST_ITEM_NFE", 40.0)
        run = certify(tables, tmp_path / "r", denoiser=world[0], dataset=world[1], pool=made)
    assert not run.outcome.complete
    assert pools[0].given_up_items >= 2
    assert (0.25, 100) in run.outcome.given_up
    assert len(set(run.outcome.given_up)) == len(run.outcome.given_up)
    missing = set(clean.certificates()["image_id"]) - set(run.certificates()["image_id"])
    assert missing == {image_id for _, image_id in run.outcome.given_up}
    run = certify(tables, tmp_path / "r", local=True, denoiser=world[0], dataset=world[1])
    assert run.outcome.complete
    assert counts_of(run) == counts_of(clean)


def test_start_that_finds_many_parts_compacts_them_first(clean, world, tmp_path, monkeypatch):
    folder = tmp_path / "r"
    tables = settings(execution={"item_s": 0.01, "flush_s": 1e-3})

    def start(questions: int):
        return certify(
            tables, folder, local=True, denoiser=world[0], dataset=world[1],
            should_stop=StopAfter(questions),
        )  # fmt: skip

    for _ in range(2):
        start(4)  # each start writes a part at least
    store = open_run(folder).store
    before, parts = counts_of(open_run(folder)), store.loose_part_count()
    assert parts >= 2
    monkeypatch.setattr(certification, "COMPACT_AT", parts)
    start(0)
    assert not (folder / "compact").exists()  # as many as are allowed
    monkeypatch.setattr(certification, "COMPACT_AT", parts - 1)
    start(0)
    assert len(list((folder / "compact").glob("*.json"))) == 1
    assert open_run(folder).store.loose_part_count() == 0
    assert counts_of(open_run(folder)) == before
    run = start(10**6)
    assert run.outcome.complete
    assert counts_of(run) == counts_of(clean)


def test_images_may_be_split_over_drivers_and_are_merged_by_reading(clean, world, tmp_path):
    for images in ((3, 6), (0, 3)):
        run = certify(
            settings(),
            tmp_path / "r",
            images=images,
            local=True,
            denoiser=world[0],
            dataset=world[1],
        )
    assert counts_of(run) == counts_of(clean)
    assert len(run.certificates()) == 6


def test_sigmas_may_be_added_to_a_run(clean, copied, world):
    tables = settings(votes={"sigmas": [0.25, 0.4]})
    run = certify(tables, copied.address, local=True, denoiser=world[0], dataset=world[1])
    assert set(run.certificates()["sigma"]) == {0.25, 0.4}
    assert {k: v for k, v in counts_of(run).items() if k[0] == 0.25} == counts_of(clean)


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({"votes": {"seed": 5}}, ["votes.seed: run 0, now 5", "--run"]),
        ({"sift": {"z": 3.0}}, ["sift.z: run 2.0, now 3.0"]),
        ({"votes": {"n": 80}}, ["votes.n is 80", "started with 60", "another run folder"]),
        ({"votes": {"alpha": 0.01}}, ["votes.alpha is 0.01"]),
    ],
)
def test_a_run_folder_refuses_other_votes_and_another_fixed_n(clean, world, tables, parts):
    with pytest.raises(ConfigError) as caught:
        certify(settings(**tables), clean.address, local=True, denoiser=world[0], dataset=world[1])
    for part in parts:
        assert part in str(caught.value)


def test_numerics_of_a_run_are_adopted_by_every_later_start(clean, world, tmp_path):
    stopped = certify(
        settings(numerics={"batch": 16}), tmp_path / "r", local=True, denoiser=world[0],
        dataset=world[1], should_stop=StopAfter(0),
    )  # fmt: skip
    assert not stopped.outcome.complete
    run = certify(
        settings(numerics={"batch": 64}), tmp_path / "r", local=True, denoiser=world[0],
        dataset=world[1],
    )  # fmt: skip
    assert run.config.numerics.batch == 16


def test_n_may_grow_with_the_sequential_bound_only_and_reuses_the_votes(world, tmp_path):
    arguments = {"local": True, "denoiser": world[0], "dataset": world[1]}
    votes = {"bound": "sequential", "n": 80, "radii": [0.3], "futility": 1e-6}
    before = certify(settings(votes=votes), tmp_path / "r", **arguments)
    used = before.certificates().set_index("image_id")["n"]
    after = certify(settings(votes=votes | {"n": 160}), tmp_path / "r", **arguments)
    assert after.outcome.complete
    grown = after.certificates().set_index("image_id")["n"]
    assert grown.index.is_unique
    assert (grown >= used).all()
    assert grown.max() > 80


def test_target_votes_certify_the_same_counts_of_the_chosen_class(clean, world, tmp_path):
    run = certify(
        settings(votes={"estimate": "target"}), tmp_path / "r", local=True, denoiser=world[0],
        dataset=world[1],
    )  # fmt: skip
    complete = clean.certificates().set_index("image_id")
    target = run.certificates().set_index("image_id")
    assert (target["n_a"] == complete["n_a"]).all()
    assert (target["nfe"] <= complete["nfe"]).all()
    assert target["nfe"].sum() < complete["nfe"].sum()


def test_a_truncated_part_is_named_and_recomputed_only_when_asked(clean, copied, world):
    folder = Path(copied.address)
    arguments = {"local": True, "denoiser": world[0], "dataset": world[1]}
    part = next((folder / "units").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    for file in (folder / "certificates").glob("*"):
        file.unlink()
    with pytest.raises(StoreError, match=part.name):
        certify(settings(), folder, **arguments)
    again = certify(settings(), folder, on_damaged="recompute", **arguments)
    assert again.outcome.nfe > 0
    assert counts_of(again) == counts_of(clean)


@pytest.mark.parametrize(
    ("line", "changed", "name"),
    [("n = 60", "n = 120", "plan_id"), ('"votes.seed" = 0', '"votes.seed" = 1', "votes_id")],
)
def test_a_run_document_that_was_changed_is_refused(copied, line, changed, name):
    file = Path(copied.address) / "run.toml"
    text = file.read_text()
    assert text.count(line) == 1
    file.chmod(0o644)
    file.write_text(text.replace(line, changed))
    with pytest.raises(ConfigError, match=rf"states {name} \w+, but what it says has"):
        open_run(copied.address)


def test_a_certificate_of_other_votes_is_made_again(copied, world):
    (honest,) = copied.store.certificates().slice(0, 1).to_pylist()
    shutil.rmtree(Path(copied.address) / "certificates")
    with copied.store.writer() as writer:
        writer.add_certificates([CertificateRow(**honest | {"votes_id": "0" * 16, "radius": 9.0})])
    again = certify(settings(), copied.address, local=True, denoiser=world[0], dataset=world[1])
    assert again.outcome.nfe == 0
    with pytest.raises(ConfigError, match="1 certificates are not this run's"):
        again.certificates()
    certificates = again.store.certificates().to_pandas()
    own = certificates[certificates["votes_id"] == honest["votes_id"]].set_index("image_id")
    assert own["radius"][honest["image_id"]] == honest["radius"]
    assert len(own) == len(world[1])


def test_an_image_whose_pixels_changed_is_refused(world, tmp_path):
    denoiser, data = world
    certify(settings(), tmp_path / "r", images=(0, 2), local=True, denoiser=denoiser, dataset=data)
    changed = data.__class__(**{**vars(data), "pixels": data.pixels * np.float32(0.5)})
    with pytest.raises((ConfigError, StoreError), match=r"changed|pixel|image"):
        certify(settings(), tmp_path / "r", local=True, denoiser=denoiser, dataset=changed)


KILLED = """
import os, signal, sys
from diffcert_ray import certify
from tests.worlds import settings, small_world
world, data = small_world()
polls = 0
def stop():  # SIGKILL between two polls, as a lost machine would
    global polls
    polls += 1
    if polls > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return False
run = certify(settings(execution={"item_s": 0.02, "flush_s": 0.02}), sys.argv[1], local=True,
              denoiser=world, dataset=data, should_stop=stop)
print("complete", run.outcome.complete)
"""


@pytest.mark.fault
@pytest.mark.timeout(240)  # four programs that each import torch
def test_a_killed_program_continues_and_ends_with_identical_counts(clean, tmp_path):
    folder, killed = tmp_path / "r", 0
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(["."]))
    for polls in (3, 8, 10**6):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(polls)],
            capture_output=True, text=True, timeout=100, env=environment, check=False,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )  # fmt: skip
        killed += done.returncode == -signal.SIGKILL
        if "complete True" in done.stdout:
            break
    assert killed == 2
    assert "complete True" in done.stdout, done.stderr
    assert counts_of(open_run(folder)) == counts_of(clean)
