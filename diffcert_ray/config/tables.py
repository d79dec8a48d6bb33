"""The tables of a configuration: every key with its type, range, default and meaning."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

PLAIN_BOUNDS: tuple[Literal["lipschitz"], Literal["local"]] = ("lipschitz", "local")
DIRECT_METHODS = ("classify", "denoise-classify")

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _read_settings(given: Any) -> Any:
    """The table that a JSON file holds, in place of its path; null says nothing."""
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(Path(given).expanduser().read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"no JSON can be read there ({error}): give the path of a local JSON file, or a table"
        ) from None
    found = found.get("configuration", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError("the file holds no JSON object")
    return {key: value for key, value in found.items() if value is not None}


ModelSettings = Annotated[
    dict[str, Any],
    BeforeValidator(_read_settings),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DatasetConfig(_Table):
    """Which images; image ids are positions in the whole dataset, so a subset keeps them.

    ``first``, ``every``, ``ids`` and ``sample`` exclude each other.
    """

    name: str = "digits"
    """digits, cifar10, cifar100, svhn, imagenet32, imagenet64, folder or parquet."""
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "test"
    """Part of the published data, or of a folder or Parquet dataset."""
    path: str | None = None
    """Folder or fsspec address of the files; all but digits need one."""
    image_column: str | None = None
    """Column of the images (parquet); found by its type where it is the only one."""
    label_column: str | None = None
    """Column of the labels (parquet)."""
    id_column: str | None = None
    """Column of stable image ids (parquet); by default the row."""
    label_map: tuple[int, ...] | dict[str, int] | str | None = None
    """The network's number of each class: a list, a mapping, or ImageNet's map_clsloc.txt."""
    num_classes: Count | None = None
    """Classes of the network, where it has more than the dataset."""
    image_shape: tuple[Count, Count, Count] | None = None
    """Channels, height, width, for files that do not say it (folder, parquet)."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded stops the run before any work, or counts as an abstention."""
    first: Count | None = None
    """The first so many images."""
    every: Count | None = None
    """Every so many-th image."""
    ids: tuple[int, ...] | None = None
    """These images, in this order."""
    sample: Count | None = None
    """A random sample of so many images, which a larger sample only adds to."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Of the sample; 0 where it is not given."""

    def whole(self) -> "DatasetConfig":
        """All its images: later starts of a run may have added some to the first one's choice."""
        chosen = ("first", "every", "ids", "sample", "seed")
        return self.model_copy(update=dict.fromkeys(chosen))


class ModelConfig(_Table):
    """The denoiser's weights."""

    checkpoint: str = "digits"
    """A shipped model's name, or the file, folder or address of the class-conditional network."""
    sha256: str | None = None
    """What the checkpoint's hash must be."""
    config: ModelSettings | None = None
    """What it does not say of itself, or says otherwise: a table, or the path of a JSON file."""
    unconditional: str | None = None
    """A second checkpoint for the unconditional step of apndc, where the first has no such mode."""
    unconditional_sha256: str | None = None
    """What its hash must be."""
    unconditional_config: ModelSettings | None = None
    """What it does not say of itself, as config."""
    resize: Literal["area", "bilinear", "bicubic"] | None = None
    """How its output is brought to the first network's resolution, where images have another."""


class ClassifierConfig(_Table):
    """The trained classifier of the methods classify and denoise-classify; no other reads it."""

    checkpoint: str | None = None
    """Its state dict: a shipped name, or a .safetensors or .pt file or address."""
    sha256: str | None = None
    """What the file's hash must be."""
    architecture: str | None = None
    """Any classification network of torchvision.models by name, or digits-convnet."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel, pixel units; nothing by default."""
    std: tuple[Positive, ...] | None = None
    """What each channel is then divided by, pixel units."""


class MethodConfig(_Table):
    """The base classifier that casts the votes."""

    name: Literal["dc", "epndc", "apndc", "apndc-posterior", "classify", "denoise-classify"] = (
        "apndc"
    )
    """Which noised diffusion classifier (dc is for certificates without votes, too); or a trained
    classifier on the noisy image (classify) or on its one-shot estimate (denoise-classify)."""


class NoiseLevelsConfig(_Table):
    """The grid of noise levels s (model space, images in [-1, 1]) and the weights over them."""

    grid: Literal["linear", "quantile"] = "quantile"
    """Evenly spaced, or at the mid-quantiles of the weight density."""
    weights: Literal["edm", "elbo", "uniform", "linear-s", "reference"] = "edm"
    """The weight density; reference is what the paper's released code computes."""
    levels: Annotated[int, Field(ge=1, le=4096)] = 126
    """T, levels of a full vote (for reference: points of its grid)."""
    min: Positive | None = None
    """Lower end; by default 2 sigma, the smoothing noise (dc: 1e-4; epndc: a little above)."""
    max: Positive = 3.0
    """Upper end; above 2 sigma."""


class SiftConfig(_Table):
    """How a vote spends its evaluations; see ``diffcert_ray.method.sift``."""

    rule: Literal["full", "exact", "paired-z", "threshold"] = "paired-z"
    """Everything, exact elimination, paired differences, or the paper's threshold."""
    z: Positive = 2.0
    """Standard errors behind the leader at which a class is dropped (paired-z)."""
    first_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Times the leader's loss at which a class is dropped after one level (paired-z)."""
    first_level: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    """Where on the grid the first level lies (paired-z)."""
    threshold: Positive = 0.02
    """Loss above the leader at which a class is dropped, per unit of density (threshold)."""
    keep: Count = 10
    """Classes at which sifting stops (threshold)."""
    threshold_levels: Count = 50
    """Levels that are sifted over at most (threshold)."""
    levels: Count = 15
    """Where a vote that is still open leaves the sift stage; changes no vote."""


class VotesConfig(_Table):
    """How many votes, at which sigmas, and what is certified from them."""

    sigmas: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.25,)
    """Smoothing noise levels, pixel units."""
    n0: Count = 100
    """Selection votes of an image, which choose its class."""
    n: Count = 1000
    """Estimation votes of an image; for sequential the most."""
    alpha: Fraction = 0.001
    """Failure probability of one certificate."""
    bound: Literal["clopper-pearson", "two-class", "sequential", "lipschitz", "local"] = (
        "clopper-pearson"
    )
    """From votes, or (lipschitz, local) of the plain classifier without votes, method dc."""
    radii: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    )
    """Radii of the table, pixel units; sequential stops an image once the largest is certified."""
    estimate: Literal["complete", "target"] = "complete"
    """What an estimation vote says: its class, or only whether it is the chosen one (cheaper)."""
    unit: Count = 100
    """Votes that are stored and resumed together; sequential looks at the end of each unit."""
    futility: Fraction = 0.05
    """Posterior probability of a radius below which sequential gives it up; no risk to validity."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of all noise."""


class PlainConfig(_Table):
    """Draws of a run without votes (bounds lipschitz and local)."""

    draws: Count = 2048
    """Noise draws of an image, fixed before the first one."""
    unit: Annotated[int, Field(ge=1, le=4096)] = 32
    """Draws that are summed, stored and resumed together."""


class NumericsConfig(_Table):
    """What a vote's last bits depend on; written once into a run, adopted by every resume."""

    batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """Rows of a batch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the network computes in; its input, its output and all sums are wider."""
    channels_last: bool = False
    """Keep images and filters in memory pixel by pixel: faster on some devices."""
    compile: bool = False
    """Compile the networks: a minute or so at each worker's start, needs a C++ compiler."""


class ExecutionConfig(_Table):
    """How the work is carried out; nothing here changes a vote."""

    stages: Literal["split", "fused"] = "fused"
    """Whether open votes go back to the driver after the sift stage."""
    actors: Count | None = None
    """Workers; by default one per GPU, or per CPU core where there is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks live."""
    gpus_per_actor: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Share of a GPU for each worker."""
    calibrate: Literal["auto", "always", "never"] = "auto"
    """Whether a new run measures what [numerics] leaves open; auto: where it is long enough."""
    dtypes: Annotated[
        tuple[Literal["float32", "bfloat16", "float16"], ...], Field(min_length=1)
    ] = ("float32",)
    """What calibration may choose to compute in; with less than float32 some votes change."""
    memory_limit: Positive | None = None
    """GiB that a worker may take when it is calibrated; by default 0.8 of its share of the free."""
    item_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """Seconds of work in one call of a worker."""
    flush_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds that finished votes may wait in memory before they are stored."""
    start_timeout_s: Positive = 600.0
    """Seconds that a worker may take to load."""
    stall_timeout_s: Positive = 1800.0
    """Seconds without a worker at work or loading, and of calibration, after which the run ends."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """What fsspec's filesystem takes, for every remote address of the run; never stored."""


class Config(_Table):
    """One run: dataset, model, method, votes; and how it is carried out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Of the run; its folder is runs/NAME by default."""
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
    def without_votes(self) -> bool:
        """Whether the plain classifier is certified, from its losses and without votes."""
        return self.votes.bound in PLAIN_BOUNDS

    @property
    def direct(self) -> bool:
        """Whether votes come from a trained classifier, without noise levels and sifting."""
        return self.method.name in DIRECT_METHODS
