"""The keys of a training configuration, each with its type, range, default and meaning."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from diffcert_ray.config.tables import Count, DatasetConfig, Positive
from diffcert_ray.config.tables import _Table as Table

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingImages(DatasetConfig):
    """This table says which images are learned from, with the keys of a run's [dataset].

    Certify others: a network knows the images that it was trained on.
    """

    name: str = "folder"
    """The dataset is any that a run can have: folder, parquet, digits, cifar10 and so on."""
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "train"
    """The images come from this part of the published data, or of a folder or Parquet dataset."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded stops the training before any step (stop), or is left out
    (skip)."""


class HeldOutImages(TrainingImages):
    """This table names images that are not learned from; without it there are none.

    The loss on them, always under the same noise, is noted some twenty times. Certify still others
    where it has chosen between settings.
    """

    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "test"
    """The images come from this part of the published data, or of a folder or Parquet dataset."""


class NetworkConfig(Table):
    """This table describes the denoiser; what is not given follows from the images' resolution."""

    family: Literal["ddpmpp", "ncsnpp", "adm"] = "ddpmpp"
    """The network is EDM's DDPM++, NCSN++ or ADM."""
    model_channels: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    """The first level has so many channels, a multiple of 4. By default it has 16 for images of 8
    pixels a side, 32 up to 16, 64 up to 32 and 128 above."""
    channel_mult: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Each level has so many times these channels, at half the resolution of the one before. By
    default the first has 1, the others 2, and they go down to about 4 pixels, in 4 levels at most.
    """
    num_blocks: Count | None = None
    """Each level has so many residual blocks on the way down. By default it has 1 for images of up
    to 16 pixels a side, 2 above."""
    attn_resolutions: tuple[Count, ...] | None = None
    """Levels of these resolutions have attention. By default 16 has it, where images are larger
    than that; the deepest level always has some."""
    channel_mult_noise: Count | None = None
    """The noise level and the class enter as vectors of so many times model_channels. By default it
    is what the family has, 1 or 2. Many classes and few channels need more: 1,000 classes are hard
    to tell apart in 16 numbers."""
    num_heads: Count | None = None
    """Every attention of adm has so many heads. By default it has one for each 64 channels, and one
    for fewer."""
    dropout: Share = 0.0
    """While training, this share of the activations in each block is dropped."""
    sigma_data: Positive = 0.5
    """The standard deviation of the pixels in [-1, 1], by which inputs, outputs and the loss are
    scaled, is taken to be this."""
    s_range: tuple[Positive, Positive] | None = None
    """The file says that the network is made for these noise levels in model space. By default they
    are 4.5 standard deviations around p_mean."""


class TrainedClassifierConfig(Table):
    """This table names the architecture of the classifier."""

    architecture: str = "small-convnet"
    """The network is small-convnet, digits-convnet, or the classification network of this name in
    torchvision.models."""


class _Steps(Table):
    """What every training has to say of its steps."""

    steps: Count = 20_000
    """The optimiser takes so many steps."""
    batch: Count = 256
    """Each step sees so many images, drawn with replacement."""
    learning_rate: Positive = 2e-3
    """The learning rate rises to this and falls to zero by a half cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """The learning rate rises linearly over so many steps."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The first weights, and everything that is drawn, come from this seed."""
    flip: bool = False
    """Each image is mirrored left to right with probability one half."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Each image is moved by up to so many pixels, in both directions and at random; the pixels at
    the edge are repeated."""
    checkpoint_minutes: Positive = 5.0
    """The state of the training is stored every so many minutes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The network is trained on this device. With auto it is the GPU where there is one."""
    threads: Count = 1
    """The CPU computes with so many threads. Two are slower than one for images of 8x8, and
    many times slower where other programs compute beside it; large images gain."""
    compile: bool = False
    """The network is compiled, which takes about a minute at the start and needs a C++ compiler. On
    a GPU it saves much of the memory's traffic."""
    cuda_graph: bool = False
    """A GPU replays each whole step from a recording, so that it does not wait for the CPU. This is
    of use for small networks."""


class DenoiserSteps(_Steps):
    """This table says how the denoiser is trained.

    Noise levels s are in model space, where images lie in [-1, 1] and noise is 2 sigma.
    """

    p_mean: float = 0.0
    """The natural logarithm of the noise levels that are trained on has this mean. Votes are cast
    at levels from 2 sigma to 3, so 0 suits the sigmas 0.12 to 1."""
    p_std: Positive = 0.8
    """The natural logarithm of the noise levels has this standard deviation."""
    label_dropout: Share = 0.15
    """This share of the images is seen without its class, which teaches the step without a class
    that the method apndc begins with. Without any, the network has no such mode."""
    ema_decay: Share = 0.998
    """What is kept is a moving average of the weights, which decays by this factor in a step (by
    less in the first ones)."""


class ClassifierSteps(_Steps):
    """This table says how the classifier is trained, on images with Gaussian noise."""

    steps: Count = 2000
    """The optimiser takes so many steps."""
    batch: Count = 64
    """Each step sees so many images, drawn with replacement."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly over so many steps."""
    sigma: Annotated[float, Field(ge=0)] = 0.25
    """The noise on the images has this standard deviation, in pixel units: that of the votes that
    the classifier will cast."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weights decay by this, times the learning rate, in a step (AdamW)."""


class _Training(Table):
    """What is trained, on what."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "model"
    """The model has this name. By default its folder is models/NAME."""
    dataset: TrainingImages = TrainingImages()
    validation: HeldOutImages | None = None


class DenoiserTraining(_Training):
    """One training of a class-conditional denoiser, by ``diffcert train``."""

    network: NetworkConfig = NetworkConfig()
    training: DenoiserSteps = DenoiserSteps()


class ClassifierTraining(_Training):
    """One training of a classifier of noisy images, by ``diffcert train-classifier``."""

    classifier: TrainedClassifierConfig = TrainedClassifierConfig()
    training: ClassifierSteps = ClassifierSteps()


Training = DenoiserTraining | ClassifierTraining


def default_folder(config: Training) -> Path:
    """Where a training is written if nobody says."""
    return Path("models") / config.name
