"""Certify a dataset: checked before anything starts, a run opened or continued, then driven."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config, ExecutionConfig
from diffcert_ray.datasets import Dataset, check_images, load_dataset
from diffcert_ray.datasets.dataset import labels_of
from diffcert_ray.pool.local import Pool
from diffcert_ray.pool.usual import usual_pool
from diffcert_ray.run.agreement import agree, disagreement, supersede
from diffcert_ray.run.budget import Budget, BudgetNote, Spending
from diffcert_ray.run.devices import workers_device
from diffcert_ray.run.head_check import check_head
from diffcert_ray.run.kind import Rows, kind_of
from diffcert_ray.run.loop import Driver, Outcome, Progress, Work
from diffcert_ray.run.opening import calibrated, open_or_create, store_options
from diffcert_ray.run.plan import plan_of
from diffcert_ray.run.preflight import check_plan, leave_out_corrupt
from diffcert_ray.run.resume import (
    check_same_images,
    stored_certificates,
    unfounded_certificates,
    unread_rows,
)
from diffcert_ray.run.stored import Run
from diffcert_ray.storage.activity import OtherWriters
from diffcert_ray.storage.asked_images import store_asked
from diffcert_ray.storage.compaction import COMPACT_AT, compact
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.storage.schemas import CertificateRow

if TYPE_CHECKING:
    from diffcert_ray.checkpoints.image_classifier import Network
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.engine.worker import WorkerSpec

logger = logging.getLogger(__name__)

RUNS_FOLDER = "runs"

MakePool = Callable[["WorkerSpec", Config], Pool]
"""From what each worker loads, and the run's configuration, to the workers."""


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
    max_hours: float | None = None,
    max_nfe: int | None = None,
    max_cost: float | None = None,
    price: float | None = None,
    pool: MakePool | None = None,
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
        on_damaged: "refuse" damaged and foreign files of the store, or "recompute": set them aside
            for good and compute again what units are missing.
        on_progress: called about once a second.
        on_start: called once the run is open and before anything is evaluated.
        on_calibrated: called with one line on what a new, long run was measured to compute with.
        should_stop: asked about once a second; True stores what there is and ends the run.
        max_hours: of this start, > 0; then the same. The same call continues.
        max_nfe: evaluations of this start, >= 1, likewise.
        max_cost: of the workers of this start, in the currency of ``price``, > 0, likewise.
        price: of one worker for an hour, >= 0.
        pool: makes the workers, in place of this process (``local``) or of Ray's actors.

    Returns:
        The run; ``outcome.complete`` says whether every image has its certificate.

    Raises:
        ConfigError, CheckpointError, ValueError: something is wrong that could be checked before
            any work; the message names the value, the limit and the remedy.
        StoreError: the store cannot be written or trusted.
        PoolError: no worker can be had.
    """
    spending = Spending(Budget(max_hours, max_nfe, max_cost, price))
    device_of = partial(workers_device, local=local or pool is not None, address=address)
    settings = load_config(config, overrides)
    checked = _checked(settings, images, denoiser, dataset, classifier, device_of)
    opened = _opened(
        checked,
        str(run) if run is not None else os.path.join(RUNS_FOLDER, checked.spec.config.name),
        on_damaged,
        on_calibrated,
        local=local,
        address=address,
    )
    on_start(opened.run)
    todo = _left_to_do(opened)
    evaluates = not todo.work.all_stored()
    with opened.run.store.writer(flush_s=opened.spec.config.execution.flush_s) as writer:
        if not evaluates:  # only certificates may be missing: no worker is needed
            images_done: list[Any] = list(todo.work.finished_images)
            writer.add_certificates(row for i in images_done if (row := todo.certificate(i)))
            outcome = Outcome(complete=True)
        else:
            make = pool or partial(usual_pool, local=local, address=address)
            watching = on_progress if local or pool else _exported(on_progress, opened)
            outcome = _driven(opened, todo, writer, make, watching, should_stop, spending)
    del todo  # what was read of the store is read anew
    if evaluates:
        outcome.complete &= _in_agreement(opened)
    if on_damaged == "recompute" and not outcome.interrupted:
        opened.run.store.supersede(writer.name)  # what it held is stored again
    outcome.unreadable = opened.unreadable
    return replace(opened.run, outcome=outcome)


@dataclass(frozen=True)
class _Checked:
    """What is known to be right before anything starts or is written."""

    spec: "WorkerSpec"
    data: Dataset
    plan: Any  # of the images that can be read
    unreadable: list[int]  # image ids of the others


def _checked(
    config: Config,
    images: tuple[int, int] | None,
    denoiser: "Denoiser | None",
    dataset: Dataset | None,
    classifier: "Network | None",
    device_of: Callable[[ExecutionConfig], str],
) -> _Checked:
    """Everything that can be checked without a run: settings, files, images, radii, device."""
    from diffcert_ray.engine.weights import weights_of
    from diffcert_ray.engine.worker import WorkerSpec

    options = config.execution.storage_options
    data = dataset if dataset is not None else load_dataset(config.dataset, options)
    _say_how_it_is_read(data, asked=config.dataset.class_order is not None)
    weights = weights_of(config, denoiser, classifier)
    plan = plan_of(config, data, images)
    check_plan(config, plan, data, denoiser, classifier)
    read = check_images(data, plan.image_ids)
    plan, unreadable = leave_out_corrupt(config, plan, read)
    check_head(config, weights, data, plan.image_ids.tolist(), read.shas)
    plan = kind_of(config).on_grid(plan, read.off_grid)
    device = device_of(config.execution)
    spec = WorkerSpec(
        config,
        weights,
        device,
        denoiser,
        dataset,
        classifier,
        fingerprint=data.fingerprint,
        image_shas=read.shas,
    )
    return _Checked(spec, data, plan, unreadable)


def _say_how_it_is_read(data: Dataset, *, asked: bool) -> None:
    """What one may not expect; the numbers of classes where their order was asked about."""
    if data.mapping:
        level = logging.WARNING if asked else logging.INFO
        logger.log(level, "dataset %s %s: %s", data.name, data.split, data.mapping)
    for note in data.notes:
        logger.warning("dataset %s %s: %s", data.name, data.split, note)


@dataclass(frozen=True)
class _Opened:
    """A run's folder that was made or continued, and what is asked of it."""

    run: Run
    spec: "WorkerSpec"  # with the run's [numerics]
    data: Dataset
    plan: Any  # of the images that can be read
    unreadable: list[int]  # image ids of the others


def _opened(
    checked: _Checked,
    folder: str,
    on_damaged: str,
    on_calibrated: Callable[[str], None],
    *,
    local: bool,
    address: str | None,
) -> _Opened:
    """The run's folder: made with calibrated numerics, or continued with those that it has."""
    spec, data = checked.spec, checked.data
    options = store_options(spec.config, folder)
    location = open_location(folder, options)
    calibrate = partial(
        calibrated,
        location.check_writable,
        kind_of(spec.config).planned_nfe(spec.config, checked.plan, data.num_classes),
        spec.weights,
        spec.device,
        spec.denoiser,
        spec.dataset,
        on_calibrated,
        local=local,
        address=address,
    )
    store, document, config = open_or_create(
        location, spec.config, spec.weights, data, options, calibrate, on_damaged=on_damaged
    )
    run = Run(folder, store, document)
    spec = replace(spec, config=config)
    return _Opened(run, spec, data, checked.plan, checked.unreadable)


@dataclass(frozen=True)
class _ToDo:
    """What a run still lacks."""

    work: Work
    rows: Rows
    stored: Collection[tuple[float, int, int]]  # (sigma, image_id, n) of certificates that stand

    def certificate(self, image: Any) -> CertificateRow | None:
        """The row of a finished image; None where it is stored already."""
        row = self.rows.certificate(image)
        return None if (row.sigma, row.image_id, row.n) in self.stored else row


def _left_to_do(opened: _Opened) -> _ToDo:
    """Compare what is asked with what is stored; images that cannot be read are certified here."""
    store, data, plan, config = opened.run.store, opened.data, opened.plan, opened.spec.config
    kind, votes_id, unreadable = opened.run.kind, opened.run.document.votes_id, opened.unreadable
    if store.loose_part_count() > COMPACT_AT:
        compact(store)
    shas = opened.spec.image_shas
    image_sha = cache(lambda image_id: shas.get(image_id) or data.image_sha(image_id))
    labels = labels_of(data)
    stored = stored_certificates(store, plan, unreadable, votes_id=votes_id)
    held = kind.held(store, plan)
    check_same_images(held, set(labels).difference(unreadable), image_sha)
    if unreadable:
        store_asked(store.location, plan.sigmas, data.ids.tolist())
        unread = unread_rows(
            plan,
            unreadable,
            labels,
            p_low=kind.unread_p_low,
            method=config.method.name,
            votes_id=votes_id,
        )
        with store.writer() as writer:
            writer.add_certificates(r for r in unread if (r.sigma, r.image_id, r.n) not in stored)
    unfounded = unfounded_certificates(store, plan, stored, kind.votes_held(held))
    found = disagreement(kind, config, plan, votes_id, store, held, data)
    if found.superseding:
        supersede(store, found.superseding)
    standing = set(stored) - unfounded - found.lacking
    certified = {(sigma, image_id) for sigma, image_id, _ in standing}
    work = kind.work(config, plan, held, certified)
    return _ToDo(work, kind.rows(config, votes_id, labels, image_sha, data.image), standing)


def _driven(
    opened: _Opened,
    todo: _ToDo,
    writer: Any,
    make_pool: MakePool,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    spending: Spending,
) -> Outcome:
    """Evaluate what is left to do, and store it as it comes."""
    store, plan, config = opened.run.store, opened.plan, opened.spec.config
    store.location.check_writable()  # before the first evaluation, not after it
    store_asked(store.location, plan.sigmas, opened.data.ids.tolist())
    images = plan.image_ids.tolist()
    note = BudgetNote(store.location)
    others = OtherWriters(store.location, opened.run.kind.folder, writer, images, plan.sigmas)

    def progressed(progress: Progress) -> None:
        others.look()
        note.note(progress.budget)
        on_progress(progress)

    def record(result: Any, settled: Sequence[Any]) -> None:
        about = {"computed_on": result.computed_on, **config.numerics.model_dump()}
        writer.meet_kind(result.numerics, about)
        todo.rows.record(writer, result, settled)

    pool = make_pool(opened.spec, config)
    try:
        outcome = Driver(
            todo.work,
            pool,
            writer,
            record,
            todo.certificate,
            item_s=config.execution.item_s,
            batch=config.numerics.batch,
            on_progress=progressed,
            should_stop=should_stop,
            spending=spending,
        ).run()
        note.note(spending.said(outcome.nfe), outcome.reached, now=True)
        others.look(now=True)
    finally:
        pool.close()
    return outcome


def _in_agreement(opened: _Opened) -> bool:
    """Supersede certificates that the counted units do not give; False where votes are lacking.

    Another driver may have stored units meanwhile that count instead of this one's.
    """
    run, config = opened.run, opened.spec.config
    lacking = agree(run.kind, config, opened.plan, run.document.votes_id, run.store, opened.data)
    if lacking:
        sigma, image_id, _ = min(lacking)
        logger.warning(
            "%d certificates in %s need votes that are not stored (first image %d at sigma %g): a "
            "driver of another numerics kind chose another class. Run the same command again, "
            "which casts them",
            len(lacking),
            run.address,
            image_id,
            sigma,
        )
    return not lacking


def _exported(
    on_progress: Callable[[Progress], None], opened: _Opened
) -> Callable[[Progress], None]:
    """The same, with every progress also exported as metrics of the Ray cluster."""
    from diffcert_ray.pool.on_ray.recorder import RayRecorder
    from diffcert_ray.run.monitoring import COUNTERS, GAUGES, Monitor

    made: list[Monitor] = []  # when Ray is up

    def exported(progress: Progress) -> None:
        if not made:
            made.append(Monitor(RayRecorder(opened.spec.config.name, COUNTERS, GAUGES)))
        made[0](progress)
        on_progress(progress)

    return exported
