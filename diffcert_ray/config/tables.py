"""The tables of a configuration: every key with its type, range, default and meaning."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from diffcert_ray.config.selectors import SELECTORS

PLAIN_BOUNDS: tuple[Literal["lipschitz"], Literal["local"]] = ("lipschitz", "local")
DIRECT_METHODS = ("classify", "denoise-classify", "shortlist-classify")

Dtype = Literal["float32", "tf32", "bfloat16", "float16"]
"""What a network computes in."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
NO_MATTER = "no matter"
"""In place of a class order, where nobody need be asked: that of the names."""
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
MOST = 10**9
"""The most of anything that is counted: more votes end in no lifetime, and fit no table."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Sigma = Annotated[float, Field(gt=0, le=100)]  # of pixels in [0, 1]: nothing is left of them


def _read_settings(given: Any) -> Any:
    """The table that a JSON file holds, in place of its path; null says nothing."""
    if not isinstance(given, str):
        return given
    try:
        content = json.loads(Path(given).expanduser().read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"no JSON can be read there ({error}): give the path of a local JSON file, or a table"
        ) from None
    settings = content.get("configuration", content) if isinstance(content, dict) else content
    if not isinstance(settings, dict):
        raise ValueError("the file holds no JSON object")
    return {key: value for key, value in settings.items() if value is not None}


ModelSettings = Annotated[
    dict[str, Any],
    BeforeValidator(_read_settings),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where they would pass for 1 and 0."""
        field = cls.model_fields[str(info.field_name)]
        entries = given if isinstance(given, list | tuple) else [given]
        if isinstance(given, dict) and dict[str, int] in get_args(field.annotation):
            entries = list(given.values())
        if any(isinstance(value, bool) for value in entries) and bool not in (
            field.annotation,
            *get_args(field.annotation),
        ):
            raise ValueError("true and false are no value of this key")
        return given


class DatasetConfig(_Table):
    """This table says which images are certified.

    An image keeps the id that it has in the whole dataset: its position, where nothing else is
    said. At most one of ``first``, ``every``, ``ids`` and ``sample`` may be set.
    """

    name: str = "digits"
    """The dataset is digits, glyphs, mnist, fashion-mnist, kmnist, emnist, medmnist, cifar10,
    cifar100, svhn, stl10, tiny-imagenet, imagenet32, imagenet64, folder or parquet."""
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "test"
    """The images come from this part of the published data, or of a folder or Parquet dataset."""
    path: str | None = None
    """The files lie in this folder or at this fsspec address. Every dataset but digits
    and the test split of glyphs needs it."""
    variant: str | None = None
    """Which part of emnist (balanced, byclass, bymerge, letters, digits or mnist), or which set of
    medmnist, as in pathmnist or pathmnist_64, is meant. It is needed for these two."""
    upright: bool | None = None
    """EMNIST's images, which are stored lying, are turned upright (the default), or given as they
    are stored (false), as torchvision gives them."""
    image_column: str | None = None
    """This column of a Parquet dataset holds the images. Where only one column has the type of
    images, it need not be named."""
    label_column: str | None = None
    """This column of a Parquet dataset holds the labels."""
    id_column: str | None = None
    """This column of a Parquet dataset holds stable image ids. By default the row's number is the
    id."""
    label_map: tuple[int, ...] | dict[str, int] | str | None = None
    """A list, a mapping or ImageNet's map_clsloc.txt gives the network's number of each class."""
    class_order: Literal["name", "number"] | None = None
    """Class folders and labels that are text are numbered by sorted name, or by the number in it.
    It is needed where the two differ, as for 1, 2 and 10."""
    num_classes: Count | None = None
    """The network has so many classes. It is needed where the dataset has fewer."""
    image_shape: tuple[Count, Count, Count] | None = None
    """Images have these channels, height and width. It is needed where the files of a folder or
    Parquet dataset do not say it."""
    resize: Count | tuple[Count, Count] | None = None
    """Images are resized as they are read, antialiased: to this shorter side, or to this height and
    width. Radii are those of the resized images."""
    crop: Count | tuple[Count, Count] | None = None
    """A square of this side, or a part of this height and width, is kept from the middle of each
    image, after resize."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "area"] | None = None
    """Images are resized with this filter, bicubic where it is not given."""
    background: Literal["white", "black"] | tuple[UnitInterval, ...] | None = None
    """White, black or one number in [0, 1] for each channel is seen through transparent pixels.
    Without it, images that have some are refused."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded stops the run before any work (stop), or counts as an
    abstention (skip)."""
    first: Count | None = None
    """Only the first so many images are taken."""
    every: Count | None = None
    """Only every so many-th image is taken, beginning with the first."""
    ids: tuple[int, ...] | None = None
    """Only the images with these ids are taken, in this order."""
    sample: Count | None = None
    """Only a random sample of so many images is taken. A larger sample keeps the images of a
    smaller one."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """The random sample is drawn with this seed, 0 where it is not given."""

    def as_stored(self) -> "DatasetConfig":
        """The same for a run that has begun: its classes have an order, also if nobody said it."""
        asked_about = self.class_order is None and self.name in ("folder", "parquet")
        return self.model_copy(update={"class_order": NO_MATTER} if asked_about else {})

    def whole(self) -> "DatasetConfig":
        """All its images: later starts of a run may have added some to the first one's choice."""
        return self.as_stored().model_copy(update=dict.fromkeys((*SELECTORS, "seed")))


class ModelConfig(_Table):
    """This table names the weights of the denoiser."""

    checkpoint: str = "digits"
    """The class-conditional network is a shipped model of this name, or lies in this file, folder
    or address."""
    sha256: str | None = None
    """The checkpoint's sha256 must be this, or the run does not start."""
    config: ModelSettings | None = None
    """A table, or the path of a JSON file, says of the network what its checkpoint does not say, or
    says otherwise."""
    unconditional: str | None = None
    """The unconditional step of apndc uses this second checkpoint. It is needed where the first has
    no unconditional mode."""
    unconditional_sha256: str | None = None
    """The second checkpoint's sha256 must be this, or the run does not start."""
    unconditional_config: ModelSettings | None = None
    """A table or JSON file says of the second network what config says of the first."""
    check_denoising: bool = True
    """Before any vote each network denoises some of the images, and one that is at most levels no
    better than the noise is refused. A network with random weights needs this off."""
    resize: Literal["area", "bilinear", "bicubic"] | None = None
    """The second network's output is brought to the first network's resolution in this way, where
    its images have another."""


class ClassifierConfig(_Table):
    """This table describes the trained classifier of the methods classify and denoise-classify.

    No other method reads it.
    """

    checkpoint: str | None = None
    """The classifier's state dict has this shipped name, or is the .safetensors or .pt file at this
    path or address."""
    sha256: str | None = None
    """The file's sha256 must be this, or the run does not start."""
    architecture: str | None = None
    """The network is the classification network of this name in torchvision.models, or
    small-convnet or digits-convnet."""
    mean: tuple[float, ...] | None = None
    """These numbers in pixel units, one a channel, are subtracted from the image. By default
    nothing is."""
    std: tuple[Positive, ...] | None = None
    """Each channel is then divided by its number here, in pixel units. By default none is."""


class MethodConfig(_Table):
    """This table names the base classifier that casts the votes."""

    name: Literal[
        "dc",
        "epndc",
        "apndc",
        "apndc-posterior",
        "classify",
        "denoise-classify",
        "shortlist-classify",
    ] = "apndc"
    """Votes come from one of the noised diffusion classifiers (dc, epndc, apndc, apndc-posterior),
    from a trained classifier that sees the noisy image (classify) or its one-shot estimate
    (denoise-classify), or from the head of sift.head alone (shortlist-classify). Certificates
    without votes need dc."""


class NoiseLevelsConfig(_Table):
    """This table lays out the noise levels at which losses are evaluated, and their weights.

    Levels s are in model space, where images lie in [-1, 1] and noise is 2 sigma.
    """

    grid: Literal["linear", "quantile"] = "quantile"
    """Levels are evenly spaced (linear), or lie at the mid-quantiles of the weight density
    (quantile)."""
    weights: Literal["edm", "elbo", "uniform", "linear-s", "reference"] = "edm"
    """Losses are weighted by this density over the levels. What the paper's released code computes
    is called reference."""
    levels: Annotated[int, Field(ge=1, le=4096)] = 126
    """A full vote visits so many levels. For reference it is the number of points of its grid, of
    which it visits a few less; with the rule threshold its apndc always refines on 126."""
    min: Positive | None = None
    """The grid begins at this level. By default it begins at 2 sigma, the smoothing noise, a little
    above it for epndc, and at 1e-4 for dc."""
    max: Positive = 3.0
    """The grid ends at this level, which must lie above 2 sigma."""


class SiftConfig(_Table):
    """This table says how a vote spends its evaluations.

    The module ``diffcert_ray.method.sift`` explains the rules.
    """

    rule: Literal["full", "exact", "paired-z", "shortlist", "threshold"] = "paired-z"
    """A vote evaluates every class at every level (full), drops classes that cannot win any more
    (exact), or drops them by paired differences (paired-z), by paired differences among the classes
    that a head proposes (shortlist), or by the paper's threshold (threshold)."""
    z: Positive = 2.0
    """paired-z drops a class that is more than so many standard errors behind the leader, shortlist
    one that is so many standard deviations behind by losses and the head's log odds together."""
    first_ratio: Annotated[float, Field(gt=1)] = 2.0
    """After the first level, paired-z drops a class whose loss is more than so many times the
    leader's."""
    first_level: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    """The first level of paired-z and shortlist lies at this fraction of the grid."""
    head: str | None = None
    """The rule shortlist and the method shortlist-classify use this head: a shipped name, or the
    file or address of one that was trained on the same network."""
    head_sha256: str | None = None
    """The sha256 of the head's file must be this, or the run does not start."""
    least_p: Fraction = 0.01
    """A class enters the race of the rule shortlist where the head gives it more than this
    probability. The likeliest always does."""
    threshold: Positive = 0.02
    """The rule threshold drops a class whose loss, times the density, is more than this above the
    smallest."""
    keep: Count = 10
    """The rule threshold stops sifting when at most so many classes are left."""
    threshold_levels: Count = 50
    """The rule threshold sifts over at most so many levels: spread over the grid, or, for the
    weights reference, evenly spaced and from the lowest one upwards."""
    levels: Count = 15
    """A vote that is still open after so many levels leaves the sift stage. This changes no
    vote."""


class VotesConfig(_Table):
    """This table says how many votes are cast, at which sigmas, and what is certified from them."""

    sigmas: Annotated[tuple[Sigma, ...], Field(min_length=1)] = (0.25,)
    """Every image is certified at each of these smoothing noises, in pixel units."""
    n0: Count = 100
    """So many selection votes choose an image's class, where select is set at most."""
    select: Count | None = None
    """Selection stops as soon as the leading class is so many votes ahead of the next one. By
    default all n0 votes are cast."""
    select_unit: Annotated[int, Field(ge=1, le=5)] = 5
    """With select, selection votes are stored and resumed so many together, and looked at after
    each such unit."""
    n: Count = 1000
    """So many estimation votes bound the probability of that class. For sequential it is the most
    that an image gets."""
    alpha: Fraction = 0.001
    """A certificate is wrong with at most this probability."""
    bound: Literal["clopper-pearson", "two-class", "sequential", "lipschitz", "local"] = (
        "clopper-pearson"
    )
    """Certificates follow from votes by one of the first three bounds, or without votes, for the
    plain classifier of method dc, by lipschitz or local."""
    radii: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    )
    """The report's table has these radii, in pixel units. For sequential an image stops once the
    largest is certified."""
    estimate: Literal["complete", "target"] = "complete"
    """An estimation vote names its class (complete), or says only whether that is the chosen one
    (target), which is cheaper."""
    unit: Count = 100
    """Votes are stored and resumed so many together. The sequential bound looks at the end of each
    unit."""
    futility: Fraction = 0.05
    """The sequential bound gives up a radius whose posterior probability falls below this. Its
    certificates are valid whatever the number."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All noise is drawn from this seed."""


class PlainConfig(_Table):
    """This table says how many draws a run without votes takes (bounds lipschitz and local)."""

    draws: Count = 2048
    """An image's losses are bounded from so many noise draws, fixed before the first one."""
    unit: Annotated[int, Field(ge=1, le=4096)] = 32
    """Draws are summed, stored and resumed so many together."""


class NumericsConfig(_Table):
    """A vote's last bits depend on this table.

    It is written into a run once, and every resume adopts it.
    """

    batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """A batch has so many rows. By default a new run on a GPU has 256."""
    dtype: Dtype = "float32"
    """The network computes in this type. Its input, its output and all sums are wider. With tf32 a
    GPU rounds the factors of float32 products to 10 bits, which a CPU does not."""
    channels_last: bool = False
    """Images and filters lie in memory pixel by pixel, which is faster on some devices."""
    compile: bool = False
    """The networks are compiled, which takes a minute or so at each worker's start and needs a C++
    compiler."""


class ExecutionConfig(_Table):
    """This table says how the work is carried out. Nothing in it changes a vote."""

    stages: Literal["split", "fused"] = "fused"
    """Votes that are open after the sift stage go back to the driver (split), or are finished by
    the same worker (fused)."""
    actors: Count | None = None
    """So many workers are started. By default there is one for each GPU, or for each CPU core where
    there is no GPU."""
    most_actors: Count | None = None
    """Where actors is not set, a cluster is asked for so many workers, so that its autoscaler adds
    nodes for them. By default none are asked for that its nodes have no room for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The networks live on this device. With auto it is the GPU where there is one: in the cluster
    that a run joins, or on this machine."""
    gpus_per_actor: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Each worker gets this share of a GPU, or so many whole ones."""
    calibrate: Literal["auto", "always", "never"] = "auto"
    """A new run measures what [numerics] leaves open: always, never, or (auto) where the run is
    long enough."""
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] | None = None
    """Calibration chooses the fastest of these types to compute in, if hardly any of its votes
    differ from those in float32. By default these are float32, tf32 and bfloat16 on a GPU, and
    float32 on a CPU."""
    memory_limit: Positive | None = None
    """A worker may take so many GiB when it is calibrated. By default it may take 0.8 of its share
    of the free memory."""
    item_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """One call of a worker holds work for about so many seconds."""
    flush_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Finished votes wait in memory for so many seconds at most before they are stored."""
    start_timeout_s: Positive = 600.0
    """A worker may take so many seconds to load."""
    stall_timeout_s: Positive = 1800.0
    """The run ends after so many seconds without a worker that works or loads. Calibration may take
    as long."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec's filesystem gets these options for every remote address of the run. They are never
    stored."""


class Config(_Table):
    """One run: dataset, model, method, votes; and how it is carried out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The run has this name. By default its folder is runs/NAME."""
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    noise_levels: NoiseLevelsConfig = NoiseLevelsConfig()
    sift: SiftConfig = SiftConfig()
    votes: VotesConfig = VotesConfig()
    plain: PlainConfig = PlainConfig()
    numerics: NumericsConfig = NumericsConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @property
    def kind_name(self) -> Literal["diffusion", "trained", "losses"]:
        """Whose votes are cast: a diffusion classifier's, a trained one's; or losses, no votes."""
        if self.votes.bound in PLAIN_BOUNDS:
            return "losses"
        return "trained" if self.method.name in DIRECT_METHODS else "diffusion"

    @property
    def sifts(self) -> bool:
        """Whether votes are cast by a rule of [sift]."""
        return self.kind_name == "diffusion"

    @property
    def uses_head(self) -> bool:
        """Whether votes depend on the head of ``sift.head``."""
        if self.kind_name == "diffusion":
            return self.sift.rule == "shortlist"
        return self.method.name == "shortlist-classify"
