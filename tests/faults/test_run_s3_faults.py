"""Whole runs into an object store that fails on the way: same counts, nothing evaluated twice."""

import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from diffcert_ray import certify, open_run
from diffcert_ray.commands import main as cli
from diffcert_ray.errors import StoreError
from diffcert_ray.storage import object_prefix
from diffcert_ray.storage.store import RunStore
from tests.noting_pools import noted, noting, votes_of
from tests.s3_proxy import Faults, proxied
from tests.worlds import counts_of, settings

pytestmark = pytest.mark.usefixtures("waited")

WRITES = {
    "500": ["500", ""],
    "503": ["", "503", "503", "503", ""],
    "cut-in-the-body": ["", "before"],
    "answer-lost": ["after", ""],
    "no-answer": ["", "", "", "timeout"],
    "everything": ["503", "before", "", "after", "500", ""],
}


def options(url: str, timeout_s: float = 60.0) -> dict:
    return {"endpoint_url": url, "config_kwargs": {"read_timeout": timeout_s}}


def start(world, address: str, url: str, book: Path, timeout_s: float = 60.0):
    storage = {"storage_options": options(url, timeout_s)}
    tables = settings(execution={"item_s": 0.05, "flush_s": 1e-3} | storage)
    return certify(tables, address, denoiser=world[0], dataset=world[1], pool=noting(book))


def stored(address: str, endpoint: str):
    return open_run(address, options(endpoint))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k == "everything" else pytest.mark.fault) for k in WRITES],
)
def test_run_over_a_disturbed_store_has_the_counts_of_an_undisturbed_one(
    world, clean, endpoint, address, book, waited, caplog, kind
):
    faults = Faults({"PUT": WRITES[kind] * 100, "GET": ["500", "", "short", "", "503", ""] * 100})
    with proxied(endpoint, faults) as url:
        run = start(world, address, url, book, timeout_s=1.0 if kind == "no-answer" else 60.0)
    assert run.outcome.complete
    assert run.outcome.nfe == clean.outcome.nfe
    assert noted(book) == Counter(votes_of(counts_of(clean)))
    assert counts_of(stored(address, endpoint)) == counts_of(clean)
    columns = ["image_id", "predicted", "radius", "n_a", "n", "nfe"]
    assert stored(address, endpoint).certificates()[columns].equals(clean.certificates()[columns])
    disturbed = [fault for method, fault in faults.requests if method == "PUT" and fault]
    assert len(disturbed) >= 5
    assert set(disturbed) == set(WRITES[kind]) - {""}
    assert waited  # it was tried again, after a wait that grows
    assert f"{address}/" in caplog.text
    assert "failed, trying again in 0.2 s: " in caplog.text
    assert set(waited) <= set(object_prefix.RETRY_DELAYS_S)
    # Each part was put once, whatever became of the answers.
    raw = stored(address, endpoint).store.read_rows("units", ["image_id", "start"])
    assert raw.table.num_rows == len(counts_of(clean))


@pytest.mark.fault
def test_store_that_is_away_for_a_while_costs_no_evaluation(
    world, clean, endpoint, address, book, caplog
):
    tries = len(object_prefix.RETRY_DELAYS_S) + 1
    # Two flushes fail with all their tries.
    faults = Faults({"PUT": ["503"] * (2 * tries)}, where="/units/")
    with proxied(endpoint, faults) as url:
        run = start(world, address, url, book)
    assert run.outcome.complete
    assert [fault for method, fault in faults.requests if fault] == ["503"] * (2 * tries)
    assert noted(book) == Counter(votes_of(counts_of(clean)))
    assert counts_of(stored(address, endpoint)) == counts_of(clean)
    waiting = [r for r in caplog.records if "rows wait in memory" in r.getMessage()]
    assert len(waiting) == 2
    assert all(r.levelno == logging.WARNING for r in waiting)


def test_store_that_stays_away_ends_the_run_and_the_same_command_continues(
    world, clean, endpoint, address, book
):
    faults = Faults({"PUT": ["", "", *["503"] * 1000]}, where="/units/")
    with proxied(endpoint, faults) as url, pytest.raises(StoreError) as caught:
        start(world, address, url, book)
    message = str(caught.value)
    assert re.search(rf"cannot write {address}/units/part-\S+\.parquet ", message)
    assert "check the endpoint and the network, then run the same command again" in message
    assert re.search(r"\d+ rows are not stored", message)
    assert "what is stored stays good, and the same command continues from it" in message
    before = votes_of(counts_of(stored(address, endpoint)))
    assert 0 < len(before) < clean.outcome.votes
    begun = noted(book)
    with proxied(endpoint, Faults()) as url:
        run = start(world, address, url, book)
    assert run.outcome.complete
    assert noted(book) - begun == Counter(votes_of(counts_of(clean)) - before)
    assert counts_of(stored(address, endpoint)) == counts_of(clean)


DIGITS = """
name = "two-digits"
[dataset]
name = "digits"
first = 2
[votes]
n0 = 10
n = 20
unit = 10
radii = [0.0]
[execution]
flush_s = 0.001
item_s = 0.05
"""


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_commands_on_s3_do_what_they_do_on_disk(endpoint, address, tmp_path, monkeypatch, capsys):
    """Endpoint and credentials from the environment, as aws's own tools take them."""
    (tmp_path / "two.toml").write_text(DIGITS)

    def diffcert(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["diffcert", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        # However the lines were cut.
        return ended.value.code or 0, " ".join(said.out.split()), " ".join(said.err.split())

    command = ("certify", str(tmp_path / "two.toml"), "--local", "--run", address)
    faults = Faults({"PUT": ["", *["503"] * 1000]}, where="/units/")
    with proxied(endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        code, _, err = diffcert(*command)
        assert code == 1
        assert "error: cannot write s3://" in err
        assert "the same command continues" in err
        assert "Traceback" not in err
        faults.plan.clear()
        assert diffcert(*command)[0] == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert "certify again" not in diffcert("status", address)[1]
    code, out, _ = diffcert("compact", address, "--delete-sources")
    assert (code, "generation 1" in out) == (0, True)
    assert "no difference" in diffcert("verify", address, "--sample", "2")[1]
    before = diffcert("report", address)[1]
    assert "Certified accuracy, two-digits" in before
    code, again, _ = diffcert(*command)
    assert (code, before.startswith(again.split("results:")[0])) == (0, True)
    store = RunStore.open(address)
    assert store.location.exists("report/index.html")
    assert len(store.location.list("compact")) == 1
    assert store.location.list("units") == []


def test_credentials_of_a_profile_open_the_store(endpoint, address, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[certifier]\naws_access_key_id = PROFILE-ID\naws_secret_access_key = PROFILE-SECRET\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = RunStore.create(address, b"x = 1\n", {"endpoint_url": endpoint, "profile": "certifier"})
    assert store.run_document() == b"x = 1\n"
