"""A run is read with plain pandas, pyarrow datasets and DuckDB, before and after a compaction."""

from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import pytest

from diffcert_ray import certify
from diffcert_ray.storage.compaction import compact
from diffcert_ray.storage.schemas import UNIT_KEY
from tests.edited_parts import copied_part
from tests.worlds import counts_of, settings, small_world

duckdb = pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of many parts, in which a part is there twice."""
    world, dataset = small_world()
    folder = tmp_path_factory.mktemp("readers") / "run"
    execution = {"item_s": 0.01, "flush_s": 1e-3}
    run = certify(
        settings(execution=execution), folder, local=True, denoiser=world, dataset=dataset
    )
    location = run.store.location
    copied_part(Path(folder, location.list("units")[0]), "again")
    return run


def unit_files(run):
    """All files that hold units: parts, and what compactions made of them."""
    folder = Path(run.address)
    return [str(f) for part in ("units/*", "compact/*/units-*") for f in folder.glob(part)]


def pandas_counts(run):
    """The one line of the README, over the files that hold the units now."""
    frame = pd.concat(map(pd.read_parquet, unit_files(run))).drop_duplicates(list(UNIT_KEY))
    return as_counts(frame)


def dataset_counts(run):
    table = ds.dataset(unit_files(run), format="parquet").to_table()
    return as_counts(table.to_pandas().drop_duplicates(list(UNIT_KEY)))


def duckdb_counts(run):
    key = ", ".join(UNIT_KEY)
    query = f"SELECT DISTINCT ON ({key}) * FROM read_parquet({unit_files(run)})"
    return as_counts(duckdb.sql(query).df())


def as_counts(frame):
    return {
        (r.sigma, r.image_id, r.stream, r.start, r.stop): dict(
            zip(r.classes.tolist(), r.counts.tolist(), strict=True)
        )
        for r in frame.itertuples()
    }


READERS = [pandas_counts, dataset_counts, duckdb_counts]


def test_three_readers_see_every_unit_once_before_and_after_compactions(run):
    expected, certificates = counts_of(run), run.certificates()
    assert len(run.store.location.list("units")) > 3
    assert [read(run) for read in READERS] == [expected] * 3
    compact(run.store)  # the parts stay: what is there twice counts once
    assert [read(run) for read in READERS] == [expected] * 3
    compact(run.store, delete_sources=True)
    assert run.store.location.list("units") == []
    assert [read(run) for read in READERS] == [expected] * 3
    assert counts_of(run) == expected
    assert run.certificates().equals(certificates)


def test_sql_over_a_folder_gives_the_accuracy_that_the_run_reports(run):
    files = [f"{run.address}/{n}" for n in run.store.location.list("certificates")]
    files = files or [str(p) for p in ds.dataset(f"{run.address}/compact", format="parquet").files]
    files = [f for f in files if "certificates" in f]
    query = f"SELECT avg(correct::INT) FROM read_parquet({files})"
    assert duckdb.sql(query).fetchall()[0][0] == run.certificates()["correct"].mean()
