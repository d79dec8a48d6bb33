"""The same run on Ray: same votes as in one process, whatever the actors and items."""

import pytest

from diffcert_ray import certify
from tests.worlds import check_same, settings

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    "tables",
    [
        {"execution": {"actors": 1, "item_s": 5.0}},
        {"execution": {"actors": 2, "item_s": 0.05}},
        {"execution": {"actors": 2, "item_s": 0.05, "stages": "split"}, "sift": {"levels": 1}},
    ],
    ids=["one-actor-long-items", "two-actors-short-items", "two-actors-split-stages"],
)
def test_counts_on_ray_equal_those_of_one_process_bit_for_bit(
    tables, clean, world, local_ray, tmp_path
):
    run = certify(settings(**tables), tmp_path / "r", denoiser=world[0], dataset=world[1])
    check_same(run, clean)
