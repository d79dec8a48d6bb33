"""The heads of a tuning: trained, or continued, at every sigma; joined into one file."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from diffcert_ray.checkpoints.head_file import raced_with
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.views import replace_view
from diffcert_ray.tuning.heads import (
    HeadFitted,
    HeadJob,
    HeadStep,
    StoredHeads,
    head_config,
    here,
    joined_heads,
    on_cluster,
)
from diffcert_ray.tuning.prepared import Prepared
from diffcert_ray.tuning.stopping import StoppedError

RACE_SEED = 2**41  # joins the tuning seed for the noise that priors of lags are measured on
WORKING = (
    "heads/joined.safetensors"  # has seen the images of the head alone: votes are cast with it
)
HEAD = "head.safetensors"  # the same heads; has seen all images that the choice has seen

OnHead = Callable[[float, HeadStep | HeadFitted], None]
"""on_head(sigma, where its training stands)."""


@dataclass(frozen=True)
class HeadFile:
    """A file of heads.

    Attributes:
        source: its address.
        sha256: of the file.
    """

    source: str
    sha256: str


@dataclass(frozen=True)
class Heads:
    """The trained heads, as two files: both hold the same ones.

    Attributes:
        working: for the votes of the tuning.
        final: for runs: it says that it has seen every tuning image.
    """

    working: HeadFile
    final: HeadFile


def train_heads(
    prepared: Prepared,
    location: Location,
    device: str,
    *,
    local: bool,
    on_head: OnHead,
    should_stop: Callable[[], bool],
) -> Heads:
    """Train what is not stored; with Ray, which this process is then connected to, side by side.

    Raises:
        StoppedError: it was asked to stop.
    """
    stored, sigmas = StoredHeads(location), prepared.tuning.votes.sigmas
    missing = [s for s in sigmas if stored.fitted(s) is None]
    jobs = [_job(prepared, device, sigma, stored.state(sigma)) for sigma in missing]
    if local:
        steps = here(jobs, should_stop)
    else:
        execution = prepared.tuning.execution
        gpus = execution.gpus_per_actor if device == "cuda" else 0.0
        steps = on_cluster(jobs, should_stop, gpus=gpus, limit_s=execution.stall_timeout_s)
    for position, found in steps:
        sigma = missing[position]
        if isinstance(found, HeadFitted):
            stored.put_fitted(sigma, found.file)
        else:
            stored.put_state(sigma, found)
        on_head(sigma, found)
    files = [file for s in sigmas if (file := stored.fitted(s)) is not None]
    if len(files) < len(sigmas):
        raise StoppedError
    return _joined(prepared, location, files)


def _job(prepared: Prepared, device: str, sigma: float, state: bytes | None) -> HeadJob:
    config = head_config(prepared.tuning)
    votes = config.votes.model_copy(update={"seed": config.votes.seed ^ RACE_SEED})
    spec = WorkerSpec(
        config.model_copy(update={"votes": votes}),
        prepared.weights,
        device,
        fingerprint=prepared.data.fingerprint,
        image_shas=prepared.shas,
    )
    return HeadJob(
        spec,
        tuple(prepared.parts.head.tolist()),
        tuple(prepared.parts.screening.tolist()),
        sigma,
        prepared.data.num_classes,
        prepared.asked.recipe,
        prepared.asked.races,
        state,
    )


def _joined(prepared: Prepared, location: Location, files: list[bytes]) -> Heads:
    weights = prepared.weights
    network = weights.get("unconditional", weights["denoiser"])
    about = {"recipe": asdict(prepared.asked.recipe), "raced": raced_with(prepared.tuning)}
    shas = {
        WORKING: [prepared.shas[int(i)] for i in prepared.parts.head],
        HEAD: prepared.tuning_shas(),
    }
    found = {}
    for name, seen in shas.items():
        content = joined_heads(files, denoiser=network, image_shas=seen, **about)
        if name == HEAD:
            replace_view(location, name, content)
        else:
            with suppress(FileExistsError):
                location.create(name, content)
            content = location.read(name)
        address = f"{location.address}/{name}"
        found[name] = HeadFile(address, hashlib.sha256(content).hexdigest())
    return Heads(found[WORKING], found[HEAD])
