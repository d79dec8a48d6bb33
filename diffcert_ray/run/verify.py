"""Verify a stored run: its certificates from its counts, a sample of units from its images."""

import secrets
from collections.abc import Callable
from functools import partial

import pandas as pd

from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.datasets.dataset import about, labels_of
from diffcert_ray.errors import CorruptImageError, DatasetError
from diffcert_ray.run.contradictions import sentence
from diffcert_ray.run.devices import at_a_worker, workers_device
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.examined import Examined
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.resume import check_same_images
from diffcert_ray.run.stored import Elsewhere, Run
from diffcert_ray.run.verification import OnUnit, Verification


def verify_run(
    run: Run,
    *,
    sample: int = 20,
    seed: int | None = None,
    address: str | None = None,
    on_stage: Callable[[str], None] = lambda said: None,
    on_unit: OnUnit = lambda done, total: None,
) -> Verification:
    """Recompute a run's certificates from its counts, and a sample of its units from its images.

    Args:
        run: an opened run whose checkpoint and dataset are at hand.
        sample: units to evaluate again.
        seed: of the choice; None draws one, so that nobody can know beforehand what is looked at.
        address: of a Ray cluster, one of whose workers does all of it, and so must reach the run;
            None is this process.
        on_stage: told in words what begins.
        on_unit: told before each unit how many were evaluated again, of how many; neither is
            told of what a worker elsewhere does.

    Returns:
        What was compared, the seed, and every difference.

    Raises:
        ConfigError: certificates that their bound does not hold for, another checkpoint or dataset.
        PoolError: no worker of the cluster can be had.
    """
    execution = run.config.execution
    if address is None:
        here = partial(workers_device, execution, local=True)
        return _verified(run, sample, seed, here, on_stage, on_unit)
    return at_a_worker(
        partial(_verified_there, Elsewhere.of(run), sample, seed), execution, address=address
    )


def _verified_there(run: Elsewhere, sample: int, seed: int | None, device: str) -> Verification:
    return _verified(
        run.open(), sample, seed, lambda: device, lambda said: None, lambda done, total: None
    )


def _verified(
    run: Run,
    sample: int,
    seed: int | None,
    device: Callable[[], str],
    on_stage: Callable[[str], None],
    on_unit: OnUnit,
) -> Verification:
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec

    config, kind, store = run.config, run.kind, run.store
    votes_id, weights = run.document.votes_id, weights_of(config)
    try:
        data = load_dataset(config.dataset.whole(), config.execution.storage_options)
    except DatasetError as error:
        if config.dataset.path is None or type(error) is not DatasetError:
            raise
        raise DatasetError(
            f"{error}; if the run was made elsewhere, say where its images are here by "
            "--dataset-path, or open_run(RUN, dataset_path=...)"
        ) from None
    version = run.document.method_version
    run.document.check_continues(RunDocument.of(config, weights, about(data), version))
    verification = Verification(seed=secrets.randbelow(2**32) if seed is None else seed)
    verification.other_method = 0 if run.document.castable else version
    verification.kinds_noted = run.document.notes_kinds
    chosen = load_dataset(config.dataset.as_stored(), config.execution.storage_options)
    _compare_dataset(run, data, chosen, verification)
    on_stage("recomputing certificates from the stored counts")
    examined = run.examined()
    _note(examined, verification)
    known = set(data.ids.tolist())
    certificates = _of_known_images(examined.certificates, known, verification)
    _compare_labels(certificates, data, verification)
    verification.missing = _missing(run, certificates, data, set(chosen.ids.tolist()))
    held = kind.held(store, plan_of(config, data))
    check_same_images(held, known, data.image_sha)
    foreign = sorted(set(held.image_sha) - known)
    if foreign:
        verification.differences.append(
            f"{len(foreign)} images have stored units, but are not in the dataset: first "
            f"image {foreign[0]}"
        )
    kind.recompute(config, votes_id, store, held, data, certificates, verification)
    if sample and run.document.castable:
        on_stage(f"evaluating {sample} units again, seed {verification.seed}: loading the network")
        worker = WorkerSpec(config, weights, device(), dataset=data).load("verify", tried=False)
        kind.replay(config, store, held, data, worker, verification, sample, on_unit)
    return verification


def _compare_dataset(run: Run, data: Dataset, chosen: Dataset, verification: Verification) -> None:
    """What run.toml says of the dataset, and what is at hand."""
    now = about(data) | {"images": len(chosen)}
    for name, stated in run.document.dataset.items():
        if name in now and now[name] != stated:
            verification.differences.append(
                f"run.toml says {name} {stated} of the dataset, which has {now[name]}"
            )


def _note(examined: Examined, verification: Verification) -> None:
    """Everything that contradicts itself, one sentence for each certificate."""
    verification.differences += examined.odd
    for found in examined.contradictions:
        for row in found.rows.tolist():
            about_row = examined.rows.iloc[row]
            key = float(about_row["sigma"]), int(about_row["image_id"])
            if key not in verification.contradicted:
                verification.contradicted.add(key)
                told = sentence(examined.rows, found, row)
                verification.differences.append(f"{told} ({examined.source(row)})")


def _of_known_images(
    certificates: pd.DataFrame, known: set[int], verification: Verification
) -> pd.DataFrame:
    foreign = ~certificates["image_id"].isin(known)
    for image_id in certificates.loc[foreign, "image_id"].tolist():
        verification.differences.append(
            f"image {image_id} has a certificate, but is not in the dataset"
        )
    return certificates[~foreign]


def _compare_labels(certificates: pd.DataFrame, data: Dataset, verification: Verification) -> None:
    """Labels of images that could not be read; those of others are compared with all else."""
    label = labels_of(data)
    unread = certificates.loc[certificates["nfe"] == 0, ["image_id", "label"]]
    for image_id, stored in unread.to_numpy().tolist():
        if stored != label[image_id]:
            verification.differences.append(
                f"image {image_id}: stored label {stored}, the dataset has {label[image_id]}"
            )


def _missing(run: Run, certificates: pd.DataFrame, data: Dataset, chosen: set[int]) -> int:
    """Images times sigmas that were asked for and have no certificate.

    Those that could not be read have one only while that is so.
    """
    unread = certificates[certificates["nfe"] == 0]
    readable = {i for i in set(unread["image_id"].tolist()) if _can_be_read(data, i)}
    kept = certificates[~((certificates["nfe"] == 0) & certificates["image_id"].isin(readable))]
    certified = {s: set(ids.tolist()) for s, ids in kept.groupby("sigma")["image_id"]}
    asked = run.asked_images()
    for sigma in run.kind.sigmas(run.config):
        asked[sigma] = asked.get(sigma, set()) | chosen
    return sum(len(ids - certified.get(sigma, set())) for sigma, ids in asked.items())


def _can_be_read(data: Dataset, image_id: int) -> bool:
    try:
        data.image(image_id)
    except CorruptImageError:
        return False
    return True
