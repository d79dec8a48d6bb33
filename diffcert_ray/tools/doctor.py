"""Whether a machine can do what a run needs: packages, device, files, store, clock, numerics."""

import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import load_dataset
from diffcert_ray.denoisers.device import check_device, device_name
from diffcert_ray.engine.weights import weights_of
from diffcert_ray.engine.worker import WorkerSpec
from diffcert_ray.errors import StoreError
from diffcert_ray.run.calibration import memory_limit, usual_numerics
from diffcert_ray.run.opening import store_options
from diffcert_ray.storage.open_location import open_location

PACKAGES = ("diffcert_ray", "torch", "ray", "numpy", "scipy", "pyarrow", "safetensors")
SAME = ("diffcert_ray", "ray")  # of which another version on a node is no small thing
CLOCK_S = 30.0  # that clocks may differ by
FAILURES = (ValueError, OSError, RuntimeError, ImportError, StoreError)


@dataclass(frozen=True)
class Asked:
    """What a machine is to be examined for.

    Args:
        config: of a run; None looks at the machine alone.
        run: folder or address of the run; None looks at no store.
        settings: of execution, where there is no config.
    """

    config: Config | None
    run: str | None
    settings: Config = field(default_factory=Config)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a machine, and what can be done."""

    check: str  # "packages", "device", "checkpoint", "data", "store", "clock" or "worker"
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.check}: {self.said}; {self.remedy}"


@dataclass(frozen=True)
class Machine:
    """What was found on a machine; "" or empty where it was not looked at, or failed."""

    name: str
    versions: Mapping[str, str]
    device: str = ""
    free_gib: float = 0.0  # that a worker may take
    weights: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    images: int = 0
    store: str = ""
    numerics: str = ""  # kind
    problems: tuple[Problem, ...] = ()


def examine(asked: Asked, device: str, *, works: bool = True) -> Machine:
    """Examine this machine.

    Args:
        asked: for what.
        device: that workers have.
        works: whether a worker is to run here; a driver's machine needs no device.
    """
    found = Machine(socket.gethostname(), _versions())
    problems: list[Problem] = []

    def check(name: str, remedy: str, look: Callable[[Machine], Machine]) -> None:
        nonlocal found
        try:
            found = look(found)
        except FAILURES as error:
            said = " ".join(str(error).split()) or type(error).__name__
            problems.append(Problem(name, said, remedy))

    if works:
        check("device", "see that the driver and torch fit", lambda m: _device(m, asked, device))
    if asked.config is not None:
        check("checkpoint", "put it there, or give an address", lambda m: _checkpoint(m, asked))
        check("data", "put them there, or give an address", lambda m: _data(m, asked))
    if asked.run is not None:
        check("store", "give this machine the credentials", lambda m: _store(m, asked))
    if works and asked.config is not None and not problems:
        check("worker", "see its message", lambda m: _worker(m, asked, device))
    return replace(found, problems=tuple(problems))


def compared(driver: Machine, nodes: Sequence[tuple[Machine, float]]) -> list[Machine]:
    """The nodes, with what is wrong beside the driver added.

    Args:
        driver: what was found on its machine.
        nodes: what was found on each, and how far its clock is ahead, seconds.
    """
    return [replace(n, problems=(*n.problems, *_beside(driver, n, s))) for n, s in nodes]


def _beside(driver: Machine, node: Machine, ahead_s: float) -> Iterator[Problem]:
    for name in SAME:
        if node.versions.get(name) != driver.versions.get(name):
            yield Problem(
                "packages",
                f"{name} is {node.versions.get(name)}, {driver.versions.get(name)} on the driver",
                "install the same version everywhere",
            )
    for role in sorted(driver.weights.keys() & node.weights.keys()):
        if node.weights[role] != driver.weights[role]:
            yield Problem(
                "checkpoint",
                f"the {role} has sha256 {node.weights[role][:12]}..., "
                f"{driver.weights[role][:12]}... on the driver",
                "copy the driver's file there",
            )
    if driver.fingerprint and node.fingerprint and node.fingerprint != driver.fingerprint:
        yield Problem(
            "data",
            f"they have fingerprint {node.fingerprint[:12]}..., {driver.fingerprint[:12]}... on "
            "the driver",
            "copy the driver's files there",
        )
    if abs(ahead_s) > CLOCK_S:
        yield Problem(
            "clock",
            f"it is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the driver's",
            "let both follow a time server (chrony, systemd-timesyncd): stores refuse signatures "
            "of clocks that are minutes off",
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _device(machine: Machine, asked: Asked, device: str) -> Machine:
    check_device(device, machine.name)
    free = memory_limit(asked.config or asked.settings, device)
    return replace(machine, device=device_name(device), free_gib=free / 2**30)


def _checkpoint(machine: Machine, asked: Asked) -> Machine:
    assert asked.config is not None
    return replace(machine, weights=weights_of(asked.config))


def _data(machine: Machine, asked: Asked) -> Machine:
    assert asked.config is not None
    config = asked.config
    data = load_dataset(config.dataset, config.execution.storage_options)
    data.image(int(data.ids[0]))
    return replace(machine, fingerprint=data.fingerprint, images=len(data))


def _store(machine: Machine, asked: Asked) -> Machine:
    assert asked.run is not None
    config = asked.config or asked.settings
    location = open_location(asked.run, store_options(config, asked.run))
    location.check_writable()
    return replace(machine, store=location.address)


def _worker(machine: Machine, asked: Asked, device: str) -> Machine:
    assert asked.config is not None
    numerics = usual_numerics(asked.config, device)
    config = asked.config.model_copy(update={"numerics": numerics})
    return replace(
        machine,
        numerics=WorkerSpec(config, machine.weights, device).load(machine.name).numerics,
    )
