"""Compiled denoisers: the same votes, a numerics kind of their own, and a clear error without."""

import shutil
import warnings

import pytest
import torch
from torch import nn

from diffcert_ray.config.loading import load_config
from diffcert_ray.denoisers.device import compile_denoiser
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import CheckpointError
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import small_world

SMALL = {"noise_levels": {"levels": 8}, "numerics": {"batch": 16}, "dataset": {"first": 2}}


class Templates(nn.Module):
    """A denoiser of one line, which compiles in seconds: pulls images toward their class's own."""

    image_shape, num_classes, has_unconditional, s_range = (1, 8, 8), 10, True, (0.002, 80.0)

    def __init__(self):
        super().__init__()
        means = torch.randn(11, 64, generator=torch.Generator().manual_seed(0))
        self.register_buffer("means", means)

    def forward(self, u, s, y=None):
        rows = torch.full_like(s, -1, dtype=torch.int64) if y is None else y
        pull = (s**2 / (s**2 + 0.25))[:, None]
        return torch.lerp(u.flatten(1), self.means[rows + 1], pull).view_as(u)


class Shrinking(nn.Module):
    """A denoiser that only shrinks, so that what is seen of a noisy image stays noisy."""

    image_shape, num_classes, has_unconditional, s_range = (1, 8, 8), 10, True, (0.002, 80.0)

    def forward(self, u, s, y=None):
        return u * (1 / (1 + s))[:, None, None, None]


def worker(denoiser, compiled: bool):
    numerics = SMALL["numerics"] | {"compile": compiled}
    config = load_config(SMALL | {"numerics": numerics})
    return WorkerSpec(config, weights_of(config, denoiser), denoiser=denoiser).load(
        "test", tried=False
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler (g++)")
def test_a_compiled_network_casts_the_same_votes_wherever_its_rows_stand():
    denoiser = Templates()
    eager = worker(denoiser, compiled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        compiled = worker(denoiser, compiled=True)
    assert compiled.networks.denoiser._compiled_call_impl is not None
    assert denoiser._compiled_call_impl is None  # the caller's own stays as it is
    assert not compiled.numerics.endswith("-positional")
    image_id = int(eager.dataset.ids[0])
    unit = Unit(0.25, image_id, "estimate", 0, 40)
    item = Item(0, 0.25, (Part(unit, 0, 40),))
    counts = [dict(w.cast_votes(item).tallies[0].counts) for w in (eager, compiled)]
    assert len(counts[0]) > 1
    assert counts[0] == counts[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler (g++)")
def test_only_the_first_worker_of_a_node_compiles_and_the_second_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said, kinds = [], set()
    for _ in range(2):
        torch._dynamo.reset()  # as in a process of its own
        torch._dynamo.utils.counters.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            loaded = worker(Shrinking(), compiled=True)
        said.append(loaded.compiled)
        kinds.add(loaded.numerics)
    assert said == ["anew", "from the cache"]
    assert len(kinds) == 1
    assert worker(Templates(), compiled=False).compiled == "no"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler (g++)")
@pytest.mark.parametrize("method", ["classify", "denoise-classify"])
def test_a_compiled_classifier_casts_the_same_votes(method):
    sigma = 2.0  # so that votes differ
    torch.manual_seed(0)  # as they do for most random classifiers, not for all
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    denoiser = Shrinking() if method == "denoise-classify" else None
    counts, networks = [], []
    for compiled in (False, True):
        numerics = SMALL["numerics"] | {"compile": compiled}
        tables = {"method": {"name": method}, "votes": {"sigmas": [sigma]}}
        config = load_config(SMALL | {"numerics": numerics, "noise_levels": {"max": 9.0}} | tables)
        weights = weights_of(config, denoiser, classifier)
        spec = WorkerSpec(config, weights, denoiser=denoiser, classifier=classifier)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            loaded = spec.load("test")
        unit = Unit(sigma, int(loaded.dataset.ids[0]), "estimate", 0, 40)
        counts.append(
            dict(loaded.cast_votes(Item(0, sigma, (Part(unit, 0, 40),))).tallies[0].counts)
        )
        networks.append(loaded.networks.classifier._network._compiled_call_impl is not None)
    assert networks == [False, True]
    assert len(counts[0]) > 1
    assert counts[0] == counts[1]


def test_a_denoiser_that_is_no_module_is_refused():
    with pytest.raises(CheckpointError, match="no torch module"):
        compile_denoiser(small_world()[0])


def test_without_a_compiler_the_remedy_is_named(monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "missing"),))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(CheckpointError, match=r"cannot be compiled.*numerics\.compile = false"):
        worker(Templates(), compiled=True)
