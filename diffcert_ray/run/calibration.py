"""What a run's network is fastest with, where the run is long enough to look.

Batch, dtype, order in memory and compilation: the choice becomes the run's [numerics], which every
later driver and worker adopts. What the configuration gives is never changed, and a short run keeps
the defaults: looking would cost more than it saves.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcert_ray.config.tables import Config, Dtype, NumericsConfig
from diffcert_ray.run.dtype_agreement import Agreement
from diffcert_ray.run.dtype_votes import SHARE, agreements
from diffcert_ray.run.kind import kind_of

if TYPE_CHECKING:
    from diffcert_ray.datasets import Dataset
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.engine.speed import Rate

SMALL_NFE = 500_000  # a run of fewer evaluations is not looked at: no network is loaded for it
SHORT_S = 900.0  # seconds of a run, below which nothing is tried
COMPILE_S = 60.0  # of each worker's start, before it is known
COMPILED_GAIN = 1.3  # times as fast, before it is known
CLEARLY = 3.0  # seconds that compiling must save for each second that it takes
HOURS_S = 7200.0  # seconds of a run, from which on the two best ways are tried compiled
GPU_BATCH = 256  # where nothing is measured: with less, launches take most of a batch's time
DTYPES: Mapping[str, tuple[Dtype, ...]] = {
    "cpu": ("float32",),
    "cuda": ("float32", "tf32", "bfloat16"),
}
PROBE_BATCH = 8
SMALLEST_BATCH = {"cpu": 8, "cuda": 64}
PROBE_S = 5.0  # a batch predicted to take longer is no probe
LARGEST_BATCH = {"cpu": 1024, "cuda": 16384}
FREE_SHARE = 0.8  # of the memory that is free, where no limit is given


@dataclass(frozen=True)
class Calibrated:
    """The run's [numerics], and a line for the user: what was tried, what was chosen and why.

    And how the votes of other dtypes compare with those in float32, where that was looked at.
    """

    numerics: NumericsConfig
    said: str
    agreements: tuple[Agreement, ...] = ()

    @property
    def noted(self) -> dict[str, Any]:
        """What a run keeps of it, as TOML takes it."""
        return {"agreement": [asdict(one) for one in self.agreements]} if self.agreements else {}


@dataclass(frozen=True)
class Way:
    """How a network could compute, whatever its batch."""

    dtype: Dtype
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.dtype} channels_last" if self.channels_last else self.dtype


def open_keys(config: Config) -> set[str]:
    """Keys of [numerics] that the configuration leaves open."""
    return set(NumericsConfig.model_fields) - config.numerics.model_fields_set


def usual_numerics(config: Config, device: str) -> NumericsConfig:
    """The [numerics] of a new run that is not calibrated: on a GPU, larger batches by default."""
    if device == "cuda" and "batch" in open_keys(config):
        return config.numerics.model_copy(update={"batch": GPU_BATCH})
    return config.numerics


def is_wanted(config: Config, nfe: float, *, own_object: bool) -> bool:
    """Whether a new run of about ``nfe`` evaluations is calibrated.

    An object of the caller's is left alone with "auto", which also asks for a long run.
    """
    mode = config.execution.calibrate
    if mode == "never" or not kind_of(config).calibrates or not open_keys(config):
        return False
    return mode == "always" or (nfe >= SMALL_NFE and not own_object)


def calibrate(
    config: Config,
    weights: Mapping[str, str],
    device: str,
    *,
    nfe: float,
    workers: int = 1,
    denoiser: "Denoiser | None" = None,
    dataset: "Dataset | None" = None,
) -> Calibrated:
    """Try batches, dtypes, orders and compilation on this machine's device, one thread on a CPU.

    Running out of memory is a finding: that batch is out. The run is of about ``nfe`` evaluations,
    which ``workers`` share. A dtype is tried only where its votes are those in float32, but for one
    in a thousand.

    Raises:
        ValueError: not even the smallest batch fits into memory.
    """
    from diffcert_ray.engine.speed import best_rate, smallest_good_batch

    trial = _Trial(config, weights, device, nfe / workers, denoiser)
    always, default = config.execution.calibrate == "always", usual_numerics(config, device)
    if not always and (run_s := trial.rough_seconds()) < SHORT_S:
        given = f"batch {default.batch}, {default.dtype}, compiled: {_yes(default.compile)}"
        said = f"{given}, run of about {_minutes(run_s)}"
        return Calibrated(default, f"{said} would not pay for more (not calibrated)")
    compared = trial.compared(SHARE * nfe, dataset)
    rates_of = {way: trial.rates(way) for way in trial.ways(compared)}
    best = sorted(rates_of, key=lambda w: best_rate(rates_of[w]).nfe_per_s or 0.0, reverse=True)
    long = trial.seconds_at(best_rate(rates_of[best[0]]).nfe_per_s or 1.0) >= HOURS_S
    tries = []
    for way in best[: 2 if long else 1]:
        whole = smallest_good_batch(rates_of[way], config.execution.item_s, short=False)
        rate = next(r.nfe_per_s for r in rates_of[way] if r.batch == whole) or 0.0
        tries.append((way, whole, trial.whether_to_compile(way, whole, rate, always=always)))
    way, batch, compiling = max(tries, key=lambda t: t[2].nfe_per_s if t[2].chosen else 0.0)
    if not compiling.chosen:  # its last rows may go in short batches, on a CPU
        short = device == "cpu"
        batch = smallest_good_batch(rates_of[way], config.execution.item_s, short=short)
    numerics = NumericsConfig(
        batch=batch, dtype=way.dtype, channels_last=way.channels_last, compile=compiling.chosen
    )
    tried = "; ".join(f"{w}: {_shown(rates)}" for w, rates in rates_of.items())
    votes = "".join(f"; {one}" for one in compared)
    said = f"calibrated: batch {batch}, {way}, compiled: {compiling.why} (NFE/s by batch, {tried})"
    return Calibrated(numerics, said + votes, tuple(compared))


def calibrate_for(
    config: Config,
    weights: Mapping[str, str],
    device: str,
    places: int,
    *,
    nfe: float,
    denoiser: "Denoiser | None" = None,
    dataset: "Dataset | None" = None,
) -> Calibrated:
    """As `calibrate`, on a worker, for all workers that there will be.

    Args:
        config: as `calibrate`, like weights, device, nfe and denoiser.
        weights: hashes.
        device: of the workers.
        places: for workers, where they are.
        nfe: of the run.
        denoiser: an object of the caller's.
        dataset: likewise.

    Raises:
        ConfigError: this process has no such device.
        ValueError: as `calibrate`.
    """
    from diffcert_ray.denoisers.device import check_device

    check_device(device, "calibration")
    workers = config.execution.actors or max(places, config.execution.most_actors or 1)
    return calibrate(
        config, weights, device, nfe=nfe, workers=workers, denoiser=denoiser, dataset=dataset
    )


def pays(run_s: float, gain: float, compile_s: float) -> bool:
    """Whether a run compiled, ``gain`` times as fast, clearly saves more than ``compile_s``."""
    return run_s * (1.0 - 1.0 / gain) > CLEARLY * compile_s


def memory_limit(config: Config, device: str) -> int:
    """Bytes that one worker may take: as configured, or its share of what is free."""
    given = config.execution.memory_limit
    if given is not None:
        return int(given * 2**30)
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()  # what torch keeps of the way before is free
        free, _ = torch.cuda.mem_get_info()
        return int(FREE_SHARE * free * min(1.0, config.execution.gpus_per_actor))
    return int(FREE_SHARE * _free_host_bytes() / (config.execution.actors or os.cpu_count() or 1))


@dataclass(frozen=True)
class _Compiling:
    chosen: bool
    why: str
    nfe_per_s: float


class _Trial:
    """Measurements of one network on one device."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, str],
        device: str,
        nfe: float,
        denoiser: "Denoiser | None",
    ) -> None:
        self._config, self._weights, self._device = config, weights, device
        self._nfe, self._object = nfe, denoiser
        self._open = open_keys(config)

    def compared(self, most_nfe: float, dataset: "Dataset | None") -> list[Agreement]:
        """How the votes of the dtypes that could be chosen compare with those in float32."""
        if self._object is not None or "dtype" not in self._open:
            return []
        dtypes = self._config.execution.dtypes or DTYPES[self._device]
        if self._device == "cpu":  # where tf32 is float32
            dtypes = tuple(dtype for dtype in dtypes if dtype != "tf32")
        if kind_of(self._config).counted != "votes":
            return []  # bounds of losses hold for what computes them, and nothing is compared
        return agreements(
            self._config, self._weights, self._device, dtypes, most_nfe=most_nfe, dataset=dataset
        )

    def ways(self, compared: Sequence[Agreement]) -> Sequence[Way]:
        """What to try; an object computes as it is."""
        given = self._config.numerics
        if self._object is not None:
            return (self._as_configured(),)
        dtypes: Sequence[Dtype] = (given.dtype,)
        if "dtype" in self._open:
            dtypes = ("float32", *(one.dtype for one in compared if one.allowed))
        orders = (False, True) if "channels_last" in self._open else (given.channels_last,)
        return [Way(dtype, order) for dtype in dtypes for order in orders]

    def _as_configured(self) -> Way:
        return Way(self._config.numerics.dtype, self._config.numerics.channels_last)

    def rough_seconds(self) -> float:
        """Seconds of the run as it stands, from a batch or two."""
        from diffcert_ray.engine.speed import Forward

        network, batch = self._network(self._as_configured()), self._config.numerics.batch
        small = Forward(network, min(PROBE_BATCH, batch), self._device)
        small.evaluate()
        rate = small.rate(0.0)
        if batch / rate < PROBE_S:
            usual = Forward(network, batch, self._device)
            usual.evaluate()
            rate = max(rate, usual.rate(0.0))
        return self._nfe / rate

    def seconds_at(self, nfe_per_s: float) -> float:
        """Seconds of the run at a rate."""
        return self._nfe / nfe_per_s

    def rates(self, way: Way) -> "list[Rate]":
        """Of the batches that may be chosen."""
        from diffcert_ray.engine.speed import batch_rates, doubling

        sizes = [self._config.numerics.batch]
        if "batch" in self._open:
            smallest, largest = SMALLEST_BATCH[self._device], LARGEST_BATCH[self._device]
            sizes = list(doubling(smallest, largest))
        limit = memory_limit(self._config, self._device)
        return batch_rates(self._network(way), sizes, self._device, memory_limit=limit)

    def whether_to_compile(
        self, way: Way, batch: int, rate: float, *, always: bool
    ) -> "_Compiling":
        """Whether to compile, and why, in a few words."""
        from torch import nn

        from diffcert_ray.denoisers.device import compilation_failures, compile_denoiser
        from diffcert_ray.engine.speed import Forward, seconds

        if "compile" not in self._open:
            given = self._config.numerics.compile
            return _Compiling(given, f"{_yes(given)}, as configured", rate)
        run_s = self._nfe / rate
        network = self._network(way)
        if self._object is not None or not isinstance(network, nn.Module):
            return _Compiling(False, "no, the network is an object of the caller's", rate)
        if not always and not pays(run_s, COMPILED_GAIN, COMPILE_S):
            said = f"no, run of about {_minutes(run_s)} would not pay for it"
            return _Compiling(False, said, rate)
        compile_denoiser(network)
        forward = Forward(network, batch, self._device)
        try:
            began = time.perf_counter()
            forward.evaluate()
            seconds(self._device)
            took = time.perf_counter() - began
        except compilation_failures() as error:
            return _Compiling(False, f"no, it cannot be here ({type(error).__name__})", rate)
        gain = forward.rate(1.0) / rate
        measured = f"{gain:.2f} times as fast after {took:.0f} s"
        if gain > 1.0 and (always or pays(run_s, gain, took)):
            return _Compiling(True, f"yes, {measured}", gain * rate)
        return _Compiling(False, f"no, {measured}, run of about {_minutes(run_s)}", rate)

    def _network(self, way: Way) -> "Denoiser":
        from diffcert_ray.denoisers.device import set_up_torch
        from diffcert_ray.engine.worker import WorkerSpec

        set_up_torch(way.dtype)
        tried = {"dtype": way.dtype, "channels_last": way.channels_last, "compile": False}
        numerics = self._config.numerics.model_copy(update=tried)
        config = self._config.model_copy(update={"numerics": numerics})
        spec = WorkerSpec(config, self._weights, self._device, self._object)
        return spec.network("denoiser")


def _free_host_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _minutes(run_s: float) -> str:
    return f"{run_s / 60:,.0f} min" if run_s < 7200 else f"{run_s / 3600:,.1f} h"


def _shown(rates: "Sequence[Rate]") -> str:
    return ", ".join(
        f"{r.batch} {'out of memory' if r.nfe_per_s is None else f'{r.nfe_per_s:,.4g}'}"
        for r in rates
    )
