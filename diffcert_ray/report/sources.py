"""The sources of a report: stored runs and logs, opened as series with their facts and pictures."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import tomli_w

from diffcert_ray.certificates.radius import BOUNDS
from diffcert_ray.certificates.reach import largest_radius
from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.errors import ConfigError
from diffcert_ray.report.cohen_log import DEFAULT_ALPHA
from diffcert_ray.report.gallery import Pictures
from diffcert_ray.report.series import Series, distinct_names, series_of_log
from diffcert_ray.report.sigma_names import sigma_of_name
from diffcert_ray.run.certifiable import check_labels
from diffcert_ray.run.dtype_agreement import Agreement
from diffcert_ray.run.stored import Run, open_run
from diffcert_ray.storage.store import RUN_DOCUMENT

LOG_ENDINGS = (".tsv", ".txt", ".log", ".csv")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""How a text begins that Windows' shell redirected into a file."""


@dataclass(frozen=True)
class Sources:
    """What a report is about: series of all runs and logs with distinct names, and the runs."""

    series: tuple[Series, ...]
    runs: tuple[Run, ...]


def open_sources(
    addresses: Sequence[str],
    *,
    log_sigma: float | None = None,
    log_alpha: float = DEFAULT_ALPHA,
    storage_options: Mapping[str, Any] | None = None,
) -> Sources:
    """Open runs and logs to report on.

    Args:
        addresses: run folders or prefixes, and logs: files of any name, as published ones have
            no ending.
        log_sigma: smoothing noise of the logs, pixel units, where their names do not tell.
        log_alpha: failure probability of each of their certificates.
        storage_options: what fsspec's filesystem takes, for the addresses that are not local.

    Returns:
        The series of each, in order; a run with certificates by several bounds has one for each.

    Raises:
        StoreError: there is no run, or it cannot be read.
        ConfigError: a run has no certificates yet, or some that their bound does not hold for.
        LogError: a file is no log.
    """
    series: list[Series] = []
    runs: list[Run] = []
    for address in addresses:
        if _is_log(address, storage_options):
            text = _read_text(address, storage_options)
            series.append(series_of_log(address, text, sigma=log_sigma, alpha=log_alpha))
            continue
        _refuse_a_folder_of_logs(address)
        runs.append(open_run(address, storage_options))
        series += series_of_run(runs[-1])
    return Sources(tuple(distinct_names(series)), tuple(runs))


def series_of_run(run: Run) -> list[Series]:
    """A stored run as one series for each bound, the one asked for first.

    Raises:
        ConfigError: it has no certificates yet, or some that their bound does not hold for.
    """
    certificates, config, all_asked = run.certificates(), run.config, run.asked()
    if certificates.empty:
        raise ConfigError(f"run {run.address} has no certificates yet: run certify on it first")
    _compare_labels(run, certificates)
    asked = config.votes.bound
    bounds = sorted(certificates["bound"].unique(), key=lambda bound: (bound != asked, bound))
    one = Series(
        name=config.name,
        title="",
        certificates=certificates,
        radii=tuple(sorted(config.votes.radii)),
        dataset=config.dataset.name,
        facts=(*_identity(run), *_costs(run, certificates, sum(all_asked.values()))),
        command=shlex.join(["diffcert", "certify", f"{config.name}.toml", "--run", run.address]),
        config=_toml(config),
        seed=config.votes.seed,
        asked=all_asked,
        dimensions=_dimensions(run),
    )
    return [
        replace(
            one,
            name=one.name if len(bounds) == 1 else f"{one.name}, {bound}",
            title=f"{config.name}: {config.method.name}, {bound}, alpha {config.votes.alpha:g}, "
            f"l2 of {_space(run)} images",
            certificates=rows,
            notes=tuple(_notes(run, rows, bound)),
            votes=config.votes.n if bound in BOUNDS else 0,
            reach=_reach(rows, config.votes.n) if bound in BOUNDS else None,
        )
        for bound in map(str, bounds)
        for rows in [certificates[certificates["bound"] == bound]]
    ]


def _reach(rows: pd.DataFrame, n: int) -> dict[float, float]:
    """What n unanimous votes certify at each sigma, with the least that was taken off an image."""
    reach = {}
    for sigma, part in rows.groupby("sigma"):
        first = part.iloc[0]
        reach[float(str(sigma))] = largest_radius(
            n,
            float(first["sigma"]),
            float(first["alpha"]),
            str(first["bound"]),
            slack=_least(part, "slack"),
            taken_off=_least(part, "taken_off"),
        )
    return reach


def _least(rows: pd.DataFrame, column: str) -> float:
    """The least value of the images that were read; 0 in runs of before there was the column."""
    if column not in rows:
        return 0.0
    values = rows.loc[rows["nfe"] > 0, column].dropna()
    return float(values.min()) if len(values) else 0.0


def _compare_labels(run: Run, certificates: pd.DataFrame) -> None:
    """Refuse labels that are not the dataset's, where that is at hand and unchanged."""
    try:
        data = load_dataset(run.config.dataset.whole(), run.config.execution.storage_options)
    except (ValueError, OSError):
        return
    if data.fingerprint == run.document.dataset.get("fingerprint"):
        check_labels(certificates, data)


def _space(run: Run) -> str:
    """Where the radii are measured: the images that noise is added to, before any resize."""
    return "x".join(str(n) for n in run.document.dataset.get("image_shape", ("?",)))


def _dimensions(run: Run) -> int | None:
    """Numbers in an image; None where the run does not say."""
    shape = run.document.dataset.get("image_shape")
    return math.prod(int(side) for side in shape) if shape else None


def pictures_of(run: Run) -> Pictures:
    """The images of a run's dataset, where it is at hand and unchanged, or why there are none."""
    settings = run.config.dataset.as_stored()
    try:
        data = load_dataset(settings, run.config.execution.storage_options)
    except (ValueError, OSError) as error:
        return Pictures(missing=f"No pictures: the dataset is not at hand ({error}).")
    if data.fingerprint != run.document.dataset.get("fingerprint"):
        return Pictures(missing="No pictures: the dataset at hand is not the run's.")
    ids = frozenset(map(int, data.ids))
    return Pictures(data.image, ids, settings.name, tuple(data.class_names))


def _is_log(address: str, storage_options: Mapping[str, Any] | None) -> bool:
    """Whether it is a log by its ending, or a file: a run is a folder, or a prefix of objects."""
    if address.lower().endswith(LOG_ENDINGS):
        return True
    if "://" not in address:
        return os.path.isfile(address)
    if sigma_of_name(address.rsplit("/", 1)[-1]) is None:
        return False
    try:
        filesystem, path = fsspec.core.url_to_fs(address, **(storage_options or {}))
        return bool(filesystem.isfile(path))
    except (OSError, ValueError, ImportError):
        return False  # who opens it as a run says what is wrong


def _refuse_a_folder_of_logs(address: str) -> None:
    """Say what to give in place of a local folder without a run, but with files of some kind."""
    folder = Path(address)
    if "://" in address or not folder.is_dir() or (folder / RUN_DOCUMENT).exists():
        return
    logs = [
        str(file)
        for file in sorted(folder.iterdir())
        if _is_log(str(file), None) and sigma_of_name(file.name) is not None
    ]
    if logs:
        raise ConfigError(
            f"{address} is no run, but a folder of {len(logs)} files that are named as logs: give "
            f"the files themselves, as in diffcert report {shlex.join(logs[:3])}"
        )


def _read_text(address: str, storage_options: Mapping[str, Any] | None) -> str:
    options = storage_options if "://" in address else None
    try:
        with fsspec.open(address, "rb", **(options or {})) as file:
            data: bytes = file.read()
        return data.decode("utf-16" if data[:2] in UTF_16_MARKS else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the log {address} ({error}): check the address, and that it is text"
        ) from None


def _notes(run: Run, rows: pd.DataFrame, bound: str) -> list[str]:
    notes = []
    if not run.document.castable:
        notes.append(
            f"The run is of method version {run.document.method_version}: its certificates are by "
            "the rules of that version, which hold in real arithmetic only, and this program can "
            "neither continue it nor cast its votes again"
        )
    unread = rows.loc[rows["nfe"] == 0, "image_id"].unique()
    if len(unread):
        shown = ", ".join(map(str, unread[:20]))
        notes.append(
            f"{len(unread)} images could not be read and count as abstentions (image_id {shown})"
        )
    return [*notes, *run.kind.notes(run.config, run.store, bound)]


def _identity(run: Run) -> list[tuple[str, str]]:
    document, config = run.document, run.config
    data = document.dataset
    weights = [
        (f"sha256 of the {key.removeprefix('weights.')}", str(value))
        for key, value in document.votes_identity.items()
        if key.startswith("weights.")
    ]
    shape = " x ".join(map(str, data.get("image_shape", ())))
    return [
        ("run", run.address),
        ("votes_id", document.votes_id),
        ("plan_id", document.plan_id),
        ("method version", str(document.method_version)),
        ("checkpoint", config.model.checkpoint),
        ("computes in", _computes_in(run)),
        *weights,
        ("dataset", f"{data.get('name')} {data.get('split')}, {shape}"),
        ("dataset's fingerprint", str(data.get("fingerprint"))),
        ("l2 ball", f"in [0,1] pixel space, {_resolution(config)}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in document.versions.items())),
    ]


def _resolution(config: Config) -> str:
    """Which images the ball is around: as they are stored, or as they are read."""
    asked = config.dataset
    if asked.resize is None and asked.crop is None:
        return "at the stored resolution"
    return f"of the images after dataset.resize = {asked.resize} and crop = {asked.crop}"


def _computes_in(run: Run) -> str:
    """The dtype, and where calibration chose it, how its votes compared with those in float32."""
    dtype = run.config.numerics.dtype
    compared = [Agreement(**one) for one in run.document.calibration.get("agreement", ())]
    return "; ".join([dtype, *(f"compared before the run, {one}" for one in compared)])


def _costs(run: Run, certificates: pd.DataFrame, asked: int) -> list[tuple[str, str]]:
    """What the stored units say about cost, workers and repeats."""
    images = certificates[["sigma", "image_id"]].drop_duplicates()
    facts = [("certified", f"{len(images):,} of {asked:,} (images x sigmas)")]
    return [*facts, *run.kind.costs(run.store, certificates)]


def _toml(config: Config) -> str:
    tables = config.model_dump(mode="json", exclude_none=True)
    tables["execution"].pop("storage_options")
    return tomli_w.dumps(tables)
