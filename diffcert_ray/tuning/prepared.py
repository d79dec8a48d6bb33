"""What a tuning is asked, and all that can be checked before anything is computed."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.tools.head_training import HeadRecipe
from diffcert_ray.tuning.candidates import (
    Setting,
    configured,
    full_votes,
    read_candidates,
    usual_candidates,
)
from diffcert_ray.tuning.images import (
    Parts,
    parts_of,
    pixel_hashes,
    tuning_dataset,
    uncertified,
)

LEAST_VOTES = 2  # of an image: one chooses the run's class, the others are estimation votes


@dataclass(frozen=True)
class Asked:
    """What a tuning is asked.

    Attributes:
        images: "key=value" of [dataset], which images to tune on.
        target: agreement that the chosen setting must have, in (0, 1).
        votes: of each image, >= 2.
        confirming: images that settings are compared on; None: a share of them.
        screening: images that settings are looked through on; None: a share of them.
        labels: whether labels may be used: a head needs them.
        against: rule of the votes in full, "exact" or "paired-z"; None: by the number of classes.
        candidates: a TOML file of settings, or None.
        seed: of the noise; None: one that follows from the run's, and is another one.
        certified: images that the configuration certifies, to report the gap to; 0: none.
        recipe: of the head.
        races: votes that what a head foretells of races is measured on.
    """

    images: Sequence[str] = ()
    target: float = 0.99
    votes: int = 4
    confirming: int | None = None
    screening: int | None = None
    labels: bool = True
    against: str | None = None
    candidates: str | None = None
    seed: int | None = None
    certified: int = 0
    recipe: HeadRecipe = field(default_factory=lambda: HeadRecipe(copies=80, hidden=256))
    races: int = 600


@dataclass(frozen=True)
class Prepared:
    """A tuning that may start.

    Attributes:
        config: that is tuned.
        tuning: the same with the tuning images and seed.
        asked: what was asked.
        data: the tuning images, all of them.
        shas: hash of their pixels by image id, of those that are not certified.
        parts: which image serves for what.
        certified: the images that the configuration certifies.
        full: the votes in full.
        candidates: the settings that are tried.
        weights: sha256 of the networks by role, without a head.
    """

    config: Config
    tuning: Config
    asked: Asked
    data: Dataset
    shas: dict[int, str]
    parts: Parts
    certified: Dataset
    full: Setting
    candidates: tuple[Setting, ...]
    weights: dict[str, str]

    def record(self) -> dict[str, Any]:
        """Everything that stored heads and votes depend on, JSON-able."""
        ids = (self.parts.head, self.parts.screening, self.parts.confirming)
        shas = [[self.shas[int(i)] for i in part] for part in ids]
        return {
            "method": self.tuning.method.model_dump(mode="json"),
            "noise_levels": self.tuning.noise_levels.model_dump(mode="json"),
            "sigmas": list(self.tuning.votes.sigmas),
            "seed": self.tuning.votes.seed,
            "votes": self.asked.votes,
            "against": self.full.sift.rule,
            "networks": self.weights,
            "images": hashlib.sha256(repr(shas).encode()).hexdigest(),
            "head": asdict(self.asked.recipe) if self.asked.labels else None,
            "races": self.asked.races if self.asked.labels else None,
        }

    def tuning_shas(self) -> list[str]:
        """Hashes of the images that what is chosen has seen."""
        parts = (self.parts.head, self.parts.screening, self.parts.confirming)
        return [self.shas[int(i)] for part in parts for i in part]


def prepare(config: Config, asked: Asked) -> Prepared:
    """Check what is asked, and load the images.

    Raises:
        ConfigError: a method without such a rule, a value out of range, the run's own seed, images
            that are certified, or too few.
    """
    from diffcert_ray.engine.weights import weights_of

    _check(config, asked)
    seed = config.votes.seed ^ 2**40 if asked.seed is None else asked.seed
    dataset = tuning_dataset(config, asked.images)
    options = config.execution.storage_options
    data, certified = load_dataset(dataset, options), load_dataset(config.dataset, options)
    if data.num_classes != certified.num_classes:
        raise ConfigError(
            f"the images to tune on have {data.num_classes} classes, those that are certified "
            f"{certified.num_classes}: give images of the same classes"
        )
    shas = uncertified(pixel_hashes(data), pixel_hashes(certified).values())
    parts = parts_of(
        shas, head=asked.labels, confirming=asked.confirming, screening=asked.screening
    )
    tuning = config.model_copy(
        update={
            "dataset": dataset.whole(),
            "votes": config.votes.model_copy(update={"seed": seed}),
        }
    )
    plain = tuning.model_copy(update={"sift": SiftConfig(rule="exact")})
    return Prepared(
        config,
        tuning,
        asked,
        data,
        shas,
        parts,
        certified,
        full_votes(data.num_classes, asked.against),
        _candidates(config, asked, data.num_classes),
        weights_of(plain),
    )


def _check(config: Config, asked: Asked) -> None:
    if not config.sifts:
        raise ConfigError(
            f'method.name = "{config.method.name}" with votes.bound = "{config.votes.bound}" has '
            'no rule to tune: a method of noised diffusion classifiers has one, as "apndc"'
        )
    if not 0 < asked.target < 1:
        raise ConfigError(f"--target {asked.target:g} must lie between 0 and 1, as in 0.99")
    if asked.votes < LEAST_VOTES:
        raise ConfigError(f"--votes {asked.votes} must be at least {LEAST_VOTES}")
    for name, value in (("confirming", asked.confirming), ("screening", asked.screening)):
        if value is not None and value < 2:
            raise ConfigError(f"--{name} {value} must be at least 2")
    if asked.seed == config.votes.seed:
        raise ConfigError(
            f"--seed {asked.seed} is the run's own votes.seed: a rule that has seen the noise is "
            "not independent of it; give another one"
        )


def _candidates(config: Config, asked: Asked, classes: int) -> tuple[Setting, ...]:
    if asked.candidates is not None:
        found = read_candidates(asked.candidates, head=asked.labels)
    else:
        found = usual_candidates(classes, head=asked.labels)
    own = configured(config)
    return (*found, *([own] if own is not None else []))
