"""The public names: certify a dataset, open a run, ask a classifier for votes."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffcert_ray.certifiable import check_complete_votes, check_fixed_n
from diffcert_ray.config import Config, ConfigError, load_config
from diffcert_ray.datasets import Dataset, check_images, load_dataset
from diffcert_ray.image_votes import ImageVotes, Plan
from diffcert_ray.loss_stages import ImageLosses, LossStages
from diffcert_ray.loss_store import StoredLosses, read_losses
from diffcert_ray.loss_work import LossResult, UnitLosses
from diffcert_ray.plain import PlainPlan, plain_plan
from diffcert_ray.plain_results import image_certificate, loss_row, plain_row, recompute_plain
from diffcert_ray.preflight import check_plan, leave_out_corrupt
from diffcert_ray.results import (
    certificate_row,
    recompute,
    recompute_stopped,
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
from diffcert_ray.storage.other_writers import OtherWriters
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore
from diffcert_ray.storage.writer import Writer
from diffcert_ray.work import Item, Part, Unit

if TYPE_CHECKING:
    from diffcert_ray.base_classifier import BaseClassifier
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.evaluate_classifier import DirectClassifier
    from diffcert_ray.image_classifier import Network
    from diffcert_ray.verify import Verification

RUNS_FOLDER = "runs"
PREDICT_VOTES = 4096  # votes that share batches when a batch of images is predicted
SELECTORS = ("first", "every", "ids", "sample", "seed")
"""Settings that choose a part of a dataset."""


@dataclass(frozen=True)
class Run:
    """A stored run.

    Args:
        address: its folder or object prefix.
        store: reads it.
        document: its run.toml.
        outcome: how this process's work on it ended, or None if it was only opened.
    """

    address: str
    store: RunStore
    document: RunDocument
    outcome: Outcome | None = None

    @property
    def config(self) -> Config:
        """The configuration that the run was started with."""
        return self.document.config

    def units(self) -> pd.DataFrame:
        """The stored units, each once: counts of votes, which all else is made of."""
        return self.store.units().to_pandas()

    def certificates(self) -> pd.DataFrame:
        """The stored certificates: one row for each image, sigma and bound.

        Where a ``sequential`` run was continued with a larger n, the row that used most votes
        counts.
        """
        table = self.store.certificates().to_pandas()
        key = ["sigma", "image_id", "bound", "alpha", "n0"]
        return table.sort_values([*key, "n"]).drop_duplicates(key, keep="last", ignore_index=True)


def open_run(address: str | Path, storage_options: Mapping[str, Any] | None = None) -> Run:
    """Open a run that exists, to read it.

    Args:
        address: a local folder or an fsspec address such as ``s3://bucket/prefix``.
        storage_options: what fsspec's filesystem takes; never stored.

    Returns:
        The run.

    Raises:
        StoreError: there is no run, or it cannot be read.
        ConfigError: its run.toml is of another version.
    """
    store = RunStore.open(str(address), storage_options)
    return Run(str(address), store, RunDocument.from_bytes(store.run_document()))


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
    store, document, settings = _open_or_create(
        place, settings, weights, data, options, on_damaged=on_damaged
    )
    spec = WorkerSpec(settings, weights, device, denoiser, dataset, classifier)
    on_start(Run(place, store, document))
    if store.loose_part_count() > COMPACT_AT:
        compact(store)
    labels = _labels(data)
    stored = _stored_certificates(store, plan, unreadable)
    held = _held(store, plan)
    if isinstance(held, DoneUnits):
        _check_same_images(held, set(labels).difference(unreadable), image_sha)
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


def plan_of(
    settings: Config, dataset: Dataset, images: tuple[int, int] | None = None
) -> Plan | PlainPlan:
    """What a configuration asks of a dataset's images.

    Args:
        settings: the configuration.
        dataset: the chosen images.
        images: positions start:stop in them, or None for all.

    Raises:
        ConfigError: the range is empty or goes beyond the subset.
    """
    ids = dataset.ids
    if images is not None:
        start, stop = images
        if not 0 <= start < stop <= len(ids):
            raise ConfigError(
                f"--images {start}:{stop} is not a range of the {len(ids)} chosen images: use "
                f"0 <= start < stop <= {len(ids)}"
            )
        ids = ids[start:stop]
    if settings.without_votes:
        return plain_plan(settings, ids, dataset.num_classes, int(np.prod(dataset.image_shape)))
    votes = settings.votes
    return Plan(
        image_ids=ids,
        sigmas=votes.sigmas,
        n0=votes.n0,
        n=votes.n,
        unit=votes.unit,
        alpha=votes.alpha,
        bound=votes.bound,
        radii=votes.radii,
        estimate=votes.estimate,
        futility=votes.futility,
    )


def _open_or_create(
    place: str,
    settings: Config,
    weights: Mapping[str, str],
    data: Dataset,
    options: Mapping[str, Any] | None,
    *,
    on_damaged: Any,
) -> tuple[RunStore, RunDocument, Config]:
    """The run's store and document, and the settings with the run's [numerics]."""
    about = _about(data)
    if not RunStore.exists(place, options):
        document = RunDocument.of(settings, weights, about)
        store = RunStore.create(place, document.to_bytes(), options, on_damaged=on_damaged)
        return store, document, settings
    store = RunStore.open(place, options, on_damaged=on_damaged)
    document = RunDocument.from_bytes(store.run_document())
    settings = document.adopt_numerics(settings)
    document.check_continues(RunDocument.of(settings, weights, about))
    return store, document, settings


def _labels(data: Dataset) -> dict[int, int]:
    return dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))


def _store_options(settings: Config, place: str) -> dict[str, Any] | None:
    """Storage options of the run folder: those that open only its inputs are not the folder's."""
    classifier = settings.classifier.checkpoint or ""
    inputs = (settings.dataset.path or "", settings.model.checkpoint, classifier)
    if "://" not in place and any("://" in address for address in inputs):
        return None
    return settings.execution.storage_options or None


def _about(data: Dataset) -> dict[str, Any]:
    """What run.toml says about a dataset."""
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "num_classes": data.num_classes,
        "image_shape": list(data.image_shape),
        "images": len(data),
    }


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


def _check_same_images(held: DoneUnits, known: set[int], image_sha: Callable[[int], str]) -> None:
    """Refuse to continue with other pixels under a stored image_id."""
    for image_id, sha in held.image_sha.items():
        if image_id in known and (found := image_sha(image_id)) != sha:
            raise ConfigError(
                f"image {image_id} has pixels {found}, but the run's votes were cast on "
                f"{sha}: the data "
                "has changed; give another run folder (--run), or restore the data"
            )


def verify_run(run: Run, *, sample: int = 20, seed: int = 0) -> "Verification":
    """Recompute a run's certificates from its counts, and a sample of its units from its images.

    Args:
        run: an opened run whose checkpoint and dataset are at hand.
        sample: units to evaluate again.
        seed: of the choice.

    Returns:
        What was compared, and every difference.

    Raises:
        ConfigError: certificates that their bound does not hold for, another checkpoint or dataset.
    """
    from diffcert_ray.verify import Verification, compare_certificates, replay, replay_losses
    from diffcert_ray.worker import Worker, WorkerSpec, resolve_device, weights_of

    settings, certificates = run.config, run.certificates()
    weights = weights_of(settings)
    # Later starts may have added images and sigmas: the votes and certificates say which there are.
    whole = settings.dataset.model_copy(update=dict.fromkeys(SELECTORS))
    data = load_dataset(whole, settings.execution.storage_options)
    run.document.check_continues(RunDocument.of(settings, weights, _about(data)))
    found, plain = Verification(), settings.without_votes
    label = _labels(data).__getitem__
    if plain:
        plan = plan_of(settings, data)
        assert isinstance(plan, PlainPlan)
        losses = read_losses(run.store, len(plan.s), plan.classes)
        for bound in ("lipschitz", "local"):
            rows = [
                plain_row(image, c, label(image.image_id), votes_id=run.document.votes_id)
                for image, c in recompute_plain(plan, losses, data.image, bound)
            ]
            stored = certificates[certificates["bound"] == bound]
            if bound == plan.bound or len(stored):
                compare_certificates(stored, rows, found)
    else:
        check_certifiable(run, certificates)
        _check_same_images(run.store.done_units(), set(data.ids.tolist()), data.image_sha)
        compare_certificates(certificates, _recomputed(run, data, certificates), found)
    if sample:
        device = resolve_device(settings.execution.device)
        spec = WorkerSpec(settings, weights, device, dataset=data)
        worker = spec.load("verify")
        if plain:
            assert isinstance(worker, Worker)  # a configuration without votes has method dc
            replay_losses(losses, worker, found, sample=sample, seed=seed)
        else:
            replay(run.units(), worker, found, sample=sample, seed=seed)
    return found


def check_certifiable(run: Run, certificates: pd.DataFrame) -> None:
    """Refuse certificates that rest on counts which their bound does not hold for.

    Args:
        run: an opened run of votes.
        certificates: its certificates.

    Raises:
        ConfigError: fixed-n bounds on stopped or extended counts, ``two-class`` on votes that only
            said whether they are their target.
    """
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
    done, label = run.store.done_units(), _labels(data).__getitem__
    name, votes_id = run.config.method.name, run.document.votes_id
    if plan.bound != "sequential":
        return list(recompute(plan, done, label, method=name, votes_id=votes_id))
    columns = [certificates[c].tolist() for c in ("sigma", "image_id", "n")]
    stored = zip(*columns, strict=True)
    return list(recompute_stopped(plan, done, stored, label, method=name, votes_id=votes_id))


class Classifier:
    """A base classifier at one sigma, in this process.

    Args:
        denoiser: a Denoiser, or what ``load_denoiser`` takes; None for "classify".
        sigma: smoothing noise, pixel units.
        method: "apndc", "epndc", "apndc-posterior" or "dc"; or, with a classifier, "classify" or
            "denoise-classify".
        classifier: a torch module that takes images [B, C, H, W] in pixel units and returns logits
            [B, K]; for "classify" and "denoise-classify" only.
        settings: further configuration tables, as in a TOML file, e.g.
            ``{"sift": {"rule": "full"}, "noise_levels": {"grid": "linear"}}``.
        device: where the denoiser lives.

    Raises:
        ConfigError: the settings do not fit each other or the network.
    """

    def __init__(
        self,
        denoiser: "Denoiser | str | None",
        *,
        sigma: float,
        method: str = "apndc",
        classifier: "Network | None" = None,
        settings: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        from diffcert_ray.denoisers.checkpoint import load_denoiser

        tables = dict(settings or {})
        tables["method"] = {"name": method}
        tables["votes"] = dict(tables.get("votes", {})) | {"sigmas": [sigma]}
        self._config = load_config(tables)
        network = load_denoiser(denoiser, device=device) if isinstance(denoiser, str) else denoiser
        self.sigma = sigma
        self.nfe = 0
        self._base = self._base_of(network, classifier, device)

    def _base_of(
        self, network: "Denoiser | None", classifier: "Network | None", device: str
    ) -> "BaseClassifier | DirectClassifier":
        from diffcert_ray.base_classifier import base_classifier
        from diffcert_ray.evaluate_classifier import DirectClassifier
        from diffcert_ray.image_classifier import ImageClassifier

        config, about = self._config, self._config.classifier
        needs = {"classify": (False, True), "denoise-classify": (True, True)}
        if (network is not None, classifier is not None) != needs.get(
            config.method.name, (True, False)
        ):
            raise ConfigError(
                f'method "{config.method.name}": "classify" takes a classifier, "denoise-classify" '
                "a denoiser and a classifier, every other method a denoiser; pass None for the rest"
            )
        if classifier is None:
            assert network is not None  # by the table above
            return base_classifier(config, network, self.sigma, device=device)
        wrapped = ImageClassifier(
            classifier,
            mean=about.mean,
            std=about.std,
            dtype=config.numerics.dtype,
            device=device,
        )
        seed, batch = config.votes.seed, config.numerics.batch
        return DirectClassifier(wrapped, network, self.sigma, seed, batch, device)

    def votes(
        self, image: np.ndarray, image_id: int, stream: str, start: int, stop: int
    ) -> np.ndarray:
        """Votes start:stop of one image: the class of each of its noisy copies.

        Args:
            image: float32 [C, H, W] in [0, 1].
            image_id: what the noise is addressed by, >= 0.
            stream: "select" or "estimate".
            start: first vote index.
            stop: one past the last.

        Returns:
            int64 [stop - start], class of each vote, -2 where unresolved. The same arguments always
            give the same votes. ``self.nfe`` grows by the evaluations spent.
        """
        unit = Unit(self.sigma, image_id, stream, start, stop)
        return self._cast({unit: np.asarray(image, np.float32)})

    def _cast(self, images: Mapping[Unit, np.ndarray]) -> np.ndarray:
        """All votes of some units, one after the other; images that share batches cost less."""
        from diffcert_ray.evaluate import evaluate_votes
        from diffcert_ray.evaluate_classifier import DirectClassifier, evaluate_classifier_votes

        network = self._base.denoiser
        for image in images.values():
            if network is not None and image.shape != tuple(network.image_shape):
                raise ConfigError(
                    f"image has shape {image.shape}, the network takes {network.image_shape}"
                )
        parts = tuple(Part(unit, unit.start, unit.stop) for unit in images)
        pixels = {unit.image_id: image for unit, image in images.items()}
        item, base = Item(0, self.sigma, parts), self._base
        if isinstance(base, DirectClassifier):
            winners, nfe = evaluate_classifier_votes(base, item, pixels.__getitem__)
        else:
            winners, nfe = evaluate_votes(base, item, pixels.__getitem__)
        self.nfe += nfe
        return winners

    def predict(
        self, images: np.ndarray, image_ids: Sequence[int] = (), *, n: int = 100,
        alpha: float = 0.001,
    ) -> np.ndarray:  # fmt: skip
        """The class that the smoothed classifier returns, or ABSTAIN; certifies no radius.

        For each image, with probability at least 1 - alpha over the noise, this abstains or returns
        the class of the smoothed classifier itself.

        Args:
            images: float32 [C, H, W], or a batch [B, C, H, W], in [0, 1].
            image_ids: what the noise of each is addressed by, >= 0 and distinct; by default 0, 1,
                ... B - 1.
            n: votes for each image (of its estimation stream).
            alpha: failure probability for each image, in (0, 1).

        Returns:
            int64 [] for one image, [B] for a batch: classes, -1 where it abstains. The same
            arguments always give the same answer. ``self.nfe`` grows by the evaluations spent.

        Raises:
            ConfigError: images of another shape than the network's, or ids that do not fit them.
            ValueError: alpha or n is out of range.

        Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.1 (PREDICT).
        """
        from diffcert_ray.prediction import check_prediction, prediction

        check_prediction(n, alpha)
        images = np.asarray(images, np.float32)
        batch = images.reshape(-1, *images.shape[-3:]) if images.ndim >= 3 else images
        ids = [int(i) for i in image_ids] or list(range(len(batch)))
        if len(ids) != len(batch) or len(set(ids)) < len(ids):
            raise ConfigError(
                f"{len(ids)} image_ids for {len(batch)} images: give each image an id of its own"
            )
        units = [Unit(self.sigma, i, "estimate", 0, n) for i in ids]
        together = max(1, PREDICT_VOTES // n)
        found: list[int] = []
        for first in range(0, len(units), together):
            chosen = slice(first, first + together)
            votes = self._cast(dict(zip(units[chosen], batch[chosen], strict=True)))
            found += [prediction(Counter(v.tolist()), alpha=alpha) for v in votes.reshape(-1, n)]
        return np.array(found, np.int64).reshape(images.shape[:-3])

    def logits(self, u: Any, draws: int = 1, seed: int = 0) -> Any:
        """Scores f_y of clean inputs: minus the weighted denoising errors, larger is better.

        With a classifier: its logits for a vote's input without noise; draws and seed play no part.

        Args:
            u: tensor [B, C, H, W] in model space [-1, 1] (2x - 1 for pixels x).
            draws: noise draws for each level.
            seed: of the noise, which all inputs and classes share.

        Returns:
            Tensor [B, K], differentiable with respect to u.
        """
        from diffcert_ray.evaluate import shared_noise_logits
        from diffcert_ray.evaluate_classifier import DirectClassifier

        if isinstance(self._base, DirectClassifier):
            return self._base.logits(u)
        return shared_noise_logits(self._base, u, draws, seed)
