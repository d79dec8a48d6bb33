"""Verify a stored run: its certificates from its counts, a sample of units from its images."""

import secrets

from diffcert_ray.datasets import load_dataset
from diffcert_ray.datasets.dataset import about
from diffcert_ray.run.certifiable import check_certifiable
from diffcert_ray.run.document import RunDocument
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.resume import check_same_images
from diffcert_ray.run.stored import Run
from diffcert_ray.run.verification import Verification


def verify_run(run: Run, *, sample: int = 20, seed: int | None = None) -> Verification:
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
    from diffcert_ray.denoisers.device import resolve_device
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec

    config, kind, store, certificates = run.config, run.kind, run.store, run.certificates()
    votes_id, weights = run.document.votes_id, weights_of(config)
    data = load_dataset(config.dataset.whole(), config.execution.storage_options)
    version = run.document.method_version
    run.document.check_continues(RunDocument.of(config, weights, about(data), version))
    certified = certificates.groupby("sigma")["image_id"].nunique().to_dict()
    verification = Verification(seed=secrets.randbelow(2**32) if seed is None else seed)
    verification.other_method = 0 if run.document.castable else version
    missing = (n - certified.get(sigma, 0) for sigma, n in run.asked().items())
    verification.missing = sum(missing)
    check_certifiable(run, certificates)
    held = kind.held(store, plan_of(config, data))
    check_same_images(held, set(data.ids.tolist()), data.image_sha)
    kind.recompute(config, votes_id, store, held, data, certificates, verification)
    if sample and run.document.castable:
        device = resolve_device(config.execution.device)
        worker = WorkerSpec(config, weights, device, dataset=data).load("verify")
        kind.replay(config, store, held, data, worker, verification, sample)
    return verification
