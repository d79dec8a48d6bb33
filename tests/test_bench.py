"""The bench: its measurements against what is known exactly, its file, and the command."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from diffcert_ray.checkpoints.head_file import load_heads
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.edm import EdmDenoiser
from diffcert_ray.engine.memory import (
    activation_bytes,
    example_rows,
    network_bytes,
    out_of_memory,
    peak_bytes,
)
from diffcert_ray.engine.speed import (
    Forward,
    Rate,
    batch_rates,
    best_rate,
    smallest_good_batch,
)
from diffcert_ray.engine.watch import PARTS
from diffcert_ray.method.diffusion_base import base_classifier
from diffcert_ray.tools.bench_file import read_reference
from diffcert_ray.tools.comparison import Engine, compare
from diffcert_ray.tools.floor import Floor, Speeds, floor
from diffcert_ray.tools.measure import Schedule, Subject, measure, part_seconds, write_trace
from diffcert_ray.tools.scales import SCALES, random_network
from tests.worlds import settings, small_world


class Linear(nn.Module):
    """A network of one product of matrices: 16 x 16 for each image of 16 pixels."""

    image_shape, num_classes, has_unconditional, s_range = (1, 4, 4), 3, True, (0.01, 50.0)

    def __init__(self, refuses: int | None = None, fails: str = "out of memory") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16), requires_grad=False)
        self.refuses, self.fails, self.seen = refuses, fails, []

    def forward(self, u, s, y=None):
        self.seen.append(len(u))
        if self.refuses is not None and len(u) >= self.refuses:
            raise RuntimeError(self.fails)
        return (u.flatten(1) @ self.weight).reshape(u.shape)


def world_subject() -> Subject:
    world, data = small_world()
    base = base_classifier(load_config(settings(numerics={"batch": 16})), world, 0.25)
    return Subject("world", base, data.image, data.ids)


def test_live_tensors_are_counted_while_they_live_and_views_are_not():
    def work():
        a = torch.zeros(1000)
        b = a[:500] + 1.0  # 2000 bytes beside 4000
        del a
        return torch.ones(250) + b[:250]  # 1000 and 1000 beside 2000

    assert peak_bytes(work, "cpu") == 6000


def test_operations_and_bytes_of_a_product_of_matrices_are_exact():
    network = Linear()
    found = floor(network, 8, "cpu", Speeds(1e9, 1e9))
    assert found.flop == 2 * 16 * 16
    weights = 16 * 16 * 4
    assert network_bytes(network) == weights
    assert found.bytes == 2 * 16 * 4 + weights / 8  # in and out, and a share of the weights
    assert found.nfe_per_s == pytest.approx(1e9 / 512)
    slow_memory = Floor(found.flop, found.bytes, 8, Speeds(1e9, 1e3))
    assert slow_memory.nfe_per_s == pytest.approx(1e3 / found.bytes)


def test_activations_grow_with_the_batch_and_hold_input_and_output():
    network = Linear()
    four, eight = (activation_bytes(network, batch, "cpu") for batch in (4, 8))
    assert four >= 4 * 2 * 16 * 4
    assert four < eight <= 2 * four


def test_a_batch_that_does_not_fit_ends_the_search_and_is_no_error():
    rates = batch_rates(Linear(refuses=32), [8, 16, 32, 64], "cpu", rounds=1, round_s=0.0,
                        patience=9)  # fmt: skip
    assert [r.batch for r in rates] == [8, 16, 32]
    assert rates[-1].nfe_per_s is None
    assert best_rate(rates).batch in (8, 16)


def test_an_error_that_is_not_about_memory_is_not_swallowed():
    with pytest.raises(RuntimeError, match="illegal instruction"):
        batch_rates(Linear(refuses=1, fails="illegal instruction"), [8], "cpu", rounds=1)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_a_batch_above_the_memory_limit_is_not_evaluated():
    network = Linear()
    limit = network_bytes(network) + activation_bytes(network, 2, "cpu") * 20 // 2
    network.seen.clear()
    rates = batch_rates(network, [16, 32], "cpu", memory_limit=limit, rounds=1, round_s=0.0)
    assert [r.nfe_per_s is None for r in rates] == [False, True]
    assert 32 not in network.seen
    with pytest.raises(ValueError, match="no batch fits into memory"):
        best_rate([Rate(8, None)])


def test_example_rows_are_inside_the_networks_range():
    u, s, y = example_rows(Linear(), 8, "cpu")
    assert u.shape == (8, 1, 4, 4)
    assert float(s.min()) >= 0.01
    assert set(y.tolist()) == {0, 1, 2}


def test_comparison_counts_evaluations_of_votes_and_fillings_apart():
    subject = world_subject()
    engine = Engine(subject.base, subject.image, subject.image_ids)
    engine.learn()
    bare = Forward(subject.base.denoiser, 16, "cpu")
    found = compare(engine, bare, subject.base, rounds=3, item_s=0.01, bare_s=0.005)
    assert len(found.ratios) == 3
    assert found.ratio == sorted(found.ratios)[1]
    assert (found.nfe + found.padded) % 16 == 0
    assert found.votes % 3 == 0
    assert found.nfe / found.votes > subject.base.denoiser.num_classes


def test_every_item_of_the_engine_has_votes_of_its_own(monkeypatch):
    subject, cast = world_subject(), []
    engine = Engine(subject.base, subject.image, subject.image_ids)
    monkeypatch.setattr(
        "diffcert_ray.tools.comparison.evaluate_item",
        lambda base, item, image, watch: cast.append(item),
    )
    for votes in (7, 12, 1):
        engine.evaluate(votes)
    assert [item.votes for item in cast] == [7, 12, 1]
    votes = [(p.unit.image_id, v) for i in cast for p in i.parts for v in range(p.start, p.stop)]
    assert len(votes) == len(set(votes)) == 20


def with_a_head() -> Subject:
    """The digits as the preset casts their votes: a head proposes, which takes time of its own."""
    data = load_dataset({"name": "digits", "first": 4})
    config = load_config("digits", ["numerics.batch=16", "noise_levels.levels=16"])
    head = load_heads("digits")[0.25]
    base = base_classifier(config, load_denoiser("digits"), 0.25, head=head)
    return Subject("digits", base, data.image, data.ids)


def test_parts_of_the_engine_add_up_to_the_whole():
    subject = with_a_head()
    engine = Engine(subject.base, subject.image, subject.image_ids)
    spent = part_seconds(engine, "cpu", 40)
    assert set(spent) == {*PARTS, "rest"}
    assert all(spent[part] > 0 for part in PARTS)
    assert spent["rest"] > -0.01


def test_engine_takes_the_batch_that_calibration_would_where_it_is_open():
    schedule = Schedule(rounds=1, item_s=0.05, bare_s=0.001, search_s=0.0005, largest_batch=64)
    fixed = measure(world_subject(), Speeds(1e9, 1e9), schedule)
    assert fixed.comparison.batch == fixed.floor.batch == 16
    found = measure(replace(world_subject(), batch_open=True), Speeds(1e9, 1e9), schedule)
    chosen = smallest_good_batch(found.rates, schedule.item_s, short=True)
    assert found.comparison.batch == found.floor.batch == chosen
    assert chosen != 16  # a batch of the small world takes about the same time whatever its size


def test_trace_names_the_parts_of_the_engine(tmp_path):
    write_trace(with_a_head(), tmp_path / "trace.json", 0.01, 1000.0)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert set(PARTS) <= {event.get("name") for event in events}


def test_scales_are_the_published_ones_and_take_no_class():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in EdmDenoiser(c).parameters()) for c in SCALES.values()]
    assert [round(n / 1e6, 1) for n in counts] == [0.2, 0.7, 55.7, 295.9]
    assert random_network("digits", "cpu").has_unconditional
    with pytest.raises(ValueError, match="scale 'huge' is none of digits"):
        random_network("huge", "cpu")


def test_bench_prints_a_table_writes_a_file_and_compares_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("diffcert_ray.tools.floor.SIDE", {"cpu": 64})
    monkeypatch.setattr("diffcert_ray.tools.floor.COPIED_BYTES", {"cpu": 2**20})
    file, reference = tmp_path / "bench.json", tmp_path / "before.json"
    before = {"name": "digits (random)", "rates": [{"nfe_per_s": 1.0}], "comparison": None}
    reference.write_text(json.dumps({"networks": [before]}))
    arguments = ["bench", "--rounds", "1", "--item-s", "0.1", "--largest-batch", "8",
                 "--set", "numerics.batch=8", "--set", "noise_levels.levels=2", "--scales",
                 "digits", "--json", str(file), "--against", str(reference)]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "engine / bare" in done.output
    [row] = json.loads(file.read_text())["networks"]
    assert round(row["parameters"] / 1e3) == 180
    assert row["comparison"]["engine_nfe_per_s"] > 0
    assert row["memory"]["engine_by_activations"] > 0
    rate = read_reference(file)["digits (random)"]["rates"][0]["nfe_per_s"]
    assert f"before 1: {rate:.3f}" in done.output
    reference.write_text("{}")
    with pytest.raises(ValueError, match="is no file of `diffcert bench --json`"):
        read_reference(reference)
