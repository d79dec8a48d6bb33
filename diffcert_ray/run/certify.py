"""Certify a dataset: start a run, or continue it."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset, check_images, load_dataset
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.run import calibration
from diffcert_ray.run.loop import Driver, Outcome, Progress
from diffcert_ray.run.opening import calibrated, open_or_create, store_options
from diffcert_ray.run.plan import check_same_images, labels_of, plan_of
from diffcert_ray.run.preflight import check_plan, leave_out_corrupt
from diffcert_ray.run.recording import LossRows, VoteRows
from diffcert_ray.run.resume import held_by, stages_of, stored_certificates, unfounded_certificates
from diffcert_ray.run.stored import Run
from diffcert_ray.run.vote_rows import unread_rows
from diffcert_ray.storage.activity import OtherWriters
from diffcert_ray.storage.asked_images import store_asked
from diffcert_ray.storage.compaction import COMPACT_AT, compact
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.writer import Writer
from diffcert_ray.votes.image import Plan

if TYPE_CHECKING:
    from diffcert_ray.checkpoints.image_classifier import Network
    from diffcert_ray.denoisers.denoiser import Denoiser

RUNS_FOLDER = "runs"


def certify(
    config: "str | Path | Mapping[str, Any] | Config",
    run: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    images: tuple[int, int] | None = None,
    local: bool = False,
    address: str | None = None,
    denoiser: "Denoiser | None" = None,
    dataset: Dataset | None = None,
    classifier: "Network | None" = None,
    on_damaged: str = "refuse",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_start: Callable[["Run"], None] = lambda run: None,
    on_calibrated: Callable[[str], None] = lambda said: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Certify a dataset: start a run, or continue the one that is in the folder.

    With probability at least 1 - alpha for each image and sigma, the smoothed classifier returns
    the stored class everywhere in the open l2 ball of the stored radius (pixel units, images in [0,
    1]).

    Args:
        config: a TOML file, the name of a preset, a mapping, or a Config.
        run: folder or fsspec address of the run; by default ``runs/NAME``.
        overrides: "table.key=value" settings.
        images: positions start:stop in the subset, to split a run over drivers.
        local: evaluate in this process, without Ray.
        address: of a Ray cluster to join ("auto", "host:port"); by default a local Ray is started.
        denoiser: an object in place of ``model`` (oracle worlds, own networks). Its class's name,
            parameters and buffers identify the run: keep all that changes its output in these.
        dataset: an object in place of ``dataset``.
        classifier: a torch module in place of ``classifier.checkpoint`` and ``architecture``: takes
            images [B, C, H, W] in pixel units, normalised by ``classifier.mean`` and ``std``, and
            returns logits [B, K].
        on_damaged: "refuse" a damaged part of the store, or "recompute" its units.
        on_progress: called about once a second.
        on_start: called once the run is open and before anything is evaluated.
        on_calibrated: called with one line on what a new, long run was measured to compute with.
        should_stop: asked about once a second; True stores what there is and ends the run.

    Returns:
        The run; ``outcome.complete`` says whether every image has its certificate.

    Raises:
        ConfigError, CheckpointError, ValueError: something is wrong that could be checked before
            any work; the message names the value, the limit and the remedy.
        StoreError: the store cannot be written or trusted.
        PoolError: no worker can be had.
    """
    from diffcert_ray.engine.worker import WorkerSpec, resolve_device, weights_of

    settings = load_config(config, overrides)
    given = settings.execution.storage_options
    data = dataset if dataset is not None else load_dataset(settings.dataset, given)
    weights = weights_of(settings, denoiser, classifier)
    place = str(run) if run is not None else os.path.join(RUNS_FOLDER, settings.name)
    device = resolve_device(settings.execution.device)
    plan = plan_of(settings, data, images)
    check_plan(settings, plan, data, denoiser, classifier)
    checked = check_images(data, plan.image_ids)
    plan, unreadable = leave_out_corrupt(settings, plan, checked)
    image_sha = cache(lambda image_id: checked.shas.get(image_id) or data.image_sha(image_id))
    options = store_options(settings, place)
    nfe = calibration.planned_nfe(settings, plan, data.num_classes)
    calibrate = partial(
        calibrated,
        open_location(place, options).check_writable,
        nfe,
        weights,
        device,
        denoiser,
        on_calibrated,
        local=local,
        address=address,
    )
    store, document, settings = open_or_create(
        place, settings, weights, data, options, calibrate, on_damaged=on_damaged
    )
    spec = WorkerSpec(
        settings,
        weights,
        device,
        denoiser,
        dataset,
        classifier,
        fingerprint=data.fingerprint,
        image_shas=checked.shas,
    )
    on_start(Run(place, store, document))
    if store.loose_part_count() > COMPACT_AT:
        compact(store)
    labels = labels_of(data)
    stored = stored_certificates(store, plan, unreadable, votes_id=document.votes_id)
    held = held_by(store, plan)
    check_same_images(held, set(labels).difference(unreadable), image_sha)
    method, votes_id = settings.method.name, document.votes_id
    unread = unread_rows(plan, unreadable, labels, method=method, votes_id=votes_id)
    if unreadable:
        with store.writer() as writer:
            writer.add_certificates(r for r in unread if (r.sigma, r.image_id, r.n) not in stored)
    stored -= unfounded_certificates(store, plan, stored, held)
    stages = stages_of(settings, plan, held, stored)
    rows: VoteRows | LossRows = VoteRows(method, votes_id, labels, image_sha)
    if isinstance(plan, PlainPlan):
        rows = LossRows(votes_id, labels, image_sha, data.image)

    def certify_image(image: Any) -> CertificateRow | None:
        row = rows.certificate(image)
        return None if (row.sigma, row.image_id, row.n) in stored else row

    with store.writer(flush_s=settings.execution.flush_s) as writer:
        if stages.all_stored():  # only certificates may be missing: no worker is needed
            finished: list[Any] = list(stages.finished_images)
            writer.add_certificates(r for i in finished if (r := certify_image(i)))
            return Run(place, store, document, Outcome(complete=True, unreadable=unreadable))
        store.location.check_writable()  # before the first evaluation, not after it
        store_asked(store.location, plan.sigmas, data.ids.tolist())
        others = _other_writers(store, plan, writer)
        progressed = _looking(others, on_progress)
        pool = _pool(spec, settings, local=local, address=address)
        try:
            outcome = Driver(
                stages,
                pool,
                writer,
                partial(rows.record, writer),
                certify_image,
                item_s=settings.execution.item_s,
                on_progress=progressed if local else _watched(progressed, settings.name),
                should_stop=should_stop,
            ).run()
            others.look(now=True)
        finally:
            pool.close()
    outcome.unreadable = unreadable
    return Run(place, store, document, outcome)


def _other_writers(store: RunStore, plan: Plan | PlainPlan, writer: Writer) -> OtherWriters:
    folder = "losses" if isinstance(plan, PlainPlan) else "units"
    return OtherWriters(store.location, folder, writer, plan.image_ids.tolist(), plan.sigmas)


def _looking(
    others: OtherWriters, on_progress: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """The same, with a look now and then at who else writes into the run."""

    def looking(progress: Progress) -> None:
        others.look()
        on_progress(progress)

    return looking


def _pool(spec: Any, settings: Config, *, local: bool, address: str | None) -> Any:
    if local:
        from diffcert_ray.pool.local import LocalPool

        return LocalPool(spec)
    from diffcert_ray.pool.ray_pool import RayPool

    execution = settings.execution
    return RayPool(
        spec,
        actors=execution.actors,
        address=address,
        gpus_per_actor=execution.gpus_per_actor,
        start_timeout_s=execution.start_timeout_s,
        stall_timeout_s=execution.stall_timeout_s,
    )


def _watched(on_progress: Callable[[Progress], None], run_name: str) -> Callable[[Progress], None]:
    """The same, with every progress also exported as metrics of the Ray cluster."""
    from diffcert_ray.pool.ray_pool import RayRecorder
    from diffcert_ray.run.monitoring import COUNTERS, GAUGES, Monitor

    monitor = Monitor(RayRecorder(run_name, COUNTERS, GAUGES))

    def watched(progress: Progress) -> None:
        monitor(progress)
        on_progress(progress)

    return watched
