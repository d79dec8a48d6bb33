"""A dtype is chosen for its speed where its votes are float32's, and the run says how many were."""

import dataclasses

import pytest

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import NumericsConfig
from diffcert_ray.engine import votes as engine_votes
from diffcert_ray.engine.speed import Rate
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.sources import series_of_run
from diffcert_ray.run import calibration, dtype_votes
from diffcert_ray.run.calibration import DTYPES, calibrate, usual_numerics
from diffcert_ray.run.certify import certify
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.dtype_agreement import LEAST, Agreement
from diffcert_ray.run.dtype_votes import FIRST, agreements
from diffcert_ray.run.stored import open_run
from tests.pretended_gpu import pretended_gpu
from tests.worlds import settings, small_world

LONG = 1e12
QUICK = {
    "noise_levels": {"levels": 3},
    "votes": {"sigmas": [0.25, 0.5], "n0": 4, "n": 8, "unit": 4, "radii": [0.0]},
    "numerics": {"batch": 512},
}


@pytest.fixture
def cast(monkeypatch):
    """What was cast: (dtype as the network has it, seed, votes, evaluations), one for each item."""
    seen: list = []
    evaluate = engine_votes.evaluate_votes

    def noted(base, item, image):
        winners, nfe = evaluate(base, item, image)
        seen.append((str(base.denoiser.dtype), base.seed, len(winners), nfe, base.batch))
        return winners, nfe

    monkeypatch.setattr(engine_votes, "evaluate_votes", noted)
    return seen


def compared(most_nfe: float, dtypes=("float32", "tf32", "bfloat16"), **tables):
    config = load_config(QUICK | tables)
    return agreements(config, weights_of(config), "cpu", dtypes, most_nfe=most_nfe)


def test_votes_of_every_dtype_are_cast_under_the_same_noise_which_is_not_the_run_s(
    cast, monkeypatch
):
    monkeypatch.setattr(dtype_votes, "ENOUGH", 40)  # a CPU is slow in bfloat16
    monkeypatch.setattr(dtype_votes, "LEAST", 20)
    tf32, bfloat16 = compared(1e9)
    assert (tf32.votes, bfloat16.votes) == (40, 40)
    assert tf32.different == 0  # on a CPU it is float32
    assert bfloat16.different < 10
    assert {seed for _, seed, *_ in cast} == {dtype_votes.OTHER_SEED}  # the run's is 0
    assert {batch for *_, batch in cast} == {dtype_votes.BATCH}
    by_dtype: dict = {}
    for dtype, _, votes, *_ in cast[2:]:  # after the first few, which tell the cost
        by_dtype.setdefault(dtype, []).append(votes)
    assert sum(votes for _, _, votes, *_ in cast[:2]) == FIRST
    assert by_dtype == {"torch.float32": 4 * [20], "torch.bfloat16": 2 * [20]}


def test_votes_cost_no_more_than_they_may(cast):
    (one,) = compared(15_000, ("float32", "tf32"))
    assert LEAST <= one.votes < dtype_votes.ENOUGH
    assert sum(nfe for *_, nfe, _ in cast) <= 1.1 * 15_000  # a vote's cost is known to some percent


def test_where_votes_are_dear_nothing_is_compared_and_nothing_is_allowed(cast):
    assert compared(600, ("float32", "bfloat16")) == [Agreement("bfloat16", 0, 0)]
    assert sum(votes for _, _, votes, *_ in cast) == FIRST
    assert not Agreement("bfloat16", 0, 0).allowed
    assert "not compared, 200 votes would take over 1 %" in str(Agreement("bfloat16", 0, 0))


def test_float32_alone_is_compared_with_nothing(cast):
    assert compared(1e9, ("float32",)) == []
    assert cast == []


@pytest.mark.parametrize(
    ("votes", "different", "allowed"),
    [(2000, 0, True), (2000, 2, True), (2000, 3, False), (200, 0, True), (200, 1, False),
     (199, 0, False)],
)  # fmt: skip
def test_at_most_one_vote_in_a_thousand_may_differ(votes, different, allowed):
    assert Agreement("bfloat16", votes, different).allowed == allowed


def test_what_was_seen_is_said_with_what_it_shows():
    said = str(Agreement("bfloat16", 2000, 0))
    assert "0 of 2,000 votes are not float32's (at most 0.18 % of all, with 97.5 %)" in said


# --- what calibration does with it


@pytest.fixture
def measured(monkeypatch):
    """Made-up rates by dtype, and agreements; returns both, to be changed."""
    rates = {"float32": 1000.0, "tf32": 4000.0, "bfloat16": 9000.0}
    agreed = {"tf32": Agreement("tf32", 2000, 0), "bfloat16": Agreement("bfloat16", 2000, 0)}
    tried, asked = [], []

    def compare(config, weights, device, dtypes, **given):
        asked.append((tuple(dtypes), given["most_nfe"]))
        return [agreed[dtype] for dtype in dtypes if dtype != "float32"]

    def network(self, way):
        tried.append(way.dtype)
        return way

    monkeypatch.setattr(calibration, "agreements", compare)
    monkeypatch.setattr(calibration._Trial, "_network", network)
    monkeypatch.setattr(calibration._Trial, "rough_seconds", lambda self: LONG)
    monkeypatch.setattr(calibration, "memory_limit", lambda config, device: 2**30)
    monkeypatch.setattr(
        "diffcert_ray.engine.speed.batch_rates",
        lambda way, sizes, device, *, memory_limit: [Rate(sizes[0], rates[way.dtype])],
    )
    return agreed, asked, tried


def chosen(device="cuda", **tables):
    numerics = {"compile": False, "channels_last": False}
    config = load_config({"numerics": numerics} | tables)
    return calibrate(config, {}, device, nfe=LONG, workers=4)


def test_the_fastest_of_the_dtypes_that_agree_is_chosen_and_the_others_are_not_even_timed(measured):
    agreed, asked, tried = measured
    found = chosen()
    assert found.numerics.dtype == "bfloat16"
    assert asked == [(DTYPES["cuda"], 0.01 * LONG)]  # of the whole run, not of a worker's share
    agreed["bfloat16"] = Agreement("bfloat16", 2000, 5)
    tried.clear()
    found = chosen()
    assert found.numerics.dtype == "tf32"
    assert set(tried) == {"float32", "tf32"}
    assert "bfloat16: 5 of 2,000 votes are not float32's" in found.said
    assert found.noted == {
        "agreement": [
            {"dtype": "tf32", "votes": 2000, "different": 0},
            {"dtype": "bfloat16", "votes": 2000, "different": 5},
        ]
    }


def test_dtypes_that_are_asked_for_are_compared_and_a_given_one_is_kept(measured):
    _, asked, _ = measured
    chosen("cpu")
    assert asked.pop()[0] == ("float32",)
    chosen("cpu", execution={"dtypes": ["float32", "tf32", "bfloat16"]})
    assert asked.pop()[0] == ("float32", "bfloat16")  # a CPU knows no tf32
    given = {"compile": False, "channels_last": False, "dtype": "bfloat16"}
    assert chosen(numerics=given).numerics.dtype == "bfloat16"
    assert asked == []


def test_batches_of_a_new_run_are_larger_on_a_gpu(tmp_path, world):
    assert usual_numerics(load_config({}), "cpu").batch == NumericsConfig().batch
    assert usual_numerics(load_config({}), "cuda").batch == 256
    assert usual_numerics(load_config({"numerics": {"batch": 64}}), "cuda").batch == 64
    tables = settings(votes={"n0": 4, "n": 12, "unit": 4, "radii": [0.0]},
                      noise_levels={"levels": 3})  # fmt: skip
    del tables["numerics"]
    given = {"local": True, "denoiser": world[0], "dataset": small_world(images=2)[1]}
    with pretended_gpu():
        run = certify(tables, tmp_path / "run", **given)
    assert run.config.numerics.batch == 256
    assert open_run(tmp_path / "run").config.numerics.batch == 256
    again = certify(tables, tmp_path / "run", **given)  # on the CPU: the run's numerics hold
    assert again.config.numerics.batch == 256


# --- what the run keeps


@pytest.fixture
def calibrated_run(tmp_path, monkeypatch, world):
    monkeypatch.setattr(
        calibration,
        "calibrate",
        lambda config, *_, **__: calibration.Calibrated(
            config.numerics, "said", (Agreement("bfloat16", 2000, 1),)
        ),
    )
    tables = settings(execution={"calibrate": "always"}, votes={"n": 20})
    tables["numerics"] = {"batch": 32}
    return certify(tables, tmp_path / "run", local=True, denoiser=world[0], dataset=world[1])


def test_the_run_keeps_what_was_compared_and_its_report_says_it(calibrated_run):
    document = open_run(calibrated_run.address).document
    assert document.calibration == {
        "agreement": [{"dtype": "bfloat16", "votes": 2000, "different": 1}]
    }
    facts = dict(series_of_run(open_run(calibrated_run.address))[0].facts)
    assert facts["computes in"].startswith(
        "float32; compared before the run, bfloat16: 1 of 2,000 votes are not float32's (at most "
    )


def test_nobody_changes_what_was_compared_unseen(calibrated_run):
    document = calibrated_run.document
    better = {"agreement": [{"dtype": "bfloat16", "votes": 2000, "different": 0}]}
    forged = dataclasses.replace(document, calibration=better)
    with pytest.raises(ConfigError, match=r"run\.toml states document_id"):
        RunDocument.from_bytes(forged.to_bytes())


def test_a_run_that_compared_nothing_has_the_document_of_before(clean):
    assert b"calibration" not in clean.document.to_bytes().replace(b"calibrate", b"")
    facts = dict(series_of_run(clean)[0].facts)
    assert facts["computes in"] == "float32"


def test_of_a_run_of_hours_the_two_best_ways_are_compiled_and_the_faster_one_taken(
    measured, monkeypatch
):
    gains = {"bfloat16": 900.0, "tf32": 20_000.0}  # NFE/s compiled
    compiled = []

    def compiling(self, way, batch, rate, *, always):
        compiled.append(way.dtype)
        return calibration._Compiling(gains[way.dtype] > rate, "measured", gains[way.dtype])

    monkeypatch.setattr(calibration._Trial, "whether_to_compile", compiling)
    found = chosen()
    assert compiled == ["bfloat16", "tf32"]
    assert (found.numerics.dtype, found.numerics.compile) == ("tf32", True)
