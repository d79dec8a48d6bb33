"""The file of a bench: what was measured of each network, for later benches to be held against."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from diffcert_ray.engine.speed import Rate
from diffcert_ray.tools.comparison import Comparison
from diffcert_ray.tools.floor import Floor


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors at their peak.

    Args:
        network: weights and buffers.
        activations: of one batch, input and output included.
        engine: of the engine while it evaluates an item, weights excluded; None if not measured.
    """

    network: int
    activations: int
    engine: int | None

    @property
    def share(self) -> float | None:
        """Engine by activations; at most 1.5 is asked."""
        return None if self.engine is None else self.engine / self.activations


@dataclass(frozen=True)
class Measured:
    """What was measured of one network.

    Args:
        rates: the bare network over batch sizes.
        comparison: the engine against it; None where an item would take too long.
        part_seconds: seconds of one item by part of the engine, "rest" included.
    """

    name: str
    parameters: int
    dtype: str
    compiled: bool
    channels_last: bool
    rates: tuple[Rate, ...]
    comparison: Comparison | None
    part_seconds: dict[str, float]
    memory: Memory
    floor: Floor

    @property
    def useful_share(self) -> float | None:
        """Share of the engine's time in which the network evaluates rows of votes.

        It is what the engine can reach of the bare network's speed at its batch, and, measured
        within one item, hardly depends on what else the machine does.
        """
        if self.comparison is None:
            return None
        rows = self.comparison.nfe + self.comparison.padded
        network = self.part_seconds["network"] / sum(self.part_seconds.values())
        return network * self.comparison.nfe / rows


def device_facts(device: str) -> dict[str, Any]:
    """The device and what computes on it, in words and versions."""
    name = _cpu_name()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "diffcert_ray": metadata.version("diffcert_ray"),
    }


def to_json(facts: dict[str, Any], measured: list[Measured]) -> str:
    """The whole as JSON, floors and shares included."""
    rows = []
    for one in measured:
        row = asdict(one)
        row["floor"]["nfe_per_s"] = one.floor.nfe_per_s
        row["useful_share"] = one.useful_share
        row["memory"]["engine_by_activations"] = one.memory.share
        rows.append(row)
    return json.dumps({"format": 1, "device": facts, "networks": rows}, indent=1)


def read_reference(path: Path) -> dict[str, dict[str, Any]]:
    """The networks of a file of ``to_json`` by name.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {row["name"]: row for row in content["networks"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of `diffcert bench --json`: {error}; give one of those"
        ) from None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
