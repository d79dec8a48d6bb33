"""Certify a dataset: start a run, or continue it."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcert_ray import calibration
from diffcert_ray.asked import about, check_same_images, labels_of, plan_of
from diffcert_ray.config import Config, load_config
from diffcert_ray.datasets import Dataset, check_images, load_dataset
from diffcert_ray.image_votes import ImageVotes, Plan
from diffcert_ray.loss_stages import ImageLosses, LossStages
from diffcert_ray.loss_store import StoredLosses, read_losses
from diffcert_ray.loss_work import LossResult, UnitLosses
from diffcert_ray.model_files import model_files
from diffcert_ray.plain import PlainPlan
from diffcert_ray.plain_results import image_certificate, loss_row, plain_row
from diffcert_ray.preflight import check_plan, leave_out_corrupt
from diffcert_ray.results import (
    certificate_row,
    stored_units,
    unfounded,
    unit_row,
    unread_rows,
    votes_held,
)
from diffcert_ray.run import Driver, Outcome, Progress
from diffcert_ray.run_document import RunDocument
from diffcert_ray.stages import SettledUnit, Stages
from diffcert_ray.storage.compaction import COMPACT_AT, compact
from diffcert_ray.storage.create_only import StoreError
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.location import open_location
from diffcert_ray.storage.other_writers import OtherWriters
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.writer import Writer
from diffcert_ray.stored_run import Run

if TYPE_CHECKING:
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.image_classifier import Network

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
        denoiser: an object in place of ``model`` (oracle worlds, own networks).
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
    from diffcert_ray.worker import WorkerSpec, resolve_device, weights_of

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
    options = _store_options(settings, place)
    nfe = calibration.planned_nfe(settings, plan, data.num_classes)
    calibrated = partial(
        _calibrated,
        open_location(place, options).check_writable,
        nfe,
        weights,
        device,
        denoiser,
        on_calibrated,
        local=local,
        address=address,
    )
    store, document, settings = _open_or_create(
        place, settings, weights, data, options, calibrated, on_damaged=on_damaged
    )
    spec = WorkerSpec(settings, weights, device, denoiser, dataset, classifier)
    on_start(Run(place, store, document))
    if store.loose_part_count() > COMPACT_AT:
        compact(store)
    labels = labels_of(data)
    stored = _stored_certificates(store, plan, unreadable)
    held = _held(store, plan)
    if isinstance(held, DoneUnits):
        check_same_images(held, set(labels).difference(unreadable), image_sha)
    unread = unread_rows(
        plan, unreadable, labels, method=settings.method.name, votes_id=document.votes_id
    )
    if unreadable:
        with store.writer() as writer:
            writer.add_certificates(r for r in unread if (r.sigma, r.image_id, r.n) not in stored)
    stored -= _unfounded(store, plan, stored, held)
    stages = _stages(settings, plan, held, stored)

    def certify_votes(image: ImageVotes) -> CertificateRow | None:
        verdict = image.verdict()
        assert verdict is not None  # the stages hand over finished images only
        name, votes_id = settings.method.name, document.votes_id
        label = labels[image.image_id]
        return unless_stored(certificate_row(image, verdict, label, method=name, votes_id=votes_id))

    def certify_losses(image: ImageLosses) -> CertificateRow | None:
        found = image_certificate(image, data.image(image.image_id))
        label = labels[image.image_id]
        return unless_stored(plain_row(image, found, label, votes_id=document.votes_id))

    def unless_stored(row: CertificateRow) -> CertificateRow | None:
        return None if (row.sigma, row.image_id, row.n) in stored else row

    def record_votes(result: Any, settled: Sequence[SettledUnit]) -> None:
        writer.add_units(unit_row(s, image_sha(s.units.unit.image_id)) for s in settled)

    def record_losses(result: LossResult, units: Sequence[UnitLosses]) -> None:
        writer.add_losses(loss_row(u, result, image_sha(u.unit.image_id)) for u in units)

    plain = isinstance(plan, PlainPlan)
    certify_image: Callable[[Any], CertificateRow | None]
    certify_image = certify_losses if plain else certify_votes
    with store.writer(flush_s=settings.execution.flush_s) as writer:
        if stages.all_stored():  # only certificates may be missing: no worker is needed
            finished: list[Any] = list(stages.finished_images)
            writer.add_certificates(r for i in finished if (r := certify_image(i)))
            return Run(place, store, document, Outcome(complete=True, unreadable=unreadable))
        store.location.check_writable()  # before the first evaluation, not after it
        others = _other_writers(store, plan, writer)
        progressed = _looking(others, on_progress)
        pool = _pool(spec, settings, local=local, address=address)
        try:
            outcome = Driver(
                stages,
                pool,
                writer,
                record_losses if plain else record_votes,
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


def _held(store: RunStore, plan: Plan | PlainPlan) -> DoneUnits | StoredLosses:
    """What the store holds for a plan; read once, since it may be large."""
    if isinstance(plan, PlainPlan):
        return read_losses(store, len(plan.s), plan.classes)
    return store.done_units()


def _stages(
    settings: Config,
    plan: Plan | PlainPlan,
    held: DoneUnits | StoredLosses,
    stored: set[tuple[float, int, int]],
) -> Stages | LossStages:
    """What is left to do; ``stored`` are the certificates that stand."""
    certified = {(sigma, image_id) for sigma, image_id, _ in stored}
    if isinstance(held, StoredLosses):
        assert isinstance(plan, PlainPlan)
        return LossStages(plan, held.of, certified=certified)
    assert isinstance(plan, Plan)
    return Stages(
        plan,
        stored_units(held, plan),
        hand_back_levels=settings.sift.levels if settings.execution.stages == "split" else None,
        # A sequential certificate may be of an earlier, smaller n: its image is looked at again.
        certified=certified if plan.bound != "sequential" else (),
    )


def _unfounded(
    store: RunStore,
    plan: Plan | PlainPlan,
    stored: set[tuple[float, int, int]],
    held: DoneUnits | StoredLosses,
) -> set[tuple[float, int, int]]:
    """The plan's certificates that rest on lost votes, to be made anew; refused unless asked for.

    The last part of a writer leaves no gap in the numbering when it is deleted: this finds it.
    """
    planned = set(plan.image_ids.tolist())
    votes = votes_held(held) if isinstance(held, DoneUnits) else held.draws_held()
    found = unfounded((key for key in stored if key[1] in planned), votes, plan.n0)
    if found and store.on_damaged == "refuse":
        sigma, image_id, n = min(found)
        select, estimate = votes(sigma, image_id)
        raise StoreError(
            f"{len(found)} certificates in {store.address} rest on votes that are not stored, "
            f"first image {image_id} at sigma {sigma:g}: {select} + {estimate} votes are there of "
            f"{plan.n0} + {n}. A part was deleted: restore it from a copy, or run again with "
            'on_damaged="recompute" (--recompute-damaged): what is missing is computed again'
        )
    return found


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


def _calibrated(
    check_writable: Callable[[], None],
    nfe: float,
    weights: Mapping[str, str],
    device: str,
    denoiser: "Denoiser | None",
    on_calibrated: Callable[[str], None],
    settings: Config,
    *,
    local: bool,
    address: str | None,
) -> Config:
    """The settings of a run about to start, with what [numerics] leaves open chosen if it pays."""
    if not calibration.is_wanted(settings, nfe, own_object=denoiser is not None):
        return settings
    check_writable()  # before the minutes that this may take
    workers = settings.execution.actors or (1 if local else os.cpu_count() or 1)
    calibrate = partial(
        calibration.calibrate,
        settings,
        weights,
        device,
        nfe=nfe,
        workers=workers,
        denoiser=denoiser,
    )
    if local or (address is None and device == "cpu"):
        found = calibrate()
    else:  # a worker's machine may be another one, and a GPU is to be free again when they start
        from diffcert_ray.ray_pool import calibrate_on_worker

        gpus = settings.execution.gpus_per_actor if device == "cuda" else 0.0
        limit_s = settings.execution.stall_timeout_s
        found = calibrate_on_worker(calibrate, address=address, gpus=gpus, limit_s=limit_s)
    on_calibrated(found.said)
    return settings.model_copy(update={"numerics": found.numerics})


def _pool(spec: Any, settings: Config, *, local: bool, address: str | None) -> Any:
    if local:
        from diffcert_ray.pool import LocalPool

        return LocalPool(spec)
    from diffcert_ray.ray_pool import RayPool

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
    from diffcert_ray.monitoring import COUNTERS, GAUGES, Monitor
    from diffcert_ray.ray_pool import RayRecorder

    monitor = Monitor(RayRecorder(run_name, COUNTERS, GAUGES))

    def watched(progress: Progress) -> None:
        monitor(progress)
        on_progress(progress)

    return watched


def _open_or_create(
    place: str,
    settings: Config,
    weights: Mapping[str, str],
    data: Dataset,
    options: Mapping[str, Any] | None,
    calibrated: Callable[[Config], Config],
    *,
    on_damaged: Any,
) -> tuple[RunStore, RunDocument, Config]:
    """The run's store and document, and the settings with the run's [numerics]."""
    described = about(data)
    if not RunStore.exists(place, options):
        settings = calibrated(settings)
    if not RunStore.exists(place, options):  # nor did another driver start it meanwhile
        document = RunDocument.of(settings, weights, described)
        store = RunStore.create(place, document.to_bytes(), options, on_damaged=on_damaged)
        return store, document, settings
    store = RunStore.open(place, options, on_damaged=on_damaged)
    document = RunDocument.from_bytes(store.run_document())
    document = document.with_storage_options(settings.execution.storage_options)
    settings = document.adopt_numerics(settings)
    document.check_continues(RunDocument.of(settings, weights, described))
    return store, document, settings


def _store_options(settings: Config, place: str) -> dict[str, Any] | None:
    """Storage options of the run folder: those that open only its inputs are not the folder's."""
    inputs = [file.source for file in model_files(settings).values()]
    inputs += [settings.dataset.path or "", settings.classifier.checkpoint or ""]
    if "://" not in place and any("://" in address for address in inputs):
        return None
    return settings.execution.storage_options or None


def _stored_certificates(
    store: RunStore, plan: Plan | PlainPlan, unreadable: Sequence[int]
) -> set[tuple[float, int, int]]:
    """(sigma, image_id, votes used) of the plan's certificates that are stored already.

    The row of an image that could not be read counts only while that is so.
    """
    columns = ["sigma", "image_id", "alpha", "bound", "n0", "n", "nfe"]
    table = store.certificates().select(columns).to_pandas()
    same = (table["alpha"] == plan.alpha) & (table["bound"] == plan.bound)
    read = (table["nfe"] > 0) | table["image_id"].isin(unreadable)
    rows = table[same & read & (table["n0"] == plan.n0)]
    return set(
        zip(rows["sigma"].tolist(), rows["image_id"].tolist(), rows["n"].tolist(), strict=True)
    )
