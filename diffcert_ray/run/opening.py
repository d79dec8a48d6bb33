"""A run's folder: opened, or made with the numerics that calibration chose."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffcert_ray.config.model_files import model_files
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.datasets.dataset import about
from diffcert_ray.run import calibration
from diffcert_ray.run.calibration import Calibrated
from diffcert_ray.run.devices import gpus_of_a_worker
from diffcert_ray.run.document import RunDocument
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.store import RunStore

if TYPE_CHECKING:
    from diffcert_ray.denoisers.denoiser import Denoiser


def open_or_create(
    location: Location,
    settings: Config,
    weights: Mapping[str, str],
    data: Dataset,
    options: Mapping[str, Any] | None,
    calibrated: Callable[[Config], Calibrated],
    *,
    on_damaged: Any,
) -> tuple[RunStore, RunDocument, Config]:
    """The run's store and document, and the settings with the run's [numerics].

    For a new run ``calibrated`` chooses them, and what it compared is kept. No document may hold
    ``options``.

    Raises:
        ConfigError: the stored run is another one.
        StoreError: the folder cannot be read or written.
    """
    described, chosen = about(data), None
    if not RunStore.exists(location):
        chosen = calibrated(settings)
    if chosen and not RunStore.exists(location):  # nor did another driver start it meanwhile
        settings = settings.model_copy(update={"numerics": chosen.numerics})
        document = RunDocument.of(settings, weights, described).calibrated(chosen.noted)
        store = RunStore.create(location, document.to_bytes(), options, on_damaged=on_damaged)
        return store, document, settings
    store = RunStore.open(location, on_damaged=on_damaged)
    document = RunDocument.from_bytes(store.run_document())
    document = document.with_storage_options(settings.execution.storage_options)
    settings = document.adopt_numerics(settings)
    document.check_continues(RunDocument.of(settings, weights, described))
    return store, document, settings


def calibrated(
    check_writable: Callable[[], None],
    nfe: float,
    weights: Mapping[str, str],
    device: str,
    denoiser: "Denoiser | None",
    dataset: Dataset | None,
    on_calibrated: Callable[[str], None],
    settings: Config,
    *,
    local: bool,
    address: str | None,
) -> Calibrated:
    """The numerics of a run about to start, with what is left open in them chosen if it pays.

    It is measured where workers will be: in this process (``local``), or in the cluster.
    """
    if not calibration.is_wanted(settings, nfe, own_object=denoiser is not None):
        return Calibrated(calibration.usual_numerics(settings, device), "")
    check_writable()  # before the minutes that this may take
    execution = settings.execution
    calibrate = partial(
        calibration.calibrate_for,
        settings,
        weights,
        device,
        denoiser=denoiser,
        dataset=dataset,
        nfe=nfe,
    )
    if local or (address is None and device == "cpu"):
        choice: Calibrated = calibrate(1 if local else os.cpu_count() or 1)
    else:  # a worker's machine may be another one, and a GPU is to be free again when they start
        from diffcert_ray.pool.on_ray.one_worker import on_one_worker

        choice = on_one_worker(
            calibrate,
            address=address,
            gpus=gpus_of_a_worker(execution, device),
            place_s=execution.stall_timeout_s,
            work_s=execution.stall_timeout_s,
            remedy=', or set execution.calibrate = "never"',
        )
    on_calibrated(choice.said)
    return choice


def store_options(settings: Config, folder: str) -> dict[str, Any] | None:
    """Storage options of the run folder: those that open only its inputs are not the folder's."""
    inputs = [file.source for file in model_files(settings).values()]
    inputs += [settings.dataset.path or "", settings.classifier.checkpoint or ""]
    inputs += [settings.sift.head or ""]
    if "://" not in folder and any("://" in address for address in inputs):
        return None
    return settings.execution.storage_options or None
