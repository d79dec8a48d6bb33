"""Votes of a trained classifier: hand-computed votes, batches, targets, runs, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from diffcert_ray import Classifier, certify, open_run
from diffcert_ray.checkpoints.image_classifier import ImageClassifier
from diffcert_ray.commands.main import app
from diffcert_ray.config.identity import canonical_hash, votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.conventions import NOT_TARGET
from diffcert_ray.engine.votes import evaluate_item
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.method.trained_base import TrainedBase
from diffcert_ray.run.estimate import estimate
from diffcert_ray.votes.units import Item, Part, Unit
from tests.worlds import counts_of, settings, small_world

SIGMA = 0.25
UNIT = Unit(SIGMA, 7, "estimate", 0, 50)
IMAGE = np.linspace(0.45, 0.55, 16, dtype=np.float32).reshape(1, 4, 4)


class Linear(nn.Module):
    """Logits that are known functions of the pixels, near to each other on a grey image."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn((4, 16), generator=torch.Generator().manual_seed(3))
        self.weight = nn.Parameter(drawn - drawn.mean(dim=1, keepdim=True))
        self.bias = nn.Parameter(torch.tensor([0.3, 0.0, -0.3, 0.6]))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


class Halving:
    """A denoiser that returns half of what it is shown."""

    image_shape, num_classes, has_unconditional, s_range = (1, 4, 4), 4, True, (0.0, 9.0)

    def __call__(self, u, s, y=None):
        assert y is None
        assert s.tolist() == [2 * SIGMA] * len(u)
        return u / 2


def noisy_pixels(votes: range, image: np.ndarray = IMAGE, image_id: int = 7) -> np.ndarray:
    """x + sigma delta of each vote, straight from the addresses of the diffusion classifiers."""
    vote = np.array(votes)
    source = NoiseSource(0, SIGMA, 16)
    steps = source.steps(np.full_like(vote, image_id), np.ones_like(vote), vote).numpy()
    return (np.rint(image.reshape(1, 16).astype(np.float64) * 65280) + steps) / 65280


def by_hand(x: np.ndarray, mean: float = 0.0, std: float = 1.0) -> list[int]:
    weight, bias = (p.detach().double().numpy() for p in Linear().parameters())
    return ((x - mean) / std @ weight.T + bias).argmax(1).tolist()


def base_of(network=None, denoiser=None, batch: int = 16, **normalisation) -> TrainedBase:
    classifier = ImageClassifier(network or Linear(), **normalisation)
    return TrainedBase(classifier, denoiser, SIGMA, seed=0, batch=batch)


def tally(base, *parts):
    return evaluate_item(base, Item(0, SIGMA, parts), lambda _: IMAGE)


def test_a_vote_is_the_argmax_on_the_noise_of_the_diffusion_classifiers():
    classifier = Classifier(None, sigma=SIGMA, method="classify", classifier=Linear())
    votes = classifier.votes(IMAGE, 7, "estimate", 0, 50)
    expected = by_hand(noisy_pixels(range(50)))
    assert len(set(expected)) > 1
    assert votes.tolist() == expected
    assert classifier.nfe == 50


def test_a_denoised_vote_is_the_argmax_on_the_clipped_estimate():
    classifier = Classifier(Halving(), sigma=SIGMA, method="denoise-classify", classifier=Linear())
    votes = classifier.votes(IMAGE, 7, "estimate", 0, 50)
    u = np.clip((2 * noisy_pixels(range(50)) - 1) / 2, -1, 1)
    assert votes.tolist() == by_hand((u + 1) / 2)
    assert votes.tolist() != by_hand(noisy_pixels(range(50)))
    assert classifier.nfe == 100


def test_an_estimate_outside_the_pixels_range_is_clipped():
    class Far(Halving):
        def __call__(self, u, s, y=None):
            return 5 * u

    shown = []

    class Seen(Linear):
        def forward(self, x):
            shown.append((x.min().item(), x.max().item()))
            return super().forward(x)

    base_of(Seen(), Far()).logits(torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4))
    assert shown == [(0.0, 1.0)]


def test_mean_and_std_are_in_pixel_units():
    settings_ = {"classifier": {"mean": [0.4], "std": [0.2]}}
    found = Classifier(
        None, sigma=SIGMA, method="classify", classifier=Linear(), settings=settings_
    ).votes(IMAGE, 7, "estimate", 0, 50)
    x = noisy_pixels(range(50))
    assert found.tolist() == by_hand(x, 0.4, 0.2)
    assert found.tolist() != by_hand(x)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_votes_depend_neither_on_the_batch_nor_on_the_neighbours(batch):
    whole = tally(base_of(), Part(UNIT, 0, 50))
    other = Unit(SIGMA, 9, "select", 0, 20)
    cut = tally(base_of(batch=batch), Part(UNIT, 30, 50), Part(other, 3, 12), Part(UNIT, 0, 30))
    assert cut.tallies[0] == whole.tallies[0]
    assert cut.padded == -59 % batch


def test_a_vote_about_one_class_says_whether_it_is_that_class():
    expected = by_hand(noisy_pixels(range(50)))
    found = tally(base_of(), Part(UNIT, 0, 50, target=expected[0])).tallies[0]
    hits = expected.count(expected[0])
    assert found.counts == {expected[0]: hits, NOT_TARGET: 50 - hits}
    assert (found.target, found.nfe) == (expected[0], 50)


def test_logits_that_are_not_finite_leave_the_vote_unresolved():
    class Sometimes(Linear):
        def forward(self, x):
            found = super().forward(x)
            found[x[:, 0, 0, 0] > 0.5, 1] = float("nan")
            return found

    x = noisy_pixels(range(50))
    broken = x[:, 0] > 0.5
    votes = np.where(broken, NOT_TARGET, by_hand(x))
    found = tally(base_of(Sometimes()), Part(UNIT, 0, 50)).tallies[0]
    assert 0 < broken.sum() < 50
    assert found.counts == {int(c): int((votes == c).sum()) for c in np.unique(votes)}


def test_an_item_at_another_sigma_is_refused():
    with pytest.raises(ValueError, match=r"at sigma 0\.5, the worker at 0\.25"):
        evaluate_item(base_of(), Item(3, 0.5, ()), lambda _: IMAGE)


def test_a_denoiser_without_unconditional_mode_or_for_other_noise_is_refused():
    conditional = Halving()
    conditional.has_unconditional = False
    with pytest.raises(ConfigError, match=r"trained without label dropout.*classify"):
        base_of(denoiser=conditional)
    narrow = Halving()
    narrow.s_range = (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"noise level 0\.5 in model space.*made for 1 to 2"):
        base_of(denoiser=narrow)


@pytest.mark.parametrize(
    ("denoiser", "method", "classifier"),
    [(None, "apndc", None), (None, "classify", None), (None, "denoise-classify", Linear()),
     (Halving(), "apndc", Linear())],
)  # fmt: skip
def test_networks_that_do_not_go_with_the_method_are_refused(denoiser, method, classifier):
    with pytest.raises(ConfigError, match="every other method a denoiser"):
        Classifier(denoiser, sigma=SIGMA, method=method, classifier=classifier)


def run_of(folder, world, method: str = "classify", **tables):
    denoiser = world[0] if method == "denoise-classify" else None
    return certify(
        settings(method={"name": method}, **tables), folder, local=True, denoiser=denoiser,
        dataset=world[1], classifier=Linear(),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["classify", "denoise-classify"])
def test_a_run_has_the_counts_of_its_votes_also_when_resumed(method, tmp_path):
    world = small_world()
    whole = run_of(tmp_path / "whole", world, method)
    assert whole.outcome.complete
    asked = 6 * 80 * (1 if method == "classify" else 2)
    assert whole.units()["nfe"].sum() == asked
    assert set(whole.certificates()["method"]) == {method}
    stops = iter([False, True, True, True])
    half = certify(
        settings(method={"name": method}, execution={"item_s": 0.001}), tmp_path / "half",
        local=True, denoiser=world[0], dataset=world[1], classifier=Linear(),
        images=(0, 3), should_stop=lambda: next(stops, True),
    )  # fmt: skip
    assert len(counts_of(half)) < len(counts_of(whole))
    again = run_of(tmp_path / "half", world, method)
    assert counts_of(again) == counts_of(whole)
    if method == "classify":
        image = world[1].image(100)
        expected = by_hand(noisy_pixels(range(20), image, 100))
        counts = counts_of(whole)[SIGMA, 100, "estimate", 0, 20]
        assert counts == {k: expected.count(k) for k in set(expected)}


def test_target_votes_count_the_chosen_class_as_complete_ones_do(tmp_path):
    world = small_world()
    complete = run_of(tmp_path / "a", world).certificates()
    target = run_of(tmp_path / "b", world, votes={"estimate": "target"}).certificates()
    assert target["n_a"].tolist() == complete["n_a"].tolist()


def test_a_run_refuses_another_classifier(tmp_path):
    world = small_world()
    run_of(tmp_path / "a", world)
    other = Linear()
    other.weight.data[0] += 1
    with pytest.raises(ConfigError, match=r"weights\.classifier: run"):
        certify(
            settings(method={"name": "classify"}), tmp_path / "a", local=True, dataset=world[1],
            classifier=other,
        )  # fmt: skip


def test_a_classifier_that_the_method_does_not_use_is_refused(tmp_path):
    world = small_world()
    with pytest.raises(ConfigError, match=r'method\.name = "apndc" uses none'):
        certify(
            settings(), tmp_path / "a", local=True, denoiser=world[0], dataset=world[1],
            classifier=Linear(),
        )  # fmt: skip


def test_the_votes_id_depends_on_the_normalisation_and_not_on_noise_levels():
    def id_of(**tables):
        config = load_config(settings(method={"name": "classify"}, **tables))
        return canonical_hash(votes_identity(config, {"classifier": "ab"}))

    assert id_of() == id_of(noise_levels={"levels": 99}) == id_of(sift={"z": 5.0})
    assert id_of() != id_of(classifier={"mean": [0.5]})
    assert id_of() != id_of(numerics={"batch": 33})


def test_a_classifiers_table_changes_no_id_of_a_diffusion_classifier():
    def id_of(**tables):
        return votes_identity(load_config(settings(**tables)), {"denoiser": "ab"})

    assert id_of() == id_of(classifier={"mean": [0.5]})
    assert not any(key.startswith("classifier") for key in id_of())


@pytest.mark.parametrize("method", ["classify", "denoise-classify"])
def test_the_command_certifies_a_preset(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["dataset.first=2", "votes.n0=5", "votes.n=20", "votes.unit=10", "votes.radii=[0.0]"]
    changes = [part for size in sizes for part in ("--set", size)]
    found = CliRunner().invoke(app, ["certify", f"digits-{method}", "--local", *changes])
    assert found.exit_code == 0, found.output
    run = open_run(tmp_path / "runs" / f"digits-{method}")
    assert set(run.certificates()["method"]) == {method}
    assert run.units()["nfe"].sum() == 2 * 25 * (1 if method == "classify" else 2)


def test_a_plan_says_the_evaluations_of_a_vote():
    from diffcert_ray.run.plan import plan_of

    world = small_world()
    config = load_config(settings(method={"name": "denoise-classify"}))
    weights = weights_of(config, world[0], Linear())
    worker = WorkerSpec(config, weights, "cpu", *world, Linear()).load("plan")
    found = estimate(plan_of(config, world[1]), worker, trial_s=0.0).sigmas[0]
    assert (found.nfe_per_vote, found.nfe_per_vote_limit, found.votes) == (2.0, 2, 480)
