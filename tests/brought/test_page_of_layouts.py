"""The page of checkpoints and datasets: every test that its tables name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "checkpoints-and-datasets.md"


def test_every_test_that_the_tables_name_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text("utf-8"))
    assert len(named) > 25
    absent = [
        (file, test)
        for file, test in named
        if not (ROOT / file).is_file()
        or (test and not re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.M))
    ]
    assert absent == []


def test_every_dataset_that_can_be_named_has_its_row():
    from diffcert_ray.datasets.loading import READERS

    rows = [r for r in PAGE.read_text("utf-8").splitlines() if r.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    assert set(READERS) - names == set()
