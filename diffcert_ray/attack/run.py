"""Attack a sample of a stored run's certificates, and keep what was found in the run."""

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.dataset import about, labels_of
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.devices import at_a_worker, workers_device
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.resume import check_same_images
from diffcert_ray.run.stored import Elsewhere, Run
from diffcert_ray.storage.views import replace_view

if TYPE_CHECKING:
    from diffcert_ray.attack.image import ImageAttack, Judgement
    from diffcert_ray.attack.search import Effort
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.engine.worker import Worker

FOLDER = "attack"
LOOKED_AT = 2000  # training images that directions are chosen from
TOWARDS = 20  # directions, the nearest of them


@dataclass
class Attack:
    """The attack on a run.

    Attributes:
        judgement: how a point's class was decided.
        seed: of the choice of images, the searches and the verdicts.
        certified: certificates with a radius that could have been chosen.
        images: what was found, one entry for each certificate attacked.
        nfe: evaluations, those for gradients counted once.
        votes: votes of searches and verdicts.
        kept: names of the files written into the run.
    """

    judgement: "Judgement"
    seed: int
    certified: int
    images: list["ImageAttack"] = field(default_factory=list)
    nfe: int = 0
    votes: int = 0
    kept: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list["ImageAttack"]:
        """Certificates with another class inside their radius."""
        return [one for one in self.images if one.broken]


def attack_run(
    run: Run,
    *,
    images: int = 20,
    seed: int = 0,
    votes: int = 500,
    alpha: float = 1e-4,
    effort: "Effort | None" = None,
    multiples: Sequence[float] | None = None,
    denoiser: "Denoiser | None" = None,
    dataset: Dataset | None = None,
    on_image: Callable[["ImageAttack", int], None] = lambda attacked, total: None,
    address: str | None = None,
) -> Attack:
    """Try to break certificates of a run, chosen at random, and store the findings in the run.

    Args:
        run: an opened run of votes whose checkpoint and dataset are at hand.
        images: certificates to attack, at most all that have a radius.
        seed: of the choice, the searches and the verdicts; the run's own noise is never used.
        votes: fresh votes that decide the class of a point.
        alpha: probability that any try inside a radius is called a change although there is none.
        effort: how hard each image is attacked.
        multiples: of the radius, beyond it, ascending.
        denoiser: an object in place of the run's checkpoint.
        dataset: an object in place of the run's dataset.
        on_image: called after each image, with their number; with an address, after all of them.
        address: of a Ray cluster, one of whose workers does all of it, and so must reach the run;
            None is this process.

    Returns:
        What was found. ``attack/seed-SEED.json`` in the run has all of it, stored after each
        image; a .npz beside it has every point that breaks a certificate.

    Raises:
        ConfigError: no certificates to attack, plain ones, another checkpoint or other images.
        ValueError: too few votes for this alpha.
        PoolError: no worker of the cluster can be had.
    """
    from diffcert_ray.attack.search import Effort

    asked = _Asked(images, seed, votes, alpha, effort or Effort(), multiples, denoiser, dataset)
    execution = run.config.execution
    if address is None:
        return _attacked(run, asked, on_image, workers_device(execution, local=True))
    work = partial(_attacked_there, Elsewhere.of(run), asked)
    attack = at_a_worker(work, execution, address=address)
    for one in attack.images:
        on_image(one, len(attack.images))
    return attack


@dataclass(frozen=True)
class _Asked:
    """What `attack_run` was asked for."""

    images: int
    seed: int
    votes: int
    alpha: float
    effort: "Effort"
    multiples: Sequence[float] | None
    denoiser: "Denoiser | None"
    dataset: Dataset | None


def _attacked_there(run: Elsewhere, asked: _Asked, device: str) -> Attack:
    return _attacked(run.open(), asked, lambda attacked, total: None, device)


def _attacked(
    run: Run, asked: _Asked, on_image: Callable[["ImageAttack", int], None], device: str
) -> Attack:
    from diffcert_ray.attack.image import MULTIPLES, TRIES_INSIDE, Judgement, attack_image

    seed, dataset = asked.seed, asked.dataset
    rows = _chosen(run, asked.images, seed)
    judgement = Judgement(asked.votes, asked.alpha, TRIES_INSIDE * len(rows))
    options = run.config.execution.storage_options
    data = dataset if dataset is not None else load_dataset(run.config.dataset.whole(), options)
    worker = _worker(run, data, asked.denoiser, device)
    known = {int(i) for i in rows["image_id"]}
    check_same_images(run.store.done_units(), known, data.image_sha)
    attack = Attack(judgement, seed, len(_attackable(run)))
    points: list[str] = []
    others = None if dataset is not None else _training_images(run.config, seed)
    for row in rows.to_dict("records"):
        image_id, predicted = int(row["image_id"]), int(row["predicted"])
        image = np.asarray(data.image(image_id), np.float32)
        one = attack_image(
            worker.base(row["sigma"]),
            image,
            (image_id, predicted, row["radius"]),
            judgement,
            effort=asked.effort,
            seed=seed,
            towards=_directions(image, predicted, others),
            multiples=asked.multiples or MULTIPLES,
        )
        attack.images.append(one)
        attack.nfe += one.nfe
        attack.votes += one.votes
        points += _keep_points(run, attack, one)
        attack.kept = [*points]
        facts = as_json(attack) | {"chosen": len(rows)}  # more than attacked: it was stopped
        _keep(run, f"seed-{seed}.json", json.dumps(facts, indent=1).encode(), attack.kept)
        on_image(one, len(rows))
    return attack


def _attackable(run: Run) -> pd.DataFrame:
    certificates = run.certificates()
    return certificates[~certificates["abstained"] & (certificates["radius"] > 0)]


def _chosen(run: Run, images: int, seed: int) -> pd.DataFrame:
    """A random sample of the certificates that have a radius."""
    run.kind.check_attackable(run.address)
    rows = _attackable(run)
    if rows.empty:
        raise ConfigError(
            f"run {run.address} has no certificate with a radius to attack: run certify on it "
            "first, with more votes if it abstained everywhere"
        )
    chosen = random.Random(seed).sample(range(len(rows)), min(images, len(rows)))
    return rows.iloc[sorted(chosen)]


def _worker(run: Run, data: Dataset, denoiser: "Denoiser | None", device: str) -> "Worker":
    """The run's networks, as they are; not compiled, so that gradients pass through them."""
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec

    settings = run.config
    weights = weights_of(settings, denoiser)
    run.document.check_continues(RunDocument.of(settings, weights, about(data)))
    eager = settings.model_copy(
        update={"numerics": settings.numerics.model_copy(update={"compile": False})}
    )
    return WorkerSpec(eager, weights, device, denoiser, data).load("attack", tried=False)


def _training_images(settings: Config, seed: int) -> Dataset | None:
    """Some images of the train split, or None where there is no such split at hand."""
    chosen = settings.dataset.whole().model_copy(update={"split": "train"})
    try:
        data = load_dataset(chosen, settings.execution.storage_options)
        if len(data) <= LOOKED_AT:
            return data
        some = chosen.model_copy(update={"sample": LOOKED_AT, "seed": seed})
        return load_dataset(some, settings.execution.storage_options)
    except (ValueError, OSError):
        return None


def _directions(image: np.ndarray, predicted: int, others: Dataset | None) -> np.ndarray | None:
    """From an image to the nearest training images of other classes, [M, C, H, W]."""
    if others is None or others.image_shape != image.shape:
        return None
    label = labels_of(others)
    ways = [others.image(i) - image for i in others.ids.tolist() if label[i] != predicted]
    ways.sort(key=lambda way: float(np.linalg.norm(way)))
    return np.stack(ways[:TOWARDS]) if ways else None


def _keep_points(run: Run, attack: Attack, one: "ImageAttack") -> Iterator[str]:
    """Write every point that breaks a certificate, with all that is needed to check it."""
    for number, (tried, point) in enumerate(one.broken):
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            point=point,
            classes=np.array(list(tried.counts)),
            counts=np.array(list(tried.counts.values())),
            **{k: np.array(v) for k, v in _identity(run, attack, one).items()},
            length=np.array(tried.length),
            said=np.array(tried.said),
            start=np.array(tried.start),
            stop=np.array(tried.stop),
        )
        name = f"sigma-{one.sigma:g}-image-{one.image_id}-seed-{attack.seed}-{number}.npz"
        kept: list[str] = []
        _keep(run, name, buffer.getvalue(), kept)
        yield from kept


def _identity(run: Run, attack: Attack, one: "ImageAttack") -> dict[str, Any]:
    return {
        "votes_id": run.document.votes_id,
        "sigma": one.sigma,
        "image_id": one.image_id,
        "predicted": one.predicted,
        "radius": one.radius,
        "votes_seed": one.seed,
        "level": attack.judgement.level,
    }


def _keep(run: Run, name: str, data: bytes, kept: list[str]) -> None:
    """Write a file of the attack; that of an earlier attack by the same seed is replaced."""
    path = f"{FOLDER}/{name}"
    replace_view(run.store.location, path, data)
    kept.append(path)


def as_json(attack: Attack) -> dict[str, Any]:
    """Everything that was tried and attack, for machines."""
    judgement = attack.judgement
    return {
        "seed": attack.seed,
        "certified": attack.certified,
        "attacked": len(attack.images),
        "broken": len(attack.broken),
        "votes_per_verdict": judgement.votes,
        "alpha": judgement.alpha,
        "tries_inside": judgement.tries,
        "level": judgement.level,
        "nfe": attack.nfe,
        "votes": attack.votes,
        "images": [_image_json(one) for one in attack.images],
    }


def _image_json(one: "ImageAttack") -> dict[str, Any]:
    keys = ("sigma", "image_id", "predicted", "radius", "changed_at", "changed_to", "furthest")
    tries = [vars(t) | {"counts": {str(k): n for k, n in t.counts.items()}} for t in one.tries]
    return {
        **{k: getattr(one, k) for k in keys},
        "share": one.share,
        "votes_seed": one.seed,
        "broken": len(one.broken),
        "tries": tries,
    }
