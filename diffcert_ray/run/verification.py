"""Verify a stored run: its certificates from its counts, a sample of units from its images."""

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffcert_ray.datasets import Dataset, load_dataset
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.run.certifiable import check_complete_votes, check_fixed_n, check_own
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.loss_rows import plain_row, recompute_plain
from diffcert_ray.run.plan import about, check_same_images, labels_of, plan_of
from diffcert_ray.run.stored import Run
from diffcert_ray.run.stored_losses import read_losses
from diffcert_ray.run.vote_rows import (
    recompute,
    recompute_stopped,
)
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.votes.image import Plan

if TYPE_CHECKING:
    from diffcert_ray.run.verify import Verification


def verify_run(run: Run, *, sample: int = 20, seed: int | None = None) -> "Verification":
    """Recompute a run's certificates from its counts, and a sample of its units from its images.

    Args:
        run: an opened run whose checkpoint and dataset are at hand.
        sample: units to evaluate again.
        seed: of the choice; None draws one, so that nobody can know beforehand what is looked at.

    Returns:
        What was compared, the seed, and every difference.

    Raises:
        ConfigError: certificates that their bound does not hold for, another checkpoint or dataset.
    """
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import Worker, WorkerSpec, resolve_device
    from diffcert_ray.run.verify import Verification, compare_certificates, replay, replay_losses

    settings, certificates = run.config, run.certificates()
    weights = weights_of(settings)
    data = load_dataset(settings.dataset.whole(), settings.execution.storage_options)
    run.document.check_continues(RunDocument.of(settings, weights, about(data)))
    certified = certificates.groupby("sigma")["image_id"].nunique().to_dict()
    found, plain = Verification(), settings.without_votes
    found.seed = secrets.randbelow(2**32) if seed is None else seed
    found.missing = sum(n - certified.get(sigma, 0) for sigma, n in run.asked().items())
    check_certifiable(run, certificates)
    label = labels_of(data).__getitem__
    if plain:
        plan = plan_of(settings, data)
        assert isinstance(plan, PlainPlan)
        losses = read_losses(run.store, len(plan.s), plan.classes)
        check_same_images(losses, set(data.ids.tolist()), data.image_sha)
        for bound in ("lipschitz", "local"):
            rows = [
                plain_row(image, c, label(image.image_id), votes_id=run.document.votes_id)
                for image, c in recompute_plain(plan, losses, data.image, bound)
            ]
            stored = certificates[certificates["bound"] == bound]
            if bound == plan.bound or len(stored):
                compare_certificates(stored, rows, found)
    else:
        check_same_images(run.store.done_units(), set(data.ids.tolist()), data.image_sha)
        compare_certificates(certificates, _recomputed(run, data, certificates), found)
    if sample:
        device = resolve_device(settings.execution.device)
        spec = WorkerSpec(settings, weights, device, dataset=data)
        worker = spec.load("verify")
        if plain:
            assert isinstance(worker, Worker)  # a configuration without votes has method dc
            replay_losses(losses, worker, found, sample=sample)
        else:
            replay(run.units(), worker, found, sample=sample)
    return found


def check_certifiable(run: Run, certificates: pd.DataFrame) -> None:
    """Refuse certificates of another run, and those whose counts their bound does not hold for.

    Args:
        run: an opened run.
        certificates: its certificates.

    Raises:
        ConfigError: another method, bound, alpha, n0 or other votes; fixed-n bounds on stopped or
            extended counts; ``two-class`` on votes that only said whether they are their target.
    """
    check_own(certificates, run.config, run.document.votes_id)
    if run.config.without_votes:
        return
    votes = run.config.votes
    check_fixed_n(certificates, votes.bound, votes.n)
    if (certificates["bound"] == "two-class").any():
        check_complete_votes(certificates, run.store.units(["stream", "target"]).to_pandas())


def _recomputed(run: Run, data: Dataset, certificates: pd.DataFrame) -> list[CertificateRow]:
    """The certificates that the votes of a run give."""
    plan = plan_of(run.config, data)
    assert isinstance(plan, Plan)
    units = run.units()
    images = np.array(sorted({*units["image_id"], *certificates["image_id"]}), np.int64)
    sigmas = tuple(sorted({*units["sigma"], *certificates["sigma"]}))
    plan = replace(plan, image_ids=images, sigmas=sigmas)
    done, label = run.store.done_units(), labels_of(data).__getitem__
    name, votes_id = run.config.method.name, run.document.votes_id
    if plan.bound != "sequential":
        return list(recompute(plan, done, label, method=name, votes_id=votes_id))
    columns = [certificates[c].tolist() for c in ("sigma", "image_id", "n")]
    stored = zip(*columns, strict=True)
    return list(recompute_stopped(plan, done, stored, label, method=name, votes_id=votes_id))
