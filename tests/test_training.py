"""Training of denoisers: it learns, repeats, continues bit for bit, sees only what it is given."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffcert_ray.checkpoints.files import read_metadata
from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.config.training import load_denoiser_training
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.errors import (
    CheckpointError,
    ConfigError,
    CorruptImageError,
    DatasetError,
    TrainingError,
)
from diffcert_ray.run.certify import certify
from diffcert_ray.tools.training import denoising_loss, train_denoiser
from diffcert_ray.tools.training.denoiser import denoiser_learner, draw, loss_of_all
from diffcert_ray.tools.training.images import TrainingImages
from diffcert_ray.tools.training.learner import EagerStep, RecordedStep
from diffcert_ray.tools.training.loop import Loop
from diffcert_ray.tools.training.networks import configuration_of, digits_configuration
from tests.trainings import denoiser_training, folder_of, stopping_after, stripes

STATE, MODEL = "state.safetensors", "model.safetensors"


@pytest.fixture(scope="module")
def digits():
    return load_dataset({"name": "digits", "split": "train"})


def model_of(folder):
    return load_file(folder / MODEL)


def equal(first, second):
    """Bit for bit; held-out losses that were not taken are NaN on both sides."""
    return first.keys() == second.keys() and all(
        first[k].numpy().tobytes() == second[k].numpy().tobytes() for k in first
    )


# --- what a step is


def test_loss_is_the_weighted_error_of_the_denoiser():
    def halving(u, s, y):
        return u / 2

    u, eps = torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2, 2), 1.0)
    s = torch.tensor([0.5, 1.0])
    # errors ((0.5 + s) / 2 - 0.5)^2 = 0, 0.0625; lambda(1) = (1 + 0.25) / 0.25 = 5
    loss = denoising_loss(halving, u, torch.tensor([0, 1]), s, eps, 0.5)
    assert loss.item() == pytest.approx((0 + 5 * 0.0625) / 2)


def test_labels_are_dropped_at_the_stated_rate_and_never_changed(digits):
    torch.manual_seed(0)
    settings = denoiser_training(
        "training.batch=20000", "training.p_mean=0.2", "training.p_std=0.7"
    ).training
    u, y, s, eps = draw(settings, TrainingImages(digits))
    # 4 standard deviations each, false alarm 6e-5 each (and the seed is fixed)
    assert (y == -1).float().mean().item() == pytest.approx(0.15, abs=4 * 0.0025)
    assert s.log().mean().item() == pytest.approx(0.2, abs=4 * 0.7 / 141)
    assert s.log().std().item() == pytest.approx(0.7, abs=4 * 0.7 / 200)
    assert eps.std().item() == pytest.approx(1.0, abs=0.01)
    kept = {(image.numpy().tobytes(), int(label)) for image, label in zip(u, y, strict=True)}
    known = {
        ((image * 2 - 1).tobytes(), int(label))
        for image, label in zip(digits.pixels, digits.labels, strict=True)
    }
    assert {pair for pair in kept if pair[1] >= 0} <= known


def test_images_are_mirrored_and_moved_only_where_that_is_asked_for():
    values = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) / 16
    data = Dataset("one", "all", np.array([5]), np.array([0]), values, ("a",), "")
    torch.manual_seed(0)

    def seen(**varied):
        x, _ = TrainingImages(data, **varied).draw(400)
        return {image.numpy().tobytes() for image in x}

    def moved(dy, dx):
        rows, columns = (np.clip(np.arange(4) + by, 0, 3) for by in (dy, dx))
        return values[0][:, rows][:, :, columns].tobytes()

    assert seen() == {values.tobytes()}
    assert seen(flip=True) == {values.tobytes(), values[..., ::-1].tobytes()}
    assert seen(shift=1) == {moved(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_images_of_bytes_are_the_same_as_their_floats():
    data = stripes()
    images = TrainingImages(data)
    assert images._values.dtype == torch.uint8
    torch.manual_seed(0)
    x, y = images.draw(100)
    known = {(data.image(i).tobytes(), int(data.labels[i])) for i in data.ids.tolist()}
    assert {(a.numpy().tobytes(), int(b)) for a, b in zip(x, y, strict=True)} == known


# --- a training


def test_training_reduces_the_loss(tmp_path):
    settings = denoiser_training("training.steps=150", "training.batch=32")
    trained = train_denoiser(settings, tmp_path, dataset=stripes())
    losses = [loss for _, loss, *_ in trained.curve]
    assert len(losses) == 150
    assert np.mean(losses[-15:]) < 0.7 * np.mean(losses[:5])


def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path):
    data = stripes()
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train_denoiser(denoiser_training(f"training.seed={seed}"), tmp_path / name, dataset=data)
    first, again, other = (model_of(tmp_path / name) for name in ("first", "again", "other"))
    assert equal(first, again)
    assert not equal(first, other)


def test_training_leaves_torchs_generator_and_threads_as_they_were(tmp_path):
    seen, before = [], torch.get_num_threads()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torch.set_num_threads(2)
    try:
        train_denoiser(
            denoiser_training("training.steps=2"),
            tmp_path,
            dataset=stripes(),
            on_progress=lambda standing: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]
    assert torch.equal(torch.rand(3), expected)


def test_the_average_of_the_weights_is_what_is_kept(tmp_path):
    train_denoiser(denoiser_training(), tmp_path, dataset=stripes())
    state, model = load_file(tmp_path / STATE), model_of(tmp_path)
    assert all(torch.equal(state[f"average.{name}"], tensor) for name, tensor in model.items())
    assert any(not torch.equal(state[f"network.{name}"], tensor) for name, tensor in model.items())


def test_the_digits_preset_is_the_shipped_model_s_recipe(digits):
    shipped = read_metadata("digits")
    settings = load_denoiser_training("digits")
    asked = settings.training.model_dump()
    told = {k: v for k, v in shipped["recipe"].items() if k in asked}
    assert {k: asked[k] for k in told} == told
    assert len(told) >= 9
    assert digits_configuration() == load_denoiser("digits").configuration
    assert shipped["recipe"]["dataset_fingerprint"] == digits.fingerprint
    assert (settings.dataset.name, settings.dataset.split) == ("digits", "train")


def test_a_file_says_how_it_was_made_and_on_what(tmp_path, digits):
    settings = load_denoiser_training("digits", ("training.steps=2", "training.batch=8"))
    trained = train_denoiser(settings, tmp_path)
    recipe = read_metadata(trained.model)["recipe"]
    test = load_dataset({"name": "digits", "split": "test"})
    assert recipe["dataset"] == "digits train"
    assert recipe["dataset_fingerprint"] == digits.fingerprint != test.fingerprint
    assert (recipe["steps"], recipe["batch"], recipe["seed"]) == (2, 8, 0)
    assert recipe["images"] == len(digits)
    assert recipe["torch"] == torch.__version__
    assert recipe["seconds"] > 0


@pytest.mark.parametrize("family", ["ddpmpp", "ncsnpp", "adm"])
def test_each_family_learns_and_its_file_is_read(tmp_path, family):
    settings = denoiser_training(
        f"network.family={family}", "network.channel_mult=[1, 2]", "training.steps=3"
    )
    trained = train_denoiser(settings, tmp_path, dataset=stripes(side=8))
    denoiser = load_denoiser(trained.model)
    assert (denoiser.image_shape, denoiser.num_classes) == ((1, 8, 8), 3)
    assert denoiser.has_unconditional


def test_without_label_dropout_there_is_no_mode_without_a_class(tmp_path):
    settings = denoiser_training("training.label_dropout=0.0", "training.steps=2")
    trained = train_denoiser(settings, tmp_path, dataset=stripes())
    assert not load_denoiser(trained.model).has_unconditional


def test_a_folder_of_images_becomes_a_certificate(tmp_path):
    images = folder_of(stripes(30), tmp_path / "images")
    settings = denoiser_training(
        "training.steps=300",
        "training.batch=32",
        f"dataset.path={images}",
        "dataset.image_shape=[1, 8, 8]",
    )
    trained = train_denoiser(settings, tmp_path / "model")
    asked = {"name": "folder", "path": str(images), "split": "train", "first": 3}
    run = certify(
        {
            "dataset": asked | {"image_shape": [1, 8, 8]},
            "model": {"checkpoint": str(trained.model)},
            "noise_levels": {"levels": 16},
            "votes": {"n0": 10, "n": 100, "radii": [0.0]},
        },
        tmp_path / "run",
        local=True,
    )
    assert run.outcome.complete
    assert run.certificates()["correct"].all()


def test_the_held_out_loss_is_reported_and_changes_no_weight(tmp_path):
    train = folder_of(stripes(), tmp_path / "images")
    held_out = folder_of(stripes(7, seed=1), tmp_path / "others")
    of = ("training.steps=60", f"dataset.path={train}", "dataset.image_shape=[1, 8, 8]")
    also = (f"validation.path={held_out}", "validation.image_shape=[1, 8, 8]",
            "validation.split=train")  # fmt: skip
    plain = train_denoiser(denoiser_training(*of), tmp_path / "plain")
    seen = []
    trained = train_denoiser(
        denoiser_training(*of, *also), tmp_path / "held out", on_progress=seen.append
    )
    assert equal(model_of(tmp_path / "plain"), model_of(tmp_path / "held out"))
    taken = [(step, value) for step, *_, value in trained.curve if not math.isnan(value)]
    assert [step for step, _ in taken] == list(range(3, 61, 3))
    assert taken[-1][1] < taken[0][1]
    assert all(math.isnan(row[3]) for row in plain.curve)
    assert seen[-1].held_out_loss == taken[-1][1]
    recipe = read_metadata(trained.model)["recipe"]
    assert recipe["held_out_loss"] == taken[-1][1]
    settings = denoiser_training(*of).training
    data = load_dataset({"name": "folder", "path": str(held_out), "split": "train",
                         "image_shape": [1, 8, 8]})  # fmt: skip
    again = loss_of_all(load_denoiser(trained.model), settings, TrainingImages(data), 0.5)
    assert again == pytest.approx(taken[-1][1], rel=1e-5)


def test_held_out_images_of_another_shape_are_refused(tmp_path):
    train = folder_of(stripes(), tmp_path / "images")
    held_out = folder_of(stripes(side=16), tmp_path / "others")
    settings = denoiser_training(
        f"dataset.path={train}", "dataset.image_shape=[1, 8, 8]", "validation.split=train",
        f"validation.path={held_out}", "validation.image_shape=[1, 16, 16]",
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"\[validation\] has images \(1, 16, 16\)"):
        train_denoiser(settings, tmp_path / "out")


# --- stopping and going on


@pytest.mark.parametrize("stops", [[5], [1, 7, 11]])
def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, stops):
    data, settings = stripes(), denoiser_training("network.dropout=0.2", "training.shift=1")
    train_denoiser(settings, tmp_path / "whole", dataset=data)
    done = 0
    for stop in stops:
        stopped = train_denoiser(
            settings, tmp_path / "parts", dataset=data, should_stop=stopping_after(stop - done)
        )
        assert (stopped.model, stopped.step) == (None, stop)
        assert not (tmp_path / "parts" / MODEL).exists()
        done = stop
        torch.manual_seed(99)  # another process has another generator
    last = train_denoiser(settings, tmp_path / "parts", dataset=data)
    assert last.step == 12
    assert equal(model_of(tmp_path / "whole"), model_of(tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / name / STATE) for name in ("whole", "parts"))
    assert equal(whole, parts)
    curves = [(tmp_path / name / "loss.csv").read_bytes() for name in ("whole", "parts")]
    assert curves[0] == curves[1]


def test_the_curve_of_a_training_stopped_between_two_rows_is_that_of_one_that_was_not(tmp_path):
    data, settings = stripes(), denoiser_training("training.steps=310")
    train_denoiser(settings, tmp_path / "whole", dataset=data)
    train_denoiser(settings, tmp_path / "parts", dataset=data, should_stop=stopping_after(100))
    train_denoiser(settings, tmp_path / "parts", dataset=data)
    whole, parts = ((tmp_path / name / "loss.csv").read_text() for name in ("whole", "parts"))
    assert whole == parts
    steps = [int(row.split(",")[0]) for row in whole.splitlines()[1:]]
    assert steps == [*range(3, 310, 3), 310]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_network_learns_the_same(tmp_path):
    short, losses = ("training.steps=2", "training.batch=4"), []
    for name, more in (("eager", ()), ("compiled", ("training.compile=true",))):
        settings = denoiser_training(*short, *more)
        trained = train_denoiser(settings, tmp_path / name, dataset=stripes())
        losses.append([row[1] for row in trained.curve])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_a_gpu_would_record_is_the_step_that_is_taken_without():
    """The arithmetic of a recorded step, on the CPU and unrecorded."""
    settings, images = denoiser_training().training, TrainingImages(stripes())
    configuration = configuration_of(denoiser_training(), (1, 8, 8), 3)
    averages = []
    for recorded in (False, True):
        with torch.random.fork_rng():
            learner = denoiser_learner(configuration, settings, images, "cpu")
            if recorded:
                step = RecordedStep.__new__(RecordedStep)
                step._learner, step._share = learner, torch.tensor(1 - 0.7)
                learner.optimiser.param_groups[0]["lr"] = 1e-3
                for _ in range(3):
                    step._step()
            else:
                eager = EagerStep(learner)
                for _ in range(3):
                    eager(1e-3, 0.7)
        averages.append([p.clone() for p in learner.average.parameters()])
    torch.testing.assert_close(averages[0], averages[1])


def test_the_state_is_stored_while_the_training_goes_on(tmp_path):
    settings = denoiser_training("training.checkpoint_minutes=1e-9")
    steps = []

    def on_progress(standing):
        if (tmp_path / STATE).exists():
            with safe_open(tmp_path / STATE, framework="pt") as file:
                steps.append((standing.step, len(file.get_tensor("curve"))))

    train_denoiser(settings, tmp_path, dataset=stripes(), on_progress=on_progress)
    assert steps == [(step, step - 1) for step in range(2, 13)]


def test_a_finished_training_is_not_done_again(tmp_path):
    data, settings = stripes(), denoiser_training()
    first = train_denoiser(settings, tmp_path, dataset=data)
    before, seen = model_of(tmp_path), []
    again = train_denoiser(settings, tmp_path, dataset=data, on_progress=seen.append)
    assert seen == []
    assert (again.model, again.step) == (first.model, 12)
    assert equal(before, model_of(tmp_path))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rate=0.001", r"training.learning_rate was 0.002 and is 0.001"),
        ("training.steps=20", "training.steps was 12 and is 20"),
        ("network.model_channels=8", "network.model_channels was 4 and is 8"),
        ("training.flip=true", "training.flip was False and is True"),
    ],
)
def test_another_configuration_is_not_continued_and_said_by_name(tmp_path, override, said):
    data = stripes()
    train_denoiser(denoiser_training(), tmp_path, dataset=data, should_stop=stopping_after(3))
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ConfigError, match=said):
        train_denoiser(denoiser_training(override), tmp_path, dataset=data)
    assert (tmp_path / STATE).read_bytes() == before


def test_a_training_of_other_images_is_not_continued(tmp_path):
    settings = denoiser_training()
    train_denoiser(settings, tmp_path, dataset=stripes(), should_stop=stopping_after(3))
    with pytest.raises(ConfigError, match="the images and labels had sha256"):
        train_denoiser(settings, tmp_path, dataset=stripes(seed=1))
    data = stripes()
    others = dataclasses.replace(data, labels=data.labels[::-1].copy())
    with pytest.raises(ConfigError, match="the images and labels had sha256"):
        train_denoiser(settings, tmp_path, dataset=others)


def test_what_no_weight_depends_on_may_change(tmp_path):
    data = stripes()
    train_denoiser(denoiser_training(), tmp_path, dataset=data, should_stop=stopping_after(3))
    changed = denoiser_training("training.checkpoint_minutes=1", "name=other")
    assert train_denoiser(changed, tmp_path, dataset=data).step == 12


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x02}q\x00."])
def test_a_state_that_cannot_be_read_is_refused_and_not_run(tmp_path, content):
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state.safetensors cannot be read as the state"):
        train_denoiser(denoiser_training(), tmp_path, dataset=stripes())
    assert (tmp_path / STATE).read_bytes() == content


def test_a_state_of_which_a_tensor_is_missing_is_refused(tmp_path):
    train_denoiser(denoiser_training(), tmp_path, dataset=stripes(), should_stop=stopping_after(3))
    with safe_open(tmp_path / STATE, framework="pt") as file:
        about = file.metadata()
        kept = {name: file.get_tensor(name) for name in list(file.keys())[1:]}
    save_file(kept, tmp_path / STATE, about)
    with pytest.raises(CheckpointError, match="cannot be read as the state"):
        train_denoiser(denoiser_training(), tmp_path, dataset=stripes())


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    def second(standing):
        if standing.step == 1:
            with pytest.raises(ConfigError, match="another process trains into"):
                train_denoiser(denoiser_training(), tmp_path, dataset=stripes())

    done = train_denoiser(denoiser_training(), tmp_path, dataset=stripes(), on_progress=second)
    assert done.step == 12


# --- a loss that is no number


def test_a_loss_that_is_no_number_stops_with_step_and_rate_and_the_state_before_it_stays(tmp_path):
    settings = denoiser_training("training.learning_rate=1e30", "training.warmup_steps=0")
    with pytest.raises(TrainingError, match=r"of step \d+ is .*learning_rate = 1e\+30.*lower it"):
        train_denoiser(settings, tmp_path, dataset=stripes())
    assert not (tmp_path / MODEL).exists()
    good = denoiser_training("training.checkpoint_minutes=1e-9")
    folder = tmp_path / "good"
    train_denoiser(good, folder, dataset=stripes(), should_stop=stopping_after(4))
    before = (folder / STATE).read_bytes()
    rate, seen = Loop.learning_rate, []

    def infinite_once(self, step):
        seen.append(step)
        return math.inf if step == 4 else rate(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "learning_rate", infinite_once)
        with pytest.raises(TrainingError, match="weight after step 5 is not finite"):
            train_denoiser(good, folder, dataset=stripes())
    assert 4 in seen
    assert (folder / STATE).read_bytes() == before
    assert train_denoiser(good, folder, dataset=stripes()).step == 12


# --- what cannot be trained


def refused(tmp_path, data, *overrides):
    train_denoiser(denoiser_training(*overrides), tmp_path / "out", dataset=data)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("network.channel_mult=[1,1,1,1,1]",), "halve the resolution 4 times.*no multiple of 16"),
        (("network.attn_resolutions=[3]",), "attn_resolutions has 3, but the levels have 8"),
        (("network.num_heads=2",), 'a setting of adm, not of "ddpmpp"'),
        (
            ("network.family=adm", "network.channel_mult_noise=4"),
            "channel_mult_noise = 4 is a setting of ddpmpp and ncsnpp, not of adm",
        ),
        (("network.model_channels=132", "network.channel_mult=[1]"), "multiples of 32"),
        (("training.shift=8",), "training.shift is 8, but images are 8 pixels wide"),
        (("training.cuda_graph=true",), "the training is on the CPU"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_step(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        refused(tmp_path, stripes(), *overrides)
    assert not (tmp_path / "out" / STATE).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_by_the_training_s_key(tmp_path):
    with pytest.raises(ConfigError, match=r'training.device = "cuda", but torch finds no GPU'):
        refused(tmp_path, stripes(), "training.device=cuda")


def test_classes_without_images_are_named(tmp_path):
    data = stripes()
    more = dataclasses.replace(data, class_names=(*data.class_names, "none", "neither"))
    with pytest.raises(DatasetError, match=r"2 of 5 classes have no image.*3 \(none\), 4"):
        refused(tmp_path, more)


def test_images_that_are_not_square_are_refused(tmp_path):
    data = stripes()
    tall = dataclasses.replace(data, pixels=np.array(data.pixels)[..., :6])
    with pytest.raises(DatasetError, match="8 x 6 pixels"):
        refused(tmp_path, tall)


def test_no_images_are_refused(tmp_path):
    none = dataclasses.replace(
        stripes(), ids=np.array([], int), labels=np.array([], int),
        pixels=np.zeros((0, 1, 8, 8), np.float32),
    )  # fmt: skip
    with pytest.raises(DatasetError, match="no images to learn from"):
        refused(tmp_path, none)


def test_a_corrupt_image_stops_the_training_or_is_left_out(tmp_path):
    images = folder_of(stripes(), tmp_path / "images")
    victim = sorted(images.rglob("*.png"))[4]
    victim.write_bytes(victim.read_bytes()[:30])
    overrides = (f"dataset.path={images}", "dataset.image_shape=[1, 8, 8]", "training.steps=1")
    with pytest.raises(CorruptImageError, match=r'the first is image 4.*on_corrupt = "skip"'):
        train_denoiser(denoiser_training(*overrides), tmp_path / "stop")
    skipping = denoiser_training(*overrides, "dataset.on_corrupt=skip")
    trained = train_denoiser(skipping, tmp_path / "skip")
    assert read_metadata(trained.model)["recipe"]["images"] == 23


def test_a_folder_that_holds_another_model_is_left_alone(tmp_path):
    (tmp_path / MODEL).write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="give another --output"):
        train_denoiser(denoiser_training(), tmp_path, dataset=stripes())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is no folder"):
        train_denoiser(denoiser_training(), tmp_path / "file", dataset=stripes())
    assert (tmp_path / MODEL).read_bytes() == b"somebody's"
